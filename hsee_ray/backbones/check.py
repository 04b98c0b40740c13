"""Checks of every base network before it trains, and its feature shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hsee_ray.backbones.backbone import Backbone
from hsee_ray.errors import ConfigError

BATCH = 2

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_backbone(backbone: Backbone, image_shape: tuple[int, int, int], n_classes: int) -> None:
    """Run a batch of two images of shape (H, W, C) through the units.

    Raises ConfigError when there are fewer than two units, when two share a tensor, when a unit has dropout, cannot
    take the output of the unit before it, or changes its input, or when the last one does not return logits of
    shape (2, n_classes).
    """
    if len(backbone.units) < 2:
        raise ConfigError(f"a network of {len(backbone.units)} unit(s) cannot be cut: give it at least two")
    for name, unit in backbone.units.items():
        _check_no_dropout(name, unit)
    _check_nothing_shared(backbone)
    with _evaluating(backbone), torch.no_grad():
        features = _images(image_shape)
        for name, unit in backbone.units.items():
            # Features arrive read-only from another process, where a write into them would crash. The version
            # counter catches a write of equal values; the copy, one that goes around the counter.
            before, version = features.clone(), features._version
            output = _output(name, unit, features)
            kept = torch.allclose(features, before, rtol=0, atol=0, equal_nan=True)
            if features._version != version or not kept:
                raise ConfigError(
                    f"the unit {name} changes its input in place: begin it with an operation that does not "
                    "(such as a ReLU with inplace=False)"
                )
            features = output
    if features.shape != (BATCH, n_classes):
        raise ConfigError(
            f"the last unit, {name}, returns shape {tuple(features.shape)} for {BATCH} images: it must "
            f"return logits of shape ({BATCH}, {n_classes})"
        )


def feature_shapes(backbone: Backbone, image_shape: tuple[int, int, int]) -> tuple[tuple[int, ...], ...]:
    """Shape of one sample after each unit, for images of shape (H, W, C); feature maps are (C, H, W), tokens (T, D).

    Raises ConfigError when a unit cannot take the output of the one before it.
    """
    shapes = []
    with _evaluating(backbone), torch.no_grad():
        features = _images(image_shape)
        for name, unit in backbone.units.items():
            features = _output(name, unit, features)
            shapes.append(tuple(features.shape[1:]))
    return tuple(shapes)


def _check_no_dropout(name: str, unit: nn.Module) -> None:
    for path, module in unit.named_modules():
        p = module.p if isinstance(module, _DROPOUT) else 0
        if isinstance(module, nn.MultiheadAttention):
            p = module.dropout
        if p > 0:
            where = f"{name}.{path}" if path else name
            raise ConfigError(
                f"the unit {name} has dropout ({where}, p={p}), so a step that is repeated after a "
                "failure would not give the same bits: set it to 0"
            )


def _check_nothing_shared(backbone: Backbone) -> None:
    owners: dict[int, str] = {}
    for name, unit in backbone.units.items():
        for tensor in (*unit.parameters(), *unit.buffers()):
            owner = owners.setdefault(id(tensor), name)
            if owner != name:
                raise ConfigError(
                    f"the units {owner} and {name} share a parameter or buffer, and a cut between them would part it: "
                    "give each unit tensors of its own"
                )


def _images(image_shape: tuple[int, int, int]) -> Tensor:
    height, width, channels = image_shape
    shape = (BATCH, channels, height, width)
    return torch.linspace(-1, 1, math.prod(shape)).reshape(shape)


def _output(name: str, unit: nn.Module, features: Tensor) -> Tensor:
    shape = tuple(features.shape[1:])
    try:
        output = unit(features)
    except (RuntimeError, ValueError, TypeError, IndexError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise ConfigError(
            f"the unit {name} cannot take features of shape {shape}: {reason}; use larger images "
            "(data.image_size) or another network (model.name, model.stem)"
        ) from e
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != BATCH:
        returned = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            f"the unit {name} returns {returned} for {BATCH} samples: a unit must return one tensor with one "
            "row for each sample"
        )
    return output


@contextmanager
def _evaluating(backbone: Backbone) -> Iterator[None]:
    """Evaluation mode, in which batch-norm statistics stay as they are; afterwards each module's own mode
    again."""
    modes = [(module, module.training) for unit in backbone.units.values() for module in unit.modules()]
    for unit in backbone.units.values():
        unit.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
