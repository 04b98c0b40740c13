"""A user's own base network: `model.name: package.module:function`.

The function is called with `image_shape=(H, W, C)`, `n_classes` and the keys of `model.options`. It returns
the units, as a mapping from names to modules or as a list of (name, module), and draws its initial
parameters from torch's global generator, which is seeded for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from torch import nn

from hsee_ray.backbones.backbone import Backbone
from hsee_ray.config.plugins import imported
from hsee_ray.config.schema import ModelConfig
from hsee_ray.errors import ConfigError

RESERVED = {
    "exit": "the exit heads",
    "exits": "exit heads that are for training only",
    "codec": "what the int8 codec knows of a client's features",
    "path": "what the stages before the codec know of them",
    "objective": "what an objective remembers",
    "ahead": "the units that a client looks ahead through",
    "feedback": "what a server has answered",
}
"""Names of what a client has beside the units of the network."""
_UNIT_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def build_custom(config: ModelConfig, image_shape: tuple[int, int, int], n_classes: int) -> Backbone:
    """The units that the user's function returns; `width`, `stem` and `norm` do not apply to it.

    Raises ConfigError when the function cannot be imported or called with the options, or returns no named
    units.
    """
    function = imported("model.name", config.name)
    given = {"image_shape": image_shape, "n_classes": n_classes}
    taken = sorted(given.keys() & config.options.keys())
    if taken:
        raise ConfigError(f"model.options.{taken[0]} is given by hsee-ray itself: remove it there")
    try:
        inspect.signature(function).bind(**given, **config.options)
    except TypeError as e:
        raise ConfigError(
            f"model.name is {config.name!r}: the function cannot be called with image_shape, n_classes and "
            f"model.options: {e}"
        ) from e
    units = _named_units(function(**given, **config.options), config.name)
    _check_unit_names([name for name, _ in units])
    return Backbone(dict(units), published_prefix=None)


def _named_units(returned: object, name: str) -> list[tuple[str, nn.Module]]:
    entries = list(returned.items()) if isinstance(returned, Mapping) else returned
    if not isinstance(entries, list | tuple):
        raise ConfigError(
            f"model.name is {name!r}: the function returned {type(returned).__name__}; return a mapping from "
            "names to modules, or a list of (name, module)"
        )
    for entry in entries:
        if not (
            isinstance(entry, tuple)
            and len(entry) == 2
            and isinstance(entry[0], str)
            and isinstance(entry[1], nn.Module)
        ):
            raise ConfigError(
                f"model.name is {name!r}: the function returned {type(entry).__name__} among its units; "
                "every unit is a tuple of a name and a torch module"
            )
    return list(entries)


def _check_unit_names(names: list[str]) -> None:
    """Raises ConfigError unless the names tell units and their tensors (`<unit>.<name>`) apart."""
    for i, name in enumerate(names):
        if not _UNIT_NAME.fullmatch(name):
            raise ConfigError(
                f"the unit name {name!r} cannot be used: write letters, digits, _ and -, with dots in between"
            )
        if name.isdigit():
            raise ConfigError(
                f"the unit name {name!r} is a number, which a cut takes for an index: call it block{name}"
            )
        if (first := name.partition(".")[0]) in RESERVED:
            raise ConfigError(f"the unit name {name!r} is reserved for {RESERVED[first]}: choose another name")
        if name in names[:i]:
            raise ConfigError(f"the unit name {name!r} is given more than once: choose other names")
        for other in names:
            if name.startswith(f"{other}."):
                raise ConfigError(
                    f"the unit name {name!r} begins with that of the unit {other!r}, so their tensors could "
                    f"not be told apart: rename {other!r}"
                )
