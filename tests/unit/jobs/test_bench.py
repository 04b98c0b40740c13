"""The benchmarks' arithmetic, worked out by hand; their door, what they print, and the commands they time."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsee_ray.errors import ConfigError, RunError
from jobs import bench
from jobs.benches import serve, snapshots, transport
from jobs.benches.common import Spread, paired, refuse_cluster, shown
from jobs.benches.overhead import bench as overhead
from jobs.benches.startup import bench as startup
from jobs.benches.startup.bench import seconds_until
from jobs.benches.throughput import bench as throughput
from jobs.benches.throughput.case import RoundClock, balanced, differences, sequential_bound_s
from jobs.options import at_least

ROOT = Path(__file__).parents[3]


# Medians, ratios, shares


def test_spreads_are_medians_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert shown({"median": 3.0, "low": 2.0, "high": 4.25}, 1) == "3.0 (2.0 to 4.2)"
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


def test_ratios_are_of_neighbours() -> None:
    # A machine that is slow for both in the second round: no ratio of medians, but the median of ratios.
    assert paired([2.0, 20.0, 3.0], [1.0, 10.0, 2.0]) == Spread(2.0, 1.75, 2.0)


def test_shares_are_balanced_by_cost() -> None:
    assert balanced([1.0] * 6, 2) == [(0, 2, 4), (1, 3, 5)]  # with two clients a tier, one of each tier in each share
    assert balanced([1.0, 5.0, 2.0, 3.0], 2) == [(0, 1), (2, 3)]
    assert balanced([1.0, 1.0], 4) == [(0,), (1,)]


def test_bound_of_sequential() -> None:
    assert sequential_bound_s(client_s=4.0, server_s=2.0, n_cores=2) == 3.0
    assert sequential_bound_s(client_s=1.0, server_s=5.0, n_cores=2) == 5.0  # cores do not help its one server


def test_differences_are_relative_to_a_tensors_largest_value() -> None:
    ours = {"a": np.array([1.0, 4.5]), "b": np.array([0.0])}
    assert differences(ours, {"a": np.array([1.0, 4.0]), "b": np.array([0.0])}) == [0.125, 0.0]
    with pytest.raises(RunError, match="other tensors"):
        differences(ours, {"a": ours["a"]})


def test_a_round_is_timed_until_it_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = RoundClock(), iter([10.0, 11.0, 12.0, 20.0, 23.0, 29.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock.entered(1, "train")
    clock.entered(1, "aggregate")
    assert clock.round_s() == 2.0  # from 10 to now
    clock.entered(2, "train")
    clock.entered(2, "evaluate")
    assert clock.round_s() == 3.0  # whatever the time is now


# What is printed and written


def case(**changed: Any) -> dict[str, Any]:
    seconds = [(100.0, 100.0, 100.0), (2.0, 1.0, 1.0), (4.0, 4.0, 3.0), (2.0, 2.0, 1.0)]
    return {
        "width": 16,
        "strategy": "averaging",
        "best": "limit",
        "samples_per_round": 12,
        "measured": [{"ours_s": ours, "plain_s": plain, "limit_s": limit} for ours, plain, limit in seconds],
        "weights": {
            "ours": "a" * 64,
            "limit": "a" * 64,
            "plain": "b" * 64,
            "plain_relative_difference": {"median": 1e-6, "low": 0.0, "high": 2e-6},
            "plain_largest_relative_difference": 0.25,
        },
        "errors": [],
        **changed,
    }


def test_throughput_leaves_the_first_round_out() -> None:
    done = throughput.summarised(case())
    assert done["samples_per_s"]["ours"]["median"] == 6.0
    assert done["ratios"]["ours/plain"] == {"median": 1.0, "low": 0.75, "high": 1.0}
    assert done["ratios"]["ours/limit"]["median"] == 0.5
    text = throughput.render({"cases": [done]})
    assert "1.000 (0.750 to 1.000)" in text
    assert "weights aaaaaaaaaaaa are those of one thread without Ray; the plain loop's differ by 1.0e-06 of" in text


def test_transport_is_told_as_a_share_of_the_plain_copy() -> None:
    row = {"mib": 512, "objects": 4, "seconds": {"plain copy": [9.0, 1.0, 1.0], "pipelined": [9.0, 2.0, 4.0]}}
    done = transport.summarised(row)
    assert done["gib_per_s"]["plain copy"]["median"] == 2.0
    assert done["of_plain_copy"]["pipelined"]["median"] == 0.375
    assert "0.75 (0.62 to 0.88)  0.375 (0.312 to 0.438)" in transport.render({"rows": [done]})


def test_overhead_and_its_growth_are_told() -> None:
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    rows = [{"kib": 128, "clients": n, "ms_per_batch": spread} for n in (6, 24)]
    growth = [{"kib": 128, "from": 6, "to": 24, "growth": {"median": 1.0, "low": 0.9, "high": 1.1}}]
    *_, six, many, _ = overhead.render({"rows": rows, "growth": growth, "batches": 32}).splitlines()
    assert six.split() == ["128", "6", "2.00", "(1.00", "to", "3.00)"]
    assert many.endswith("from 6: 1.00 (0.90 to 1.10)")


def test_startup_and_snapshots_are_told() -> None:
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    text = startup.render({"config": "quickstart.yaml", "spreads": {"import torch": spread}})
    assert "import torch  2.00 (1.00 to 3.00)" in text
    figures = {"pairs": 4, "rounds": 9, "with_snapshots_s": 1.0, "without_s": 2.0, "ratio": spread}
    text = snapshots.render({**figures, "pss_after_round_3_mib": 10.0, "pss_after_last_round_mib": 11.0})
    assert "10 MiB after round 3, 11 MiB after round 9" in text


def test_a_server_is_told_with_what_failed() -> None:
    result = {"requests": 10, "devices": 2, "replicas": 1, "wall_s": 0.5, "failed": 1, "wrong": 0, "killed": 77}
    latency_ms = {"p50": 1.0, "p99": 2.0, "longest": 3.0}
    text = serve.render({**result, "retries": {"status 503": 2}, "latency_ms": latency_ms, "micro_batches": {"1": 4}})
    assert "speed         20 requests/s, replicas: 1" in text
    assert "failed        1, answered wrongly 0, tried again 2 {'status 503': 2}" in text
    assert (
        "latency       p50 1.0 ms, p99 2.0 ms, longest 3 ms\nmicro-batches 4 of 1 requests\nkilled        replica 77"
        in text
    )
    silent = serve.render({**result, "killed": None, "retries": {}, "latency_ms": {}, "micro_batches": {}})
    assert "latency" not in silent and "killed" not in silent


# The door


class Fake:
    DESCRIPTION = "Measure nothing."

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--wrong", action="store_true")

    @staticmethod
    def measure(options: argparse.Namespace) -> dict[str, Any]:
        return {"figure": 1, **({"error": "the weights differ"} if options.wrong else {})}

    @staticmethod
    def render(result: dict[str, Any]) -> str:
        return f"figure {result['figure']}"


def test_results_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.BENCHES, "fake", (Fake, "nothing"))
    path = tmp_path / "new" / "result.json"
    assert bench.main(["fake", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert (written["what"], written["figure"]) == ("fake", 1)
    assert written["machine"]["cores"] >= 1
    assert {"torch", "ray", "numpy", "hsee-ray"} == written["machine"]["versions"].keys()
    assert capsys.readouterr().out.startswith("figure 1\n")


def test_what_is_computed_wrongly_is_printed_and_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(bench.BENCHES, "fake", (Fake, "nothing"))
    assert bench.main(["fake", "--wrong"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("figure 1\n")
    assert captured.err == "error: the weights differ\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["throughput", "--rounds", "1"], "--rounds: give at least 2"),
        (["throughput", "--width", "16", "0"], "--width: give at least 1"),
        (["throughput", "--batch-size", "1"], "--batch-size: give at least 2"),
        (["overhead", "--clients", "0"], "--clients: give at least 1"),
        (["transport", "--mib", "0"], "--mib: give at least 1"),
        (["startup", "--repetitions", "0"], "--repetitions: give at least 1"),
        (["startup", "--set", "training.round=1"], "training.round: unknown key; did you mean rounds?"),
        (["snapshots", "--rounds", "8"], "--rounds: give at least 9"),
    ],
)
def test_options_that_cannot_be(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_options_are_held_against_bounds_one_by_one() -> None:
    at_least(argparse.Namespace(a=[2, 3], b=None), a=2, b=5)
    with pytest.raises(ConfigError, match="--a-b: give at least 3"):
        at_least(argparse.Namespace(a_b=[4, 2]), a_b=3)


def test_a_cluster_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="unset RAY_ADDRESS"):
        refuse_cluster()


# Processes


def test_lines_of_a_command_are_timed() -> None:
    script = "import time; print('one', flush=True); time.sleep(0.3); print('two', flush=True)"
    found = seconds_until(["-c", script], ["one", "two"])
    assert found.keys() == {"one", "two", "end"}
    assert found["one"] < found["two"] <= found["end"]


@pytest.mark.parametrize(
    ("script", "timeout_s", "told"),
    [
        ("raise SystemExit('no room')", 60, "ended with 1, without `one`: no room"),
        ("print('two')", 60, "ended with 0, without `one`: two"),
        ("import time; time.sleep(60)", 0.5, "ended with -9, without `one`"),
    ],
)
def test_a_command_that_does_not_get_there(script: str, timeout_s: float, told: str) -> None:
    with pytest.raises(RunError, match=told):
        seconds_until(["-c", script], ["one"], timeout_s)


@pytest.mark.parametrize("module", ["jobs.benches.idle_actors", "actors.cluster.probe"])
def test_actors_of_benchmarks_do_not_load_torch(module: str) -> None:
    script = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
