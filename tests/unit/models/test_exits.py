"""Exit heads that a configuration names: the project's own, the user's, and those that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hsee_ray.config.files import load_config
from hsee_ray.errors import ConfigError
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.models.exits import ExitPart, build_exit
from hsee_ray.reference import Reference


def prepared(cache: Path, head: Any, **exits: Any) -> Setup:
    return prepare_run(
        load_config(
            {
                "model": {"name": "tests.networks:conv_units"},
                "data": {
                    "name": "synthetic",
                    "image_size": 8,
                    "classes": 3,
                    "train_samples": 60,
                    "test_samples": 8,
                    "cache": str(cache),
                },
                "tiers": [{"name": "a", "clients": 2, "cut": "body.0"}, {"name": "b", "clients": 1, "cut": "head"}],
                "training": {"rounds": 1, "batch_size": 8},
                "exits": {"head": head, **exits},
            }
        )
    )


def test_a_head_of_ones_own_is_trained_and_averaged(tmp_path: Path) -> None:
    setup = prepared(tmp_path, {"name": "tests.extensions.conv_exit:ConvExit", "options": {"factor": 3}})
    reference = Reference(setup)
    list(reference.run())
    first, second = (reference.clients[n].tensors() for n in (0, 1))
    assert first["exit.0.weight"].shape == (12, 4, 3, 3)
    assert (first["exit.0.weight"] == second["exit.0.weight"]).all()
    fresh = build_exit(setup.config, "body.0", setup.feature_shapes[1], 3)
    assert (fresh[0].weight.detach().numpy() != first["exit.0.weight"]).any()  # type: ignore[index]


def test_the_hidden_layer_stays_a_key_of_its_own(tmp_path: Path) -> None:
    setup = prepared(tmp_path, "pool", hidden=5)
    assert build_exit(setup.config, "body.0", (4, 8, 8), 3)(torch.zeros(2, 4, 8, 8)).shape == (2, 3)
    assert setup.config.model_dump(mode="json")["exits"]["head"] == "pool"


def test_a_convolution_before_the_pool(tmp_path: Path) -> None:
    setup = prepared(tmp_path, {"name": "conv", "options": {"norm": "group"}})
    head = build_exit(setup.config, "body.0", (4, 7, 5), 3).eval()
    conv, norm, fc = head.conv, head.norm, head.pool.fc
    assert (conv.weight.shape, conv.bias, type(norm)) == ((8, 4, 3, 3), None, nn.GroupNorm)
    h_BCHW = torch.randn(2, 4, 7, 5, generator=torch.Generator().manual_seed(0))
    by_hand = functional.conv2d(h_BCHW, conv.weight, stride=2, padding=1)
    assert by_hand.shape == (2, 8, 4, 3)
    by_hand = torch.relu(functional.group_norm(by_hand, 4, norm.weight, norm.bias)).mean((2, 3)) @ fc.weight.T + fc.bias
    torch.testing.assert_close(head(h_BCHW), by_hand)


@pytest.mark.parametrize(
    ("head", "hidden", "width"),
    [("mlp", None, 8), ("mlp", 5, 5), ({"name": "mlp", "options": {"factor": 3}}, None, 12), ("pool", 5, 5)],
)
def test_a_hidden_layer_of_a_width(head: Any, hidden: int | None, width: int, tmp_path: Path) -> None:
    setup = prepared(tmp_path, head, hidden=hidden)
    module = build_exit(setup.config, "body.0", (4, 8, 8), 3)
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {
        "hidden.weight": (width, 4),
        "hidden.bias": (width,),
        "fc.weight": (3, width),
        "fc.bias": (3,),
    }


def test_a_hidden_layer_behind_the_convolution(tmp_path: Path) -> None:
    setup = prepared(tmp_path, {"name": "conv", "options": {"factor": 3}}, hidden=5)
    head = build_exit(setup.config, "body.0", (4, 8, 8), 3)
    assert (head.pool.hidden.weight.shape, head.pool.fc.weight.shape) == ((5, 12), (3, 5))


def test_features_that_are_no_maps_have_no_convolution(tmp_path: Path) -> None:
    setup = prepared(tmp_path, "conv")
    with pytest.raises(
        ConfigError, match=r"^exits.head is 'conv': features of shape \(16, 8\) are no maps.*; use pool"
    ):
        build_exit(setup.config, "body.0", (16, 8), 3)
    assert build_exit(prepared(tmp_path, "mlp").config, "body.0", (16, 8), 3)(torch.zeros(2, 16, 8)).shape == (2, 3)


class Flat(ExitPart):
    def build(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> nn.Module:
        return nn.Identity()


class InPlace(ExitPart):
    def build(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(n_classes))


class Wide(ExitPart):
    def build(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> nn.Module:
        return nn.Linear(1000, n_classes)


class Abstract(ExitPart):
    pass


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("round", r"exits.head is .*round.*: there is no exit 'round'; use pool, conv, mlp, or package.module:name"),
        ("tests.no_such:Head", r"exits.head is 'tests.no_such:Head': the module tests.no_such cannot be imported"),
        ("tests.networks:conv_units", r"exits.head is .*: that is no subclass of hsee_ray.models.exits:ExitPart"),
        (f"{__name__}:Abstract", r"exits.head is .*: the class has no build"),
        (
            {"name": "tests.extensions.conv_exit:ConvExit", "options": {"factor": 0}},
            r"exits.head.options.factor is 0: should be",
        ),
        (
            {"name": "tests.extensions.conv_exit:ConvExit", "options": {"widht": 2}},
            r"exits.head.options.widht: unknown key",
        ),
        (f"{__name__}:Flat", r"on features \(4, 8, 8\) at body.0 it gives \(2, 4, 8, 8\) for 2 samples"),
        (f"{__name__}:InPlace", r"it changes its input in place"),
        (f"{__name__}:Wide", r"at body.0 it fails: mat1 and mat2"),
    ],
)
def test_a_wrong_head_is_one_line(head: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        prepared(tmp_path, head)
    assert "\n" not in str(refused.value)
