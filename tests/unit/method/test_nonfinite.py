"""NaN and infinity: they reach no parameter, no average and no file, and who made no step contributes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsee_ray.config.files import load_config
from hsee_ray.errors import NonFiniteError
from hsee_ray.method.figures import client_figures, gathered
from hsee_ray.method.objective import CrossEntropy
from hsee_ray.method.reports import RoundReport, TrainReport, learnt
from hsee_ray.method.setup import prepare_run
from hsee_ray.models.state import named_tensors
from hsee_ray.reference import Reference


def reference(tmp_path: Path, **training: Any) -> Reference:
    """Three clients of one tier, who skip what is not finite."""
    values = {
        "model": {"name": "tests.networks:conv_units"},
        "data": {
            "name": "synthetic", "cache": str(tmp_path), "image_size": 8, "train_samples": 96, "test_samples": 8,
            "calibration_fraction": 0,
        },
        "tiers": [{"name": "a", "clients": 3, "cut": "stem"}],
        "training": {"batch_size": 8, "rounds": 2, **training},
        "failures": {"on_nonfinite": "skip_batch"},
    }  # fmt: skip
    return Reference(prepare_run(load_config(values)))


class Poisoned(CrossEntropy):
    def forward(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return super().forward(logits_BK, y_B) * float("nan")


class Steep(CrossEntropy):
    """A finite loss whose gradient is not: d sqrt(z) / dz at 0."""

    def forward(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return super().forward(logits_BK, y_B) + torch.sqrt((0.0 * logits_BK).sum())


def poison(run: Reference, client_id: int, kind: type[CrossEntropy] = Poisoned) -> None:
    client = run.clients[client_id]
    client.objective = kind(kind.Options(), "client", {})


@pytest.mark.parametrize("kind", [Poisoned, Steep])
@pytest.mark.parametrize("optimizer_state", ["local", "average"])
def test_a_client_that_made_no_step_contributes_nothing(
    kind: type[CrossEntropy], optimizer_state: str, tmp_path: Path
) -> None:
    apart = reference(tmp_path, strategy="distributed")
    apart.run_round(1)
    together = reference(tmp_path, optimizer_state=optimizer_state)
    before = together.clients[1].tensors()
    poison(together, 1, kind)
    report = together.run_round(1)

    name = next(name for name in before if name.startswith("stem.") and "running" not in name)
    first, third = (named_tensors(apart.clients[n].model.state())[name] for n in (0, 2))
    # `all` at a cut after the stem: its copies are the clients' own.
    wanted = ((first.astype(np.float64) + third) / 2).astype(np.float32)
    assert np.array_equal(together.clients[0].tensors()[name], wanted)
    assert np.array_equal(together.clients[1].tensors()[name], before[name])
    assert (report.client_training[1].samples, report.client_training[1].skipped) == (0, 4)

    together.run_round(2)  # it starts from the newest average, and trains no more than before
    assert not np.array_equal(together.clients[1].tensors()[name], before[name])


def test_a_round_without_a_step_is_no_round(tmp_path: Path) -> None:
    run = reference(tmp_path)
    for client_id in range(3):
        poison(run, client_id)
    with pytest.raises(NonFiniteError, match="round 1: no batch has a finite loss and gradient"):
        run.run_round(1)


def test_who_learnt_by_hand() -> None:
    step, none = TrainReport(8, (0.5,)), TrainReport(0, (), skipped=1)
    assert learnt({"client": {0: step, 1: none, 2: step, 3: step}, "server": {0: step, 2: none}}, 1) == {0, 3}


@pytest.mark.parametrize("side", ["client", "server"])
def test_parameters_that_are_not_finite_reach_no_snapshot_and_no_file(side: str, tmp_path: Path) -> None:
    run = reference(tmp_path)
    model: Any = run.clients[1] if side == "client" else run.servers[1]
    unit = next(iter(model.model.units))
    with torch.no_grad():
        next(model.model.units[unit].parameters()).fill_(float("inf"))
    who = "client-001" if side == "client" else "the server of client-001"
    for take in (model.snapshot, model.tensors):
        with pytest.raises(NonFiniteError, match=rf"^{who}: {unit}\.\S+ is NaN or infinite after training"):
            take()


def test_a_client_without_a_step_has_no_loss_and_spoils_no_mean() -> None:
    step, none = TrainReport(8, (0.5,)), TrainReport(0, (), skipped=3)
    report = RoundReport(1, 0.1, 1.0, 1.0, {0: step, 1: none}, {0: step, 1: none})
    assert gathered(report, [0, 1])["client_loss"] == [0.5]
    assert [(f.name, f.value) for f in client_figures(report, 1) if f.name.endswith("batches")] == [
        ("client_skipped_batches", 3),
        ("server_skipped_batches", 3),
    ]
