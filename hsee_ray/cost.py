"""What a network costs, counted by running it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hsee_ray.backbones import Backbone, feature_shapes


def multiply_adds(module: nn.Module, sample_shape: Sequence[int]) -> int:
    """Multiply-adds of one sample's forward pass through a module in evaluation mode.

    Convolutions and matrix products count, as torch's own counter sees them run; norms, activations and pools do not.
    """
    first = next(module.parameters(), None)
    sample = torch.zeros((1, *sample_shape), device=None if first is None else first.device)
    was_training = module.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(sample)
    module.train(was_training)
    # The counter counts a multiplication and an addition as two operations.
    return int(counter.get_total_flops()) // 2


def unit_multiply_adds(backbone: Backbone, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Multiply-adds of one image of shape (H, W, C) in each unit."""
    height, width, channels = image_shape
    shapes = ((channels, height, width), *feature_shapes(backbone, image_shape))
    return tuple(multiply_adds(unit, shape) for unit, shape in zip(backbone.units.values(), shapes, strict=False))
