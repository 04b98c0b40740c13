"""Weight files as other tools leave them, and what they leave at random."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hsee_ray.backbones import build_backbone, load_weights
from hsee_ray.config.files import load_config
from hsee_ray.config.schema import ModelConfig
from hsee_ray.method.look import look
from hsee_ray.method.setup import prepare_run

MODEL = ModelConfig(name="resnet18", stem="cifar", width=8)


def tensors(n_classes: int = 4, seed: int = 1) -> dict[str, Tensor]:
    units = build_backbone(MODEL, (16, 16, 3), n_classes, seed).units
    return {f"{unit}.{name}": t.clone() for unit, module in units.items() for name, t in module.state_dict().items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_wrapped_networks(prefix: str, suffix: str, tmp_path: Path) -> None:
    """As DataParallel and torch.compile name them."""
    given = tensors()
    path = tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({prefix + name: tensor for name, tensor in given.items()}, path)
    backbone = build_backbone(MODEL, (16, 16, 3), 4, 0)
    assert load_weights(backbone, path) == ()
    assert torch.equal(backbone.units["stem"].state_dict()["conv1.weight"], given["stem.conv1.weight"])


def test_what_stays_at_random_is_said(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(tensors(n_classes=7), path)
    config = {
        "model": {"name": "resnet18", "stem": "cifar", "width": 8, "weights": str(path)},
        "data": {"name": "synthetic", "cache": str(tmp_path / "cache")},
        "tiers": [{"name": "a", "clients": 2, "cut": "layer1"}],
    }
    setup = prepare_run(load_config(config))
    assert setup.untouched_weights == ("head.fc.weight", "head.fc.bias")
    assert look(setup)[-1] == (
        "model.weights is for another number of classes: head.fc.weight, head.fc.bias begin at random"
    )
