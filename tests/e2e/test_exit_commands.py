"""`python -m jobs.calibrate` and `python -m jobs.evaluate` as a user runs them on a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Command
from tests.run_directories import train_run

Start = Callable[..., Command]

CONFIG: dict[str, Any] = {
    "model": {"name": "tests.networks:conv_units"},
    "data": {"name": "digits", "train_samples": 400, "test_samples": 100, "calibration_fraction": 0.25},
    "tiers": [
        {"name": "sensor", "clients": 1, "cut": "stem", "resources": {"num_cpus": 0.5}},
        {"name": "whole", "clients": 1, "cut": "head", "resources": {"num_cpus": 0.5}},
    ],
    "training": {"rounds": 2, "batch_size": 32},
    "exits": {"taus": [0.02, 0.1]},
}


def test_calibrated_then_evaluated(start: Start, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", CONFIG)
    command = start("jobs.calibrate", "--run", run.path, "--target", "offload<=0.5", "--confidence", "margin")
    out, err = command.finish()
    assert command.process.returncode == 0, err
    assert "offload<=0.5, by margin" in out.splitlines()
    stored = json.loads((run.path / "calibration.json").read_text())
    assert list(stored["tiers"]) == ["sensor"] and 0 <= stored["tiers"]["sensor"]["offload_ratio"] <= 0.5
    assert command.left_behind() == []

    command = start("jobs.evaluate", "--run", run.path)
    out, err = command.finish()
    assert command.process.returncode == 0, err
    lines = out.splitlines()
    answered = [line.removeprefix("answering: ") for line in lines if line.startswith("answering")]
    assert answered == ["local", "tau 0.02", "tau 0.1", "calibrated", "sent"]
    assert any(
        line.startswith("offload<=0.5, sensor: ") and " points where it was calibrated, " in line for line in lines
    )
    rows = pq.read_table(run.path / "evaluation" / "test.parquet").to_pylist()
    overall = {row["gate"]: row for row in rows if row["scope"] == "overall" and row["gate"] != "grid"}
    assert (overall["local"]["server_samples"], overall["sent"]["server_samples"]) == (0, 100)
    sensor = next(row for row in rows if (row["name"], row["gate"]) == ("sensor", "calibrated"))
    assert sensor["tau"] == stored["tiers"]["sensor"]["tau"]
    assert (run.path / "evaluation" / "test-accuracy_offload.png").read_bytes().startswith(b"\x89PNG")
    assert command.left_behind() == []


def test_another_target_is_evaluated_and_not_stored(start: Start, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", CONFIG)
    wanted = ["--target", "accuracy_drop<=0.5", "--confidence", "max_prob", "--split", "calibration"]
    command = start("jobs.evaluate", "--run", run.path, *wanted)
    out, err = command.finish()
    assert command.process.returncode == 0, err
    assert "accuracy_drop<=0.5, by max_prob" in out.splitlines()
    assert not (run.path / "calibration.json").exists()
    found = json.loads((run.path / "evaluation" / "calibration.json").read_text())
    assert (found["split"], found["confidence"], found["target"]) == ("calibration", "max_prob", "accuracy_drop<=0.5")
    # What was picked on these very samples does on them just what was said.
    (distance,) = found["distances"]
    assert distance["measured"] == pytest.approx(distance["calibrated"]) and distance["beyond"] <= 0


@pytest.mark.parametrize(
    "arguments",
    [("jobs.evaluate", "--run", "nowhere"), ("jobs.calibrate", "--run", "nowhere", "--target", "offload<=0.5")],
)
def test_wrong_runs_get_one_line(arguments: tuple[str, ...], start: Start) -> None:
    command = start(*arguments)
    _, err = command.finish()
    assert command.process.returncode == 2
    assert len(err.splitlines()) == 1 and err.startswith("error: nowhere")


def test_wrong_target_gets_one_line(start: Start, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", CONFIG)
    command = start("jobs.calibrate", "--run", run.path, "--target", "accuracy>0.5")
    _, err = command.finish()
    assert command.process.returncode == 2
    assert err == "error: --target 'accuracy>0.5': write offload<=0.3 or accuracy_drop<=0.01, in quotes\n"
    assert not (run.path / "calibration.json").exists()
