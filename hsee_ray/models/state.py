"""A model's state as numpy arrays, unit by unit, in and out. Needs torch; `UnitState` itself does not.

Arrays are copies in row-major order, whatever the memory format of the tensors: a state outlives the next step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hsee_ray.config.fleet import TRAINING_ONLY
from hsee_ray.errors import NonFiniteError

if TYPE_CHECKING:
    import torch
    from torch import nn

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class UnitState:
    """One unit's tensors by their name in the unit."""

    parameters: Arrays
    buffers: Arrays
    """Buffers other than norm statistics."""
    statistics: Arrays
    """Running means, variances and batch counts of norm layers."""
    optimizer: dict[str, Arrays]
    """By parameter: momentum buffers and the like; empty before the first step."""
    moments: dict[str, Arrays] = field(default_factory=dict)
    """Of an average, by parameter: what the steps that made it remember (`training.average_step`)."""


ModelState = dict[str, UnitState]


def finite(state: ModelState, who: str) -> ModelState:
    """The state as it is. Raises NonFiniteError where parameters or norm statistics are NaN or infinite."""
    for unit, tensors in state.items():
        for name, array in {**tensors.parameters, **tensors.statistics}.items():
            if not np.isfinite(array.sum(dtype=np.float64)):
                raise NonFiniteError(
                    f"{who}: {unit}.{name} is NaN or infinite after training; lower training.optimizer.lr, and go on "
                    "from the newest checkpoint with --resume"
                )
    return state


def statistics_names(unit: nn.Module) -> frozenset[str]:
    """Names of the unit's buffers that are batch-norm statistics."""
    from torch.nn.modules.batchnorm import _NormBase

    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in unit.named_modules()
        if isinstance(module, _NormBase)
        for name, _ in module.named_buffers(recurse=False)
    )


def read_unit(unit: nn.Module, optimizer: torch.optim.Optimizer | None) -> UnitState:
    """State of one unit; without an optimiser its state is empty."""
    norm = statistics_names(unit)
    buffers = {name: to_array(buffer) for name, buffer in unit.named_buffers()}
    kept = {} if optimizer is None else {name: optimizer.state.get(p, {}) for name, p in unit.named_parameters()}
    return UnitState(
        parameters={name: to_array(parameter) for name, parameter in unit.named_parameters()},
        buffers={name: array for name, array in buffers.items() if name not in norm},
        statistics={name: array for name, array in buffers.items() if name in norm},
        optimizer={
            name: {key: to_array(value) for key, value in state.items() if value is not None}
            for name, state in kept.items()
            if state
        },
    )


def write_unit(unit: nn.Module, optimizer: torch.optim.Optimizer | None, state: UnitState) -> None:
    """Copies what the state holds into the unit; tensors that it does not name stay as they are."""
    import torch

    from hsee_ray.backbones.backbone import tensors_of

    parameters, tensors = dict(unit.named_parameters()), tensors_of(unit)
    with torch.no_grad():
        for arrays in (state.parameters, state.buffers, state.statistics):
            for name, array in arrays.items():
                tensors[name].copy_(torch.from_numpy(array))
        if optimizer is None:
            return
        for name, arrays in state.optimizer.items():
            parameter = parameters[name]
            optimizer.state[parameter] = {
                # `step` is a scalar on the CPU; everything else lies in memory as its parameter does.
                key: torch.from_numpy(array).clone()
                if array.ndim == 0
                else torch.empty_like(parameter).copy_(torch.from_numpy(array))
                for key, array in arrays.items()
            }


def reset_optimizer(unit: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Forgets momentum and the like of the unit's parameters."""
    for parameter in unit.parameters():
        optimizer.state.pop(parameter, None)


def named_tensors(state: Mapping[str, UnitState]) -> Arrays:
    """Parameters and buffers as `<unit>.<name in the unit>`: a model file, without what is for training only."""
    return {
        f"{unit}.{name}": array
        for unit, unit_state in state.items()
        if unit.partition(".")[0] not in TRAINING_ONLY
        for arrays in (unit_state.parameters, unit_state.buffers, unit_state.statistics)
        for name, array in arrays.items()
    }


def to_array(tensor: torch.Tensor) -> Array:
    """Row-major copy of a tensor on the CPU."""
    return np.array(tensor.detach().cpu().numpy(), order="C", copy=True)
