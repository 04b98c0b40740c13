"""Runs in this process: the bits of the reference, checkpoints, requests to stop, and who fails where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsee_ray.config.files import load_config
from hsee_ray.edge.gate import SENDS_ALL, Gate
from hsee_ray.errors import Interrupted, RunError
from hsee_ray.evaluation.exits import ExitsHere
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import prepare_run
from hsee_ray.reference import Reference
from hsee_ray.rundir.checkpoint import committed_rounds
from hsee_ray.rundir.run import CHECKPOINTS_DIR, ERROR_FILE
from hsee_ray.storage import Storage
from hsee_ray.training.begin import resume, run
from hsee_ray.training.in_process import in_process
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Event, Listener
from tests.tiny_config import tiny_config

STRATEGIES = {
    "averaging": ["training.aggregate_every=2", "training.optimizer_state=average"],
    "sequential": ["training.strategy=sequential", "training.optimizer_state=reset"],
    "round_robin": ["training.strategy=sequential", "training.interleave=batch", "training.norm_statistics=shared"],
    "distributed": ["training.strategy=distributed", "training.clients_per_round=0.67"],
    "centralized": ["training.strategy=centralized"],
    "gradients": ["training.feedback=gradients", "training.exit_weight=0"],
    "soft_labels": [
        "training.feedback=soft_labels",
        "training.look_ahead={units: 1}",
        "training.average_step=momentum",
    ],
    "depthfl": ["training.strategy=depthfl"],
    "per_tier": ["training.strategy=per_tier", "training.objective={name: proximal, options: {mu: 0.1}}"],
}


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    return tiny_config(tmp_path / "cache")


def reference(tiny: dict[str, Any], *overrides: str) -> Reference:
    trained = Reference(prepare_run(load_config(tiny, overrides)))
    for _ in trained.run():
        pass
    return trained


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_that_is_stopped_and_resumed_ends_in_the_bits_of_the_reference(
    strategy: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    config = load_config(tiny, STRATEGIES[strategy])
    stop, place = StopRequest(), tmp_path / "run"

    def after_two(report: RoundReport, cost: object) -> None:
        if report.round_number == 2:
            stop.ask(15)

    with pytest.raises(Interrupted, match="round 2 is in a checkpoint, continue with --resume"):
        run(config, place, in_process, Listener(finished_round=after_two), stop)
    finished = resume(place, in_process)

    assert finished.summary["weights_sha256"] == reference(tiny, *STRATEGIES[strategy]).digest()
    rounds = [row["round"] for row in finished.metrics.to_pylist() if row["metric"] == "wall_s"]
    assert rounds == [1, 2, 3]
    assert list((place / "tensorboard").iterdir())


def test_a_stop_whose_grace_is_over_keeps_the_last_whole_round(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(tiny, ["checkpoint.grace_s=0", "checkpoint.every=100"])
    stop, place = StopRequest(), tmp_path / "run"
    rounds: list[int] = []

    def trained(samples: int) -> None:
        if rounds == [1, 2]:
            stop.ask(15)

    listener = Listener(trained=trained, finished_round=lambda report, cost: rounds.append(report.round_number))
    with pytest.raises(Interrupted):
        run(config, place, in_process, listener, stop)
    assert rounds == [1, 2]
    assert committed_rounds(Storage.at(str(place / CHECKPOINTS_DIR))) == [2]
    assert resume(place, in_process).summary["weights_sha256"] == reference(tiny).digest()


def test_who_fails_where_is_told_and_the_last_round_is_kept(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Steps so large that the loss is soon no number; beside it an error of the user's own code."""
    place = tmp_path / "run"
    config = load_config(tiny, ["training.optimizer.lr=1e30", "training.optimizer.momentum=0"])
    with pytest.raises(
        RunError, match=r"^(client|server) 000 failed in round 1 while it did `train`: NonFiniteError: "
    ):
        run(config, place, in_process)
    assert "NonFiniteStep" in (place / ERROR_FILE).read_text(encoding="utf-8")


def test_answers_are_those_of_training(tiny: dict[str, Any], tmp_path: Path) -> None:
    events: list[Event] = []
    finished = run(load_config(tiny), tmp_path / "run", in_process, Listener(happened=events.append))
    exits = ExitsHere(finished, [])
    everything = dict.fromkeys(range(3), Gate("entropy", SENDS_ALL))
    answers = exits.ask("test", everything)
    trained = reference(tiny)
    report = trained._evaluate(3, "test")
    for number in range(3):
        assert int(answers[number].client_right_N.sum()) == report[number].client_correct
    assert int(answers[0].server_right_N.sum()) == report[0].server_correct
    assert np.isfinite(answers[0].logits_NK).all()
    assert len(exits.ask("test", everything, most=5)[1].labels_N) == 5
    assert events == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_client_with_the_whole_network_may_come_first(strategy: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    """No server belongs to it, also where one server that all others share bears the number 0."""
    tiny["tiers"].reverse()
    finished = run(load_config(tiny, STRATEGIES[strategy]), tmp_path / "run", in_process)
    trained = reference(tiny, *STRATEGIES[strategy])
    assert finished.summary["weights_sha256"] == trained.digest()
    answers = ExitsHere(finished, []).ask("test", dict.fromkeys(range(3), Gate("entropy", SENDS_ALL)))
    for number, report in trained._evaluate(3, "test").items():
        assert int(answers[number].client_right_N.sum()) == report.client_correct
        if report.server_correct is not None:
            assert int(answers[number].server_right_N.sum()) == report.server_correct


def test_nothing_imports_ray(tmp_path: Path) -> None:
    code = (
        "import sys, hsee_ray.training.in_process, hsee_ray.training.begin, jobs.progress; print('ray' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout == "False\n"


def test_a_picture_that_cannot_be_written_ends_no_run(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "run"
    trained = Listener(finished_round=lambda report, cost: (place / "curves.png").mkdir(exist_ok=True))
    assert run(load_config(tiny, ["training.rounds=2"]), place, in_process, trained).summary["rounds"] == 2
    assert f"{place / 'curves.png'}: cannot be written (Is a directory)" in caplog.text
