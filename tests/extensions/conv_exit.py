"""An exit head with a hidden convolution: 3x3 with stride 2, twice the channels, norm, ReLU, pooling, linear.

exits: {head: {name: "tests.extensions.conv_exit:ConvExit", options: {factor: 2}}}
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import nn

from hsee_ray.models.exits import ExitPart


class ConvExit(ExitPart):
    class Options(ExitPart.Options):
        factor: int = Field(2, ge=1)
        """Channels of the convolution, as a multiple of the features'."""

    def build(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> nn.Module:
        """For features (B, C, H, W)."""
        channels = feature_shape[0]
        wider = self.options.factor * channels
        return nn.Sequential(
            nn.Conv2d(channels, wider, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(wider, n_classes),
        )
