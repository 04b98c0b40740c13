"""`hsee runs` and `hsee show`, over runs that have finished, failed, stopped, and that train now."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.errors import Interrupted, RunError
from hsee_ray.rundir.run import LOCK_FILE
from hsee_ray.training.begin import run
from hsee_ray.training.in_process import in_process
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Listener
from jobs.compare import main as compare
from jobs.export import main as export
from jobs.runs import main as runs
from jobs.show import main as show
from jobs.train import main as train


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`done`, `stopped` after its first round, and `failed`."""
    place = tmp_path_factory.mktemp("runs")
    content: dict[str, Any] = {
        "model": {"name": "tests.networks:conv_units"},
        "data": {
            "name": "synthetic",
            "image_size": 8,
            "classes": 3,
            "train_samples": 40,
            "test_samples": 12,
            "cache": str(tmp_path_factory.mktemp("cache")),
        },
        "tiers": [{"name": "[red]", "clients": 1, "cut": "stem"}, {"name": "hub", "clients": 1, "cut": "body.1"}],
        "training": {"rounds": 2, "batch_size": 16},
    }
    run(load_config(content), place / "done", in_process)
    stop = StopRequest()
    with pytest.raises(Interrupted):
        run(load_config(content), place / "stopped", in_process, Listener(trained=lambda samples: stop.ask(15)), stop)
    with pytest.raises(RunError):
        run(load_config(content, ["training.optimizer.lr=1e30"]), place / "failed", in_process)
    (place / "something else").mkdir()
    for age, name in enumerate(("done", "stopped", "failed")):
        for file in (place / name).rglob("*.*"):
            os.utime(file, (1.7e9 - age, 1.7e9 - age))
    return place


def test_runs_are_listed_newest_first(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs([str(directory)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:4] for row in rows[2:]] == [
        ["done", "finished", "2/2", "averaging"],
        ["stopped", "stopped", "1/2", "averaging"],
        ["failed", "failed", "0/2", "averaging"],
    ]


def test_a_finished_run_is_shown(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show([str(directory / "done")]) == 0
    out = capsys.readouterr().out
    assert "finished, 2 of 2 rounds" in out
    assert "averaging over 1 [red] (cut stem), 1 hub (cut body.1), seed 0; data: synthetic" in out
    assert "weights_sha256 " in out


def test_how_to_go_on_is_said(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show([str(directory / "stopped")]) == 0
    assert f"hsee train --resume {directory / 'stopped'}" in capsys.readouterr().out
    assert show([str(directory / "failed")]) == 0
    assert "error: hsee_ray.errors.ClientError: " in capsys.readouterr().out


def test_a_run_that_trains_now(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(directory / "stopped" / LOCK_FILE, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert show([str(directory / "stopped")]) == 0
    out = capsys.readouterr().out
    assert "trains, 1 of 2 rounds" in out and "--resume" not in out


@pytest.mark.parametrize("command", [runs, show])
def test_what_is_not_there(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(tmp_path / "nowhere")]) == 2
    assert "nowhere: " in capsys.readouterr().err


def test_no_runs_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"


def test_damaged_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("training: [", encoding="utf-8")
    assert show([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "config.yaml: is not valid YAML in line 1" in error and error.count("\n") == 1


def change(path: Path, text: str) -> None:
    """Replaces the summary of a run, or one of its keys."""
    summary = json.loads(text) if text[0] == "{" else None
    content = text if summary is None else json.dumps({**json.loads(path.read_text(encoding="utf-8")), **summary})
    path.write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "[" * 100_000,
        " {}",
        '{"rounds": "x"}',
        '{"overall": []}',
        '{"overall": {}}',
        '{"clients": [1]}',
        '{"tiers": [{}]}',
        '{"weights_sha256": null}',
        '{"data": {}, "model_units": 1}',
    ],
)
def test_a_damaged_summary_is_one_line_of_every_reader(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    place = tmp_path / "runs"
    shutil.copytree(directory, place)
    change(place / "done" / "summary.json", text)
    run_is = ["--run", str(place / "done")]
    refused = 0
    for command, arguments in (
        (show, [str(place / "done")]),
        (compare, [str(place / "done")]),
        (export, [*run_is, "--out", str(tmp_path / "out"), "--tau", "0.5"]),
        (train, ["--resume", str(place / "done"), "--in-process"]),
    ):
        code = command(arguments)
        error = capsys.readouterr().err
        refused += code == 2
        assert (code, error.count("\n")) == (2, 1) if error.startswith("error: ") else code == 0
        assert "Traceback" not in error
    assert refused
    # One that is damaged does not hide the others.
    code = runs([str(place)])
    out, error = capsys.readouterr()
    assert "stopped" in out and "failed" in out
    assert code == (2 if error else 0) and error.count("\n") == (1 if error else 0)


def test_a_configuration_of_another_run_is_noticed(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(directory / "done", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    written = config.read_text(encoding="utf-8")
    for old, new, message in (
        ("clients: 1", "clients: 3", "2 clients were trained, and config.yaml has 6; copy the run directory again"),
        ("cut: stem", "cut: body.0", "the run's models have no such tensor; copy the run directory again"),
    ):
        config.write_text(written.replace(old, new), encoding="utf-8")
        assert export(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--tau", "0.5"]) == 2
        assert message in capsys.readouterr().err
