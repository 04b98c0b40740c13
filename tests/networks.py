"""Small networks of units for tests: they start fast, as they need no torchvision."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


def conv_units(image_shape: tuple[int, int, int], n_classes: int, width: int = 4) -> list[tuple[str, nn.Module]]:
    """Five units with batch norm: `stem`, `body.0`, `body.1`, `body.2`, `head`."""
    channels = image_shape[2]
    units: list[tuple[str, nn.Module]] = [("stem", _conv(channels, width, stride=1))]
    units += [(f"body.{i}", _conv(width, width, stride=2 if i == 1 else 1)) for i in range(3)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes))
    return [*units, ("head", head)]


def failing_units(
    image_shape: tuple[int, int, int], n_classes: int, fails_at: str = "head"
) -> list[tuple[str, nn.Module]]:
    """The same units, one of which fails as soon as it is trained."""
    return [
        (name, _FailsInTraining(unit) if name == fails_at else unit)
        for name, unit in conv_units(image_shape, n_classes)
    ]


class _FailsInTraining(nn.Module):
    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            raise RuntimeError("this unit fails in training")
        return self.unit(h)


def _conv(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm=nn.BatchNorm2d(outputs), relu=nn.ReLU(True)
        )
    )
