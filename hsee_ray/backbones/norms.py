"""Normalisation layers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

MOST_GROUPS = 8


def norm_layer(kind: Literal["batch", "group"]) -> Callable[[int], nn.Module]:
    """Function from a number of channels to its normalisation layer."""
    return nn.BatchNorm2d if kind == "batch" else group_norm


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, at most 8 and with at least two channels each.

    A group of one channel over a 1x1 map would be a single value, which normalises to zero. A single
    channel is one group all the same.
    """
    fitting = [n for n in range(1, MOST_GROUPS + 1) if channels % n == 0 and channels // n >= 2]
    return nn.GroupNorm(max(fitting, default=1), channels)
