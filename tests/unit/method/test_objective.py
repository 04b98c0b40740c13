"""Objectives of one's own: what they add to a step, and what they remember."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hsee_ray.config.files import load_config
from hsee_ray.errors import ConfigError
from hsee_ray.method.client import Client
from hsee_ray.method.objective import Objective
from hsee_ray.method.setup import Setup, build_client, mapped_client_data, prepare_run
from hsee_ray.models.snapshot import from_bytes, to_bytes
from hsee_ray.models.state import named_tensors
from hsee_ray.reference import Reference

CPU = torch.device("cpu")


def prepared(cache: Path, objective: str, *overrides: str) -> Setup:
    values = {
        "model": {"name": "tests.networks:conv_units"},
        "data": {
            "name": "synthetic",
            "image_size": 8,
            "classes": 3,
            "train_samples": 90,
            "test_samples": 8,
            "cache": str(cache),
        },
        "tiers": [{"name": "a", "clients": 2, "cut": "body.0"}],
        "training": {"rounds": 2, "batch_size": 8},
    }
    return prepare_run(load_config(values, [f"training.objective={objective}", *overrides]))


def proximal(mu: float) -> str:
    return f"{{name: proximal, options: {{mu: {mu}}}}}"


def client_of(setup: Setup) -> Client:
    return build_client(setup, 0, mapped_client_data(setup, 0), CPU)


def distance(setup: Setup) -> float:
    """How far the parameters of a client are from where they began, after one round."""
    client = client_of(setup)
    before = named_tensors(client.model.state())
    client.train(1, 0, 99)
    after = named_tensors(client.model.state())
    return float(sum(np.square(after[name] - before[name]).sum() for name in before if name.endswith("weight")))


def test_label_smoothing_by_hand(tmp_path: Path) -> None:
    setup = prepared(tmp_path, "{name: cross_entropy, options: {label_smoothing: 0.3}}")
    objective = client_of(setup).objective
    logits_BK = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    # Targets 0.8, 0.1 and 0.1: 0.8 ln 2 + 0.2 ln 4.
    assert objective(logits_BK, torch.tensor([0])).item() == pytest.approx(1.2 * np.log(2))
    with pytest.raises(ConfigError, match=r"^training.objective.options.label_smoothing is 1: should be less than 1$"):
        prepared(tmp_path, "{name: cross_entropy, options: {label_smoothing: 1}}")


def test_a_proximal_term_keeps_parameters_near(tmp_path: Path) -> None:
    free, held = (distance(prepared(tmp_path, objective)) for objective in ("cross_entropy", proximal(5.0)))
    assert held < 0.7 * free
    assert distance(prepared(tmp_path, proximal(1e-9))) == pytest.approx(free, rel=1e-4)


@pytest.mark.parametrize("through_bytes", [False, True])
def test_a_round_in_two_messages_with_a_snapshot_between_them_is_the_same(through_bytes: bool, tmp_path: Path) -> None:
    setup = prepared(tmp_path, proximal(1.0))
    once, first, second = client_of(setup), client_of(setup), client_of(setup)
    once.train(1, 0, 4)
    first.train(1, 0, 2)
    middle = first.snapshot()
    second.restore(from_bytes(to_bytes(middle)) if through_bytes else middle)
    second.train(1, 2, 4)
    assert "objective" in middle.units
    for name, wanted in named_tensors(once.model.state()).items():
        np.testing.assert_array_equal(named_tensors(second.model.state())[name], wanted, err_msg=name)


def test_what_it_remembers_is_in_no_model_file_and_in_no_average(tmp_path: Path) -> None:
    setup = prepared(tmp_path, proximal(0.1))
    reference = Reference(setup)
    list(reference.run())
    assert not any(name.startswith("objective") for of in reference.files().values() for name in of)
    client = client_of(setup)
    client.take_tensors(reference.files()["client-000"])
    averaged = setup.strategy.averaged_units(setup.config.training, setup.fleet)
    assert not any("objective" in keys for keys in averaged.values())


class NoLoss(Objective):
    def forward(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return logits_BK.detach().sum()


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ("hinge", "there is no objective 'hinge'; use cross_entropy, proximal, or package.module:name for your own"),
        (proximal(0), r"training.objective.options.mu is 0: should be greater than 0"),
        ("tests.networks:conv_units", "that is no subclass of hsee_ray.method.objective:Objective"),
        (f"{__name__}:NoLoss", "gives .*, it must give one finite loss with a gradient"),
    ],
)
def test_a_wrong_objective_is_one_line(objective: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        prepared(tmp_path, objective)
