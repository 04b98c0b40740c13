"""The best round on validation samples: whose models are kept, when a run ends early, and what a resume makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.errors import ConfigError, DataError, Interrupted, RunError
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import prepare_run
from hsee_ray.reference import Reference
from hsee_ray.rundir.checkpoint import committed_rounds
from hsee_ray.rundir.run import CHECKPOINTS_DIR, Run
from hsee_ray.rundir.tables import render_summary
from hsee_ray.storage import Storage
from hsee_ray.training.begin import resume, run
from hsee_ray.training.in_process import in_process
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Listener
from tests.tiny_config import tiny_config

BEST = ["data.validation_fraction=0.2", "training.keep=best", "training.optimizer.lr=0.3", "evaluation.every=1"]
ROUNDS = 6


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    return tiny_config(tmp_path / "cache")


def trained(tiny: dict[str, Any], place: Path, *overrides: str) -> Run:
    config = load_config(tiny, [*BEST, f"training.rounds={ROUNDS}", "checkpoint.keep=1", *overrides])
    return run(config, place, in_process)


def by_hand(tiny: dict[str, Any]) -> list[tuple[float, str, dict[int, int]]]:
    """Of each round of the reference: accuracy on the validation samples, digest, and right test answers of exits."""
    models = Reference(prepare_run(load_config(tiny, [*BEST, f"training.rounds={ROUNDS}"])))
    found = []
    for report in models.run():
        accuracies = []
        for each in report.validation.values():
            servers = each.client_correct if each.server_correct is None else each.server_correct
            accuracies.append((each.client_correct + servers) / 2 / each.samples)
        right = {client: each.client_correct for client, each in report.evaluation.items()}
        found.append((sum(accuracies) / len(accuracies), models.digest(), right))
    return found


def test_the_models_and_figures_are_those_of_the_best_round(tiny: dict[str, Any], tmp_path: Path) -> None:
    rounds = by_hand(tiny)
    accuracy, digest, right = max(rounds, key=lambda each: each[0])
    best = [each[0] for each in rounds].index(accuracy) + 1
    assert best < ROUNDS, "another learning rate is needed: the last round is the best one"
    finished = trained(tiny, tmp_path / "run")
    assert finished.summary["best_round"] == best
    assert finished.summary["rounds"] == ROUNDS
    assert finished.summary["weights_sha256"] == digest
    for client in finished.summary["clients"]:
        assert client["client_accuracy"] == right[client["id"]] / client["eval_samples"]
    assert committed_rounds(Storage.at(str(tmp_path / "run" / CHECKPOINTS_DIR))) == [ROUNDS, best]
    assert f"models of round {best}, the best on the validation samples; trained to round 6" in render_summary(
        finished.summary
    )
    rows = [row for row in finished.metrics.to_pylist() if row["metric"] == "validation_accuracy"]
    assert len(rows) == 3 * ROUNDS


def test_an_interrupted_run_keeps_the_same_round(tiny: dict[str, Any], tmp_path: Path) -> None:
    undisturbed = trained(tiny, tmp_path / "undisturbed")
    stop = StopRequest()

    def after_four(report: RoundReport, cost: object) -> None:
        if report.round_number == 4:
            stop.ask(15)

    config = load_config(tiny, [*BEST, f"training.rounds={ROUNDS}", "checkpoint.keep=1"])
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", in_process, Listener(finished_round=after_four), stop)
    resumed = resume(tmp_path / "run", in_process)
    for key in ("best_round", "weights_sha256", "overall"):
        assert resumed.summary[key] == undisturbed.summary[key]


def test_a_run_ends_when_it_has_not_been_better_for_long_enough(tiny: dict[str, Any], tmp_path: Path) -> None:
    best = trained(tiny, tmp_path / "long").summary["best_round"]
    early = trained(tiny, tmp_path / "run", "training.patience=1")
    assert early.summary["rounds"] <= best + 1 < ROUNDS
    assert early.summary["best_round"] == early.summary["rounds"] - 1
    assert "after 1 without a better one (training.patience)" in render_summary(early.summary)
    assert resume(tmp_path / "run", in_process).summary == early.summary
    longer = resume(tmp_path / "run", in_process, [f"training.patience={ROUNDS}"])
    assert longer.summary["best_round"] == best
    assert longer.summary["rounds"] == ROUNDS


def test_a_best_round_whose_checkpoint_is_lost(tiny: dict[str, Any], tmp_path: Path) -> None:
    best = trained(tiny, tmp_path / "run").summary["best_round"]
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / CHECKPOINTS_DIR / f"round-{best:06d}" / "manifest.json").write_bytes(b"")
    with pytest.raises(RunError, match=r"is damaged; --resume with --set training.keep=last keeps the last round's"):
        resume(tmp_path / "run", in_process)
    assert resume(tmp_path / "run", in_process, ["training.keep=last"]).summary["best_round"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.keep=best"], "set data.validation_fraction above 0"),
        (["data.validation_fraction=0.1", "training.patience=3"], "training.patience .* set it to best"),
    ],
)
def test_what_does_not_go_together(overrides: list[str], message: str, tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tiny, overrides)


def test_too_few_samples_to_set_any_aside(tiny: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"lower data.calibration_fraction or data.validation_fraction"):
        prepare_run(load_config(tiny, ["data.validation_fraction=0.95"]))
    with pytest.raises(DataError, match=r"data.validation_fraction is 0.001: that sets aside no image"):
        prepare_run(load_config(tiny, ["data.validation_fraction=0.001", "training.keep=best"]))
