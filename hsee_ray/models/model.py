"""One trainable model: a chain of units, on a client its exit head and what is beside them, and their optimiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hsee_ray.backbones.backbone import tensors_of
from hsee_ray.config.fleet import EXIT, EXITS
from hsee_ray.config.schema import TrainingConfig
from hsee_ray.errors import DataError
from hsee_ray.models.optimizer import build_optimizer, set_learning_rate
from hsee_ray.models.split import UnitChain
from hsee_ray.models.state import (
    Arrays,
    ModelState,
    UnitState,
    named_tensors,
    read_unit,
    reset_optimizer,
    write_unit,
)
from hsee_ray.models.strided import spare_strided_convolutions

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Model:
    """Units, exit head, stages and optimiser of one side of the cut, on one device."""

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        exit_head: nn.Module | None,
        training: TrainingConfig,
        device: torch.device,
        stages: Mapping[str, nn.Module] | None = None,
        look_ahead: UnitChain | None = None,
        inner_exits: Mapping[int, nn.Module] | None = None,
    ) -> None:
        """`inner_exits` are further exit heads by their cut; they and `look_ahead` are for training only."""
        self.training = training
        self.device = device
        self.memory_format = MEMORY_FORMATS[training.memory_format]
        self.network = self._placed(UnitChain(units))
        self.exit_head = None if exit_head is None else exit_head.to(device)
        self.inner_exits = {cut: head.to(device) for cut, head in (inner_exits or {}).items()}
        self.look_ahead = None if look_ahead is None else self._placed(look_ahead)
        self.beside = dict(stages or {})
        """Of a client's feature path, those with a state. They stay in the CPU's memory, where features are coded."""
        self.optimizer = build_optimizer(nn.ModuleList(self._trained()), training.optimizer)

    def remembers(self, name: str, module: nn.Module) -> None:
        """Adds a module's buffers to the model's state, as a unit of this name."""
        if tensors_of(module):
            self.beside[name] = module

    @property
    def units(self) -> dict[str, nn.Module]:
        """Units by name; behind them exit heads, `exit` and `exits.`, those it looks ahead through, what is beside."""
        names, heads = self.network.names, {} if self.exit_head is None else {EXIT: self.exit_head}
        heads |= {f"{EXITS}.{names[cut - 1]}": head for cut, head in self.inner_exits.items()}
        ahead = {} if self.look_ahead is None else self.look_ahead.units
        return {**self.network.units, **heads, **ahead, **self.beside}

    def train_mode(self, learning_rate: float) -> None:
        """Ready for the steps of a round: batch statistics in use, the round's learning rate set."""
        self._set_mode(training=True)
        set_learning_rate(self.optimizer, learning_rate)

    def eval_mode(self) -> None:
        self._set_mode(training=False)

    def state(self) -> ModelState:
        """Copies of all tensors by unit."""
        return {name: read_unit(unit, self.optimizer) for name, unit in self.units.items()}

    def load(self, averages: Mapping[str, UnitState]) -> None:
        """Takes averaged units by unit name; what an average does not hold stays as it is."""
        for name, average in averages.items():
            if self.training.optimizer_state == "reset":
                reset_optimizer(self.units[name], self.optimizer)
            write_unit(self.units[name], self.optimizer, average)

    def restore(self, units: ModelState) -> None:
        """Makes the state that `state` gave the model's own again, optimiser included."""
        for name, unit in self.units.items():
            reset_optimizer(unit, self.optimizer)
            write_unit(unit, self.optimizer, units[name])

    def take_tensors(self, tensors: Arrays) -> None:
        """Takes parameters and buffers named `<unit>.<name in the unit>`. Raises DataError when they do not fit."""
        wanted = {name: array.shape for name, array in named_tensors(self.state()).items()}
        found = {name: array.shape for name, array in tensors.items()}
        if wanted != found:
            odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise DataError(f"{odd[0]} (and {len(odd) - 1} more) does not fit the network of the configuration")
        for unit_name, unit in self.units.items():
            own = f"{unit_name}."
            of_unit = {name.removeprefix(own): array for name, array in tensors.items() if name.startswith(own)}
            write_unit(unit, None, UnitState(of_unit, {}, {}, {}))

    def _set_mode(self, training: bool) -> None:
        for module in self._trained():
            module.train(training)

    def _trained(self) -> list[nn.Module]:
        modules = (self.network, self.exit_head, *self.inner_exits.values(), self.look_ahead)
        return [module for module in modules if module is not None]

    def _placed(self, chain: UnitChain) -> UnitChain:
        """A chain on the device, in the memory format of training."""
        chain = chain.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.device.type == "cpu" and self.training.memory_format == "channels_last":
            spare_strided_convolutions(chain)
        return chain
