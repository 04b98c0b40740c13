"""`python -m jobs.train` as a user runs it: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hsee_ray import load_run
from tests.e2e.conftest import Command

Start = Callable[..., Command]
QUICKSTART = ("jobs.train", "--config", "jobs/configs/quickstart.yaml")
SMALL = ("model.name=tests.networks:conv_units", "model.stem=cifar", "training.rounds=2")
TWO_TIERS = (
    "tiers=[{name: sensor, clients: 1, cut: stem, resources: {num_cpus: 0.5}},"
    " {name: hub, clients: 1, cut: body.1, resources: {num_cpus: 0.5}}]"
)


def test_trains_prints_and_leaves_no_process(start: Start, tmp_path: Path) -> None:
    command = start(*QUICKSTART, "--set", *SMALL, TWO_TIERS, "--run-dir", tmp_path / "run")
    out, err = command.finish()

    assert command.process.returncode == 0, err
    lines = out.splitlines()
    assert [line.split("]")[0] for line in lines if line.startswith("[round") and "/2]" in line] == [
        "[round 1/2",
        "[round 2/2",
    ]
    assert all("samples/s" in line for line in lines if "/2]" in line)
    assert any(line.startswith("sensor") and "stem" in line for line in lines)
    assert "tensorboard --logdir" in lines[-1]
    assert "\r" not in out and "\x1b" not in out
    assert len(load_run(tmp_path / "run").summary["clients"]) == 2
    assert command.left_behind() == []


def test_failed_run_exits_1_with_one_line(start: Start, tmp_path: Path) -> None:
    network = "model={name: tests.networks:failing_units, options: {fails_at: head}}"
    command = start(*QUICKSTART, "--set", network, TWO_TIERS, "--run-dir", tmp_path / "run")
    _, err = command.finish()

    assert command.process.returncode == 1
    (line,) = err.splitlines()
    assert re.match(r"error: server 00\d failed in round 1 while it did `train`: .*error\.log$", line)
    assert "Traceback" in (tmp_path / "run" / "error.log").read_text()
    assert command.left_behind() == []


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_ended_run_takes_its_local_ray_with_it(sent: signal.Signals, code: int, start: Start, tmp_path: Path) -> None:
    command = start(*QUICKSTART, "--set", *SMALL, TWO_TIERS, "training.rounds=100000", "--run-dir", tmp_path / "run")
    command.wait_for_line("[round 1/")
    os.kill(command.process.pid, sent)
    _, err = command.finish()

    assert command.process.returncode == code
    assert "Traceback" not in err
    assert command.left_behind() == []
