"""Multiply-adds against counts by hand."""

from __future__ import annotations

import torch
from torch import nn

from hsee_ray.backbones import build_backbone
from hsee_ray.config import ModelConfig
from hsee_ray.cost import multiply_adds, unit_multiply_adds


def test_single_layers_by_hand() -> None:
    # 16 outputs of 8 x 8 positions, each from 3 x 3 x 4 products.
    assert multiply_adds(nn.Conv2d(4, 16, 3, padding=1), (4, 8, 8)) == 16 * 8 * 8 * 3 * 3 * 4
    assert multiply_adds(nn.Conv2d(4, 16, 3, stride=2, padding=1, groups=4), (4, 8, 8)) == 16 * 4 * 4 * 3 * 3
    assert multiply_adds(nn.Linear(10, 7), (10,)) == 70
    assert multiply_adds(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)), (4, 8, 8)) == 0


def test_counting_changes_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    multiply_adds(module, (1, 4, 4))
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_units_of_resnet18_as_published() -> None:
    # 1.814 billion for a 224 x 224 image (torchvision's table).
    published = build_backbone(ModelConfig(stem="imagenet"), (224, 224, 3), 1000, 0)
    assert round(sum(unit_multiply_adds(published, (224, 224, 3))) / 1e6) == 1814
    small = build_backbone(ModelConfig(), (32, 32, 3), 10, 0)
    by_unit = unit_multiply_adds(small, (32, 32, 3))
    by_hand = [64 * 27 * 1024, *[2 * 64 * 64 * 9 * 1024] * 2]
    # The first block of a stage halves the maps and doubles the channels, with a 1 x 1 convolution beside it.
    for width, positions in ((128, 256), (256, 64), (512, 16)):
        by_hand.append((width // 2 * width * 10 + width * width * 9) * positions)
        by_hand.append(2 * width * width * 9 * positions)
    assert by_unit == (*by_hand, 512 * 10)
