"""Runs that are killed from outside and resumed, as a user does it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hsee_ray import load_run
from hsee_ray.config.files import load_config
from hsee_ray.method.setup import prepare_run
from hsee_ray.reference import Reference
from hsee_ray.rundir.checkpoint import committed_rounds
from hsee_ray.storage import Storage
from tests.e2e.conftest import Command
from tests.ray.test_recovery import check_each_round_once

Start = Callable[..., Command]
CONFIG = {
    "seed": 5,
    "model": {"name": "tests.networks:conv_units"},
    "data": {"name": "synthetic", "image_size": 8, "classes": 3, "train_samples": 96, "test_samples": 30},
    "tiers": [
        {"name": "sensor", "clients": 1, "cut": "stem", "resources": {"num_cpus": 0.5}},
        {"name": "hub", "clients": 1, "cut": "body.1", "resources": {"num_cpus": 0.5}},
    ],
    "server": {"resources": {"num_cpus": 0.5}},
    "training": {"strategy": "sequential", "rounds": 30, "batch_size": 8},
    "checkpoint": {"every": 2},
}
ROUNDS = 30


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def reference_digest(config_file: Path, cache: Path) -> str:
    reference = Reference(prepare_run(load_config(config_file, [f"data.cache={cache}"])))
    for _ in reference.run():
        pass
    return reference.digest()


def test_a_driver_that_is_killed_again_and_again_ends_in_the_same_bits(
    start: Start, config_file: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments, from before the first round to inside checkpoints and the final write."""
    run_dir = tmp_path / "run"
    rng = random.Random(7)
    kills = 0
    for attempt in range(4):
        begun = (run_dir / "config.yaml").is_file()
        where = ("--resume", run_dir) if begun else ("--config", config_file, "--run-dir", run_dir)
        command = start("jobs.train", *where)
        if attempt == 3:
            break
        # Some kills hit the start; the others come some time after training has begun.
        if attempt > 0:
            command.wait_for_line("[round ")
        time.sleep(rng.random() * (3 if attempt == 0 else 0.8))
        os.kill(command.process.pid, signal.SIGKILL)
        command.finish()
        kills += 1
        assert command.left_behind() == []
        assert not (run_dir / "summary.json").exists()
    _, err = command.finish()
    assert command.process.returncode == 0, err
    assert kills == 3

    finished = load_run(run_dir)
    assert finished.summary["weights_sha256"] == reference_digest(config_file, tmp_path / "reference")
    check_each_round_once(finished, ROUNDS)
    assert command.left_behind() == []


@pytest.mark.parametrize(
    ("sent", "code", "whose"),
    [
        (signal.SIGTERM, 143, "own_group"),
        (signal.SIGTERM, 143, "own_session"),
        (signal.SIGINT, 130, "own_group"),
        (signal.SIGHUP, 129, "own_session"),
    ],
)
def test_a_signal_to_the_whole_group_ends_in_a_checkpoint(
    sent: signal.Signals, code: int, whose: str, start: Start, config_file: Path, tmp_path: Path
) -> None:
    """As `timeout`, batch systems, service managers and terminals send it: Ray's daemons do not get it."""
    command = start("jobs.train", "--config", config_file, "--run-dir", tmp_path / "run", **{whose: True})
    command.wait_for_line("[round 2/")
    os.killpg(command.process.pid, sent)
    _, err = command.finish()
    assert command.process.returncode == code, err
    assert f"continue with --resume {tmp_path / 'run'}" in err.splitlines()[-1]
    assert command.left_behind() == []
    assert committed_rounds(Storage.at(str(tmp_path / "run" / "checkpoints")))


def test_an_interrupted_run_says_how_to_go_on_and_does(start: Start, config_file: Path, tmp_path: Path) -> None:
    command = start("jobs.train", "--config", config_file, "--run-dir", tmp_path / "run")
    command.wait_for_line("[round 2/")
    os.kill(command.process.pid, signal.SIGTERM)
    _, err = command.finish()
    assert command.process.returncode == 143
    assert f"continue with --resume {tmp_path / 'run'}" in err.splitlines()[-1]
    assert command.left_behind() == []

    again = start("jobs.train", "--resume", tmp_path / "run")
    out, err = again.finish()
    assert again.process.returncode == 0, err
    assert any(" of them done" in line for line in out.splitlines())

    changed = start("jobs.train", "--resume", tmp_path / "run", "--set", "training.rounds=40", "seed=6")
    _, err = changed.finish()
    assert (changed.process.returncode, len(err.splitlines())) == (2, 1)
    assert "seed: cannot be changed on resume" in err

    finished = start("jobs.train", "--resume", tmp_path / "run")
    out, err = finished.finish()
    assert finished.process.returncode == 0, err
    assert "has finished, nothing is left to do" in out


def test_what_cannot_be_resumed_is_one_line(start: Start, tmp_path: Path) -> None:
    nothing = start("jobs.train", "--resume", tmp_path / "nothing")
    _, err = nothing.finish()
    assert (nothing.process.returncode, len(err.splitlines())) == (2, 1)
    assert "holds no run that could be resumed" in err
