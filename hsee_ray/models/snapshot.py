"""A model's whole state as one value: taken, put back, and written as a safetensors file. Needs numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hsee_ray.errors import DataError
from hsee_ray.models.state import Arrays, ModelState, UnitState

_KINDS = ("parameters", "buffers", "statistics")
_BY_PARAMETER = ("optimizer", "moments")


@dataclass(frozen=True)
class Snapshot:
    """Everything of a model that decides its future: parameters, buffers, optimiser, kept statistics."""

    units: ModelState
    sets: dict[int, Arrays] = field(default_factory=dict)
    """Norm statistics that a shared server keeps for each client, by `<unit>.<name in the unit>`."""


def with_averages(snapshot: Snapshot, averages: Mapping[str, UnitState], reset_optimizer: bool) -> Snapshot:
    """The snapshot as it would be if its model had taken these averages, by unit."""
    units = dict(snapshot.units)
    for name, average in averages.items():
        old = units[name]
        units[name] = UnitState(
            parameters={**old.parameters, **average.parameters},
            buffers={**old.buffers, **average.buffers},
            statistics={**old.statistics, **average.statistics},
            optimizer={**({} if reset_optimizer else old.optimizer), **average.optimizer},
        )
    return Snapshot(units, snapshot.sets)


def to_bytes(snapshot: Snapshot) -> bytes:
    """safetensors file: tensors named `<kind>/<number of the unit>/<name>`, the units' names in its metadata."""
    tensors: Arrays = {}
    for number, state in enumerate(snapshot.units.values()):
        for kind in _KINDS:
            tensors.update({f"{kind}/{number}/{name}": array for name, array in getattr(state, kind).items()})
        for kind in _BY_PARAMETER:
            for parameter, arrays in getattr(state, kind).items():
                tensors.update({f"{kind}/{number}/{parameter}/{key}": array for key, array in arrays.items()})
    for client, arrays in snapshot.sets.items():
        tensors.update({f"sets/{client}/{name}": array for name, array in arrays.items()})
    contiguous = {name: np.require(array, requirements="C") for name, array in tensors.items()}
    content: bytes = save(contiguous, {"units": json.dumps(list(snapshot.units))})
    return content


def from_bytes(content: bytes) -> Snapshot:
    """The snapshot in a file that `to_bytes` made. Raises DataError when it is damaged."""
    try:
        names: list[str] = json.loads(_metadata(content)["units"])
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"a snapshot cannot be read ({error}); use an earlier checkpoint") from None
    units = {name: UnitState({}, {}, {}, {}) for name in names}
    sets: dict[int, Arrays] = {}
    for name, array in tensors.items():
        kind, number, rest = name.split("/", 2)
        if kind == "sets":
            sets.setdefault(int(number), {})[rest] = array
        elif kind in _BY_PARAMETER:
            parameter, _, key = rest.rpartition("/")
            getattr(units[names[int(number)]], kind).setdefault(parameter, {})[key] = array
        else:
            getattr(units[names[int(number)]], kind)[rest] = array
    return Snapshot(units, sets)


def _metadata(content: bytes) -> dict[str, Any]:
    """The metadata of a safetensors file: its header is JSON behind eight bytes of length."""
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata
