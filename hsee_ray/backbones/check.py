"""Checks of every base network before it trains, and its feature shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from hsee_ray.backbones.backbone import Backbone, tensors_of
from hsee_ray.errors import ConfigError

BATCH = 2
STORED = (
    *(torch.float32, torch.float64, torch.float16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
"""Types that a buffer may have: those that numpy, safetensors and ONNX have alike."""

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
    _check_nothing_shared(backbone)  # after a pass: lazy modules have no tensors before it
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
        for tensor in tensors_of(unit).values():
            place = tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
            if place and owners.setdefault(place, name) != name:
                owner = owners[place]
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
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != len(features):
        returned = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            f"the unit {name} returns {returned} for {len(features)} sample(s): a unit must return one tensor with one "
            "row of values for each sample"
        )
    if output.dtype != torch.float32 or output.layout != torch.strided:
        raise ConfigError(
            f"the unit {name} returns {_type(output)}: features and logits are float32, so end it with .float()"
        )
    return output


def _type(tensor: Tensor) -> str:
    kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout)
    return kind.removeprefix("torch.")


def check_own(backbone: Backbone, image_shape: tuple[int, int, int]) -> None:
    """Look at what a user's own network, which `check_backbone` has passed, does beyond shapes.

    Raises ConfigError for tensors that no file can hold or that cannot be written to, for samples whose values depend
    on others of their batch, for random values in training, and for tensors that training replaces by others of
    another shape or type.
    """
    for name, unit in backbone.units.items():
        _check_tensors(name, unit)
    with _evaluating(backbone), torch.no_grad():
        features = _images(image_shape)
        for name, unit in backbone.units.items():
            output, alone = _output(name, unit, features), _output(name, unit, features[:1])
            if alone.shape[1:] != output.shape[1:] or not _close(alone, output[:1]):
                raise ConfigError(
                    f"the unit {name} gives a sample other values when it is alone: in evaluation no sample may depend "
                    "on the others of its batch"
                )
            features = output
    _check_training(backbone, image_shape)


def _check_tensors(name: str, unit: nn.Module) -> None:
    for key in unit.state_dict():
        if key.rpartition(".")[2] == "_extra_state":
            raise ConfigError(f"the unit {name} has {key}: only parameters and buffers are kept; make it a buffer")
    parameters = {key for key, _ in unit.named_parameters()}
    for key, tensor in tensors_of(unit).items():
        allowed = (torch.float32,) if key in parameters else STORED
        if tensor.dtype not in allowed or tensor.layout != torch.strided or tensor.is_meta:
            kinds = "float32" if key in parameters else "float32, float64, float16, an integer type or bool"
            kind = "meta" if tensor.is_meta else _type(tensor)
            raise ConfigError(f"the unit {name} has {key} of type {kind}: use {kinds}")
        try:
            with torch.no_grad():
                tensor.copy_(tensor.clone())
        except RuntimeError:
            raise ConfigError(
                f"the unit {name} has {key}, whose values share memory: make it a tensor of its own with .clone()"
            ) from None


def _check_training(backbone: Backbone, image_shape: tuple[int, int, int]) -> None:
    """Two passes in training mode with other random numbers; afterwards all tensors are as before."""
    before = {name: _copies(unit) for name, unit in backbone.units.items()}
    with torch.random.fork_rng(devices=[]), _in_mode(backbone, training=True), torch.no_grad():
        features = _images(image_shape)
        for name, unit in backbone.units.items():
            outputs = []
            for seed in (1, 2):
                torch.manual_seed(seed)
                given = features.clone()
                outputs.append(_output(name, unit, given))
                if not torch.equal(given, features):
                    raise ConfigError(f"the unit {name} changes its input in place in training: copy it first")
                _restore(name, unit, before[name])
            if not _close(*outputs):
                raise ConfigError(
                    f"the unit {name} gives random values in training, so a step that is repeated after a failure "
                    "would not give the same bits: take dropout and noise out"
                )
            features = outputs[0]


def _copies(unit: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in tensors_of(unit).items()}


def _restore(name: str, unit: nn.Module, before: dict[str, Tensor]) -> None:
    after = tensors_of(unit)
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
            raise ConfigError(
                f"the unit {name} gives {key} another shape or type in training: register it at its final size"
            )
        new.copy_(old)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether they differ by rounding at most, which depends on the number of samples."""
    scale = float(other.abs().max()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=1e-3 * max(scale, 1e-6), equal_nan=True)


def _evaluating(backbone: Backbone) -> AbstractContextManager[None]:
    """Evaluation mode, in which batch-norm statistics stay as they are."""
    return _in_mode(backbone, training=False)


@contextmanager
def _in_mode(backbone: Backbone, training: bool) -> Iterator[None]:
    """All units in one mode; afterwards each module in its own again."""
    modes = [(module, module.training) for unit in backbone.units.values() for module in unit.modules()]
    for unit in backbone.units.values():
        unit.train(training)
    try:
        yield
    finally:
        for module, own in modes:
            module.training = own
