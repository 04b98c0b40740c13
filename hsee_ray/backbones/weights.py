"""Weights in and out: torchvision's state dicts, and files of either naming.

Our name of a tensor is `<unit>.<name in the unit>`, such as `stem.conv1.weight`; torchvision's is
`conv1.weight`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hsee_ray.backbones.backbone import Backbone
from hsee_ray.errors import ConfigError


def published_state_dict(backbone: Backbone, unit_tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under torchvision's names.

    Raises ConfigError when torchvision has no such network, or for a tensor that is not one of its units'.
    """
    names = _published_names(backbone)
    unknown = [name for name in unit_tensors if name not in names]
    if unknown:
        raise ConfigError(f"the tensor {_first(unknown)} is not one of the base network's: leave it out")
    return {names[name]: tensor for name, tensor in unit_tensors.items()}


def load_published(backbone: Backbone, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a state dict with torchvision's names into the units.

    Raises ConfigError, before anything is copied, for a tensor that is missing, unknown or of another
    shape. The counters `num_batches_tracked` may be missing, as they are in files that are older than them.
    """
    _load(backbone, state_dict, _published_names(backbone), "the state dict", other_classes=False)


def load_weights(backbone: Backbone, path: str | Path) -> tuple[str, ...]:
    """Copy the tensors of a file, under our names or torchvision's, into the units.

    A `.safetensors` file, or a state dict in a `.pth` or `.pt` file. Where the last unit's tensors are for
    another number of classes and all else fits, they keep their initial values: a pretrained network is
    fine-tuned.
    Returns our names of the tensors that were left so. Raises ConfigError for a file that is missing, is
    not a state dict or does not fit the network.
    """
    tensors = _read(Path(path))
    names = {name: name for name in _tensors(backbone)}
    if backbone.published_prefix is not None:
        published = _published_names(backbone)
        if len(tensors.keys() & set(published.values())) > len(tensors.keys() & names.keys()):
            names = published
    return _load(backbone, tensors, names, f"model.weights {path}", other_classes=True)


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Parameters and buffers by our names; they share memory with the units."""
    return {
        f"{unit_name}.{name}": tensor
        for unit_name, unit in backbone.units.items()
        for name, tensor in unit.state_dict().items()
    }


def _published_names(backbone: Backbone) -> dict[str, str]:
    """torchvision's name of each tensor, by ours."""
    prefixes = backbone.published_prefix
    if prefixes is None:
        raise ConfigError("the network is not one of torchvision's: use the names of its own units")
    return {
        f"{unit_name}.{name}": prefixes[unit_name] + name
        for unit_name, unit in backbone.units.items()
        for name in unit.state_dict()
    }


def _load(
    backbone: Backbone,
    tensors: Mapping[str, Tensor],
    names: Mapping[str, str],
    source: str,
    other_classes: bool,
) -> tuple[str, ...]:
    """Copy `tensors[names[name]]` into each tensor, all or nothing; returns the names left out."""
    targets = _tensors(backbone)
    remedy = "check model.name, model.stem, model.width, model.norm and the image's channels"
    unknown = sorted(tensors.keys() - set(names.values()))
    if unknown:
        raise ConfigError(f"{source} has {_first(unknown)}, which the network does not have: {remedy}")
    absent = [name for name in names.values() if name not in tensors]
    missing = [name for name in absent if name.rpartition(".")[2] != "num_batches_tracked"]
    if missing:
        raise ConfigError(f"{source} does not have {_first(missing)}, which the network has: {remedy}")
    given = {name: tensors[names[name]] for name in targets if names[name] in tensors}
    differing = [name for name, tensor in given.items() if tensor.shape != targets[name].shape]
    left: list[str] = []
    if other_classes:
        head = f"{list(backbone.units)[-1]}."
        of_head = [name for name in differing if name.startswith(head)]
        left = [name for name in of_head if _other_classes(given[name], targets[name])]
    misfits = [name for name in differing if name not in left]
    if misfits:
        name = misfits[0]
        others = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise ConfigError(
            f"{source} has {names[name]} with shape {tuple(given[name].shape)} where the network has "
            f"{tuple(targets[name].shape)}{others}: {remedy}"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            if name not in left:
                targets[name].copy_(tensor)
    return tuple(left)


def _other_classes(given: Tensor, target: Tensor) -> bool:
    """Whether only the first dimension differs, which is the number of classes in a last layer."""
    return given.dim() == target.dim() > 0 and given.shape[1:] == target.shape[1:]


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"model.weights is {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return _without_wrapper(load_file(path))
        if path.suffix not in (".pth", ".pt"):
            raise ConfigError(f"model.weights is {path}: use a .safetensors, .pth or .pt file")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError) as e:
        # Bytes that are no weights fail in any of these ways. torch's message advises to run what they hold.
        raise ConfigError(
            f"model.weights is {path}: it is damaged or holds more than tensors; save a state_dict()"
        ) from e
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"model.weights is {path}: it holds {type(content).__name__}; save the network's state_dict()"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ConfigError(
                f"model.weights is {path}: it is not a state dict: {name!r} is {type(value).__name__}, not a "
                "tensor; save the network's state_dict()"
            )
    return _without_wrapper(dict(content))


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as they were before DataParallel or torch.compile wrapped the network."""
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
