"""Tables of one run and of several, and the job that prints them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hsee_ray.errors import UserError
from hsee_ray.rundir.run import Run
from hsee_ray.rundir.summary import write_summary
from hsee_ray.rundir.tables import align, comparison_table, render_comparison, render_summary, tier_table
from jobs.compare import main


def gated(accuracy: float, offload_ratio: float) -> list[dict[str, float]]:
    return [
        {"tau": 0.1, "accuracy": 0.1, "offload_ratio": 0.0},
        {"tau": 0.5, "accuracy": accuracy, "offload_ratio": offload_ratio},
        {"tau": 0.9, "accuracy": 0.9, "offload_ratio": 1.0},
    ]


def client(tier: str, eval_sent_bytes: int, offload_ratio: float) -> dict[str, Any]:
    return {
        "tier": tier,
        "eval_samples": 10,
        "eval_sent_bytes": eval_sent_bytes,
        "gated": gated(0.5, offload_ratio),
    }


def summary(strategy: str = "averaging", sensor: str = "sensor", digest: str = "ab" * 32) -> dict[str, Any]:
    """Two sensors that send 100 and 300 bytes per sample, half and all of them, and a phone."""
    both = {"client_accuracy": 0.25, "server_accuracy": 0.5, "gated": gated(0.4, 0.75)}
    alone = {"client_accuracy": 0.625, "server_accuracy": None, "gated": gated(0.625, 0.0)}
    means = {"client_accuracy": 0.375, "server_accuracy": 0.5, "gated": gated(0.475, 0.5)}
    return {
        "strategy": strategy,
        "seed": 7,
        "rounds": 2,
        "samples_per_s": 1234.5,
        "weights_sha256": digest,
        "clients": [client(sensor, 1000, 0.5), client(sensor, 3000, 1.0), client("phone", 0, 0.0)],
        "tiers": [
            {"name": sensor, "cut": "layer1.1", "clients": 2, **both},
            {"name": "phone", "cut": "head", "clients": 1, **alone},
        ],
        "overall": {"clients": 3, "majority_rate": 0.1125, **means},
    }


def write_run(path: Path, content: dict[str, Any]) -> str:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("tiers: []\n", encoding="utf-8")
    write_summary(path / "summary.json", content)
    return str(path)


def test_tier_table_at_the_middle_of_the_grid() -> None:
    assert tier_table(summary()) == [
        [
            *("tier", "cut", "clients", "client accuracy", "server accuracy"),
            *("gated at tau 0.5", "offloaded at tau 0.5", "bytes per sample"),
        ],
        ["sensor", "layer1.1", "2", "25.0%", "50.0%", "40.0%", "75.0%", "175"],
        ["phone", "head", "1", "62.5%", "-", "62.5%", "0.0%", "0"],
        ["overall", "-", "3", "37.5%", "50.0%", "47.5%", "50.0%", "117"],
    ]


def test_tier_table_at_a_given_tau() -> None:
    header, sensor, *_ = tier_table(summary(), tau=0.9)
    assert header[5] == "gated at tau 0.9"
    assert sensor[5:] == ["90.0%", "100.0%", "200"]


def test_tau_outside_the_grid_names_the_grid() -> None:
    with pytest.raises(UserError, match=r"tau 0.7 was not evaluated in this run; choose one of 0.1, 0.5, 0.9"):
        tier_table(summary(), tau=0.7)


def test_majority_rate_stands_beneath_the_tiers() -> None:
    lines = render_summary(summary()).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "majority-class rate: 11.2%"


def test_align_puts_numbers_to_the_right_and_never_wraps() -> None:
    assert align([["run", "accuracy", "cut"], ["a", "9.5%", "x"], ["longer", "-", "y"]]) == (
        "run     accuracy  cut\n------  --------  ---\na           9.5%  x\nlonger         -  y"
    )
    assert len(align([["run", "x"], ["a" * 300, "1"]]).splitlines()) == 3


def test_comparison_of_runs_with_different_tiers() -> None:
    first = Run(Path("runs/first"), summary())
    second = Run(Path("runs/second"), summary("sequential", "camera", "cd" * 32))
    header, one, two = comparison_table([first, second])
    assert header == [
        *("run", "strategy", "seed", "rounds", "sensor", "phone", "camera", "overall"),
        *("tau", "gated", "offloaded", "majority", "samples/s", "weights"),
    ]
    accuracies = ["25.0% / 50.0%", "62.5% / -"]
    rest = ["37.5% / 50.0%", "0.5", "47.5%", "50.0%", "11.2%", "1,234"]
    assert one == ["first", "averaging", "7", "2", *accuracies, "-", *rest, "ab" * 6]
    assert two == ["second", "sequential", "7", "2", "-", accuracies[1], accuracies[0], *rest, "cd" * 6]


def test_runs_of_one_name_are_told_apart_by_their_paths() -> None:
    runs = [Run(Path("a/out"), summary()), Run(Path("b/out"), summary())]
    assert [row[0] for row in comparison_table(runs)[1:]] == ["a/out", "b/out"]


def test_compare_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "first", summary())
    second = write_run(tmp_path / "second", summary("distributed"))
    assert main([first, second]) == 0
    printed = capsys.readouterr().out
    runs = [Run(Path(first), summary()), Run(Path(second), summary("distributed"))]
    assert printed == render_comparison(runs) + "\n"


def test_compare_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write_run(tmp_path / "first", summary()), str(tmp_path / "other")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {tmp_path / 'other'}: is no run directory")
    assert captured.err.count("\n") == 1


def test_compare_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first", summary())
    script = (
        "import sys; from jobs.compare import main; early = set(sys.modules); code = main(sys.argv[1:]);"
        "heavy = {'torch', 'ray', 'pyarrow', 'matplotlib'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert 'pydantic' not in early; sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", script, run], check=False).returncode == 0
