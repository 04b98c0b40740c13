"""Cross-layer aggregation over unequal cuts: which copies of a unit count, and their mean.

The decisions are pure; the mean is numpy in float64, so an aggregator needs no torch. Sums run in ascending client
number, client copies before server copies: the result does not depend on who finished first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hsee_ray.config.fleet import AHEAD, Fleet, ModelId
from hsee_ray.config.schema import Config, TrainingConfig
from hsee_ray.method.average_step import step_average
from hsee_ray.method.strategies import Strategy, strategy_of
from hsee_ray.models.state import Arrays, UnitState

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Copy:
    """One model's copy of a unit, with its weight in the mean."""

    model: ModelId
    unit: str
    weight: float
    """0: it takes the mean without a part in it."""


@dataclass(frozen=True)
class Aggregation:
    """One aggregation: the copies behind each average, and which model takes which average for which unit."""

    copies: dict[str, tuple[Copy, ...]]
    """By the average's key, such as `all/layer1.0`, `server/layer2.0`, `exit/layer1.1`."""
    takes: dict[ModelId, dict[str, str]]
    """Unit -> key. A unit with one counting copy is left as it is, so only those that do not count take its average."""

    @property
    def sources(self) -> tuple[ModelId, ...]:
        """Models whose states are needed."""
        return tuple(sorted({copy.model for copies in self.copies.values() for copy in copies}))


def plan_aggregation(config: Config, fleet: Fleet, trained: Iterable[int], local_samples: Sequence[int]) -> Aggregation:
    """The aggregation over the copies that trained since the last one.

    `trained` are client numbers; `local_samples` the training samples of every client. A copy weighs 1, or as many
    samples as it was trained on: a shared server's copy of a unit, those of all clients that passed it.
    """
    trained_set = set(trained)
    strategy = strategy_of(config)
    models = strategy.averaged_units(config.training, fleet)
    holders: dict[str, int] = {}
    for keys in models.values():
        for key in keys.values():
            holders[key] = holders.get(key, 0) + 1
    all_cuts = [spec.cut for spec in fleet.clients]
    copies: dict[str, list[Copy]] = {}
    for model in sorted(models):
        for unit, key in models[model].items():
            behind = _trained_on(strategy, fleet, model, unit, trained_set)
            if behind and holders[key] > 1:
                samples, cuts = ([of[client] for client in behind] for of in (local_samples, all_cuts))
                weight = strategy.weight(config.training, model.side, samples, cuts)
                copies.setdefault(key, []).append(Copy(model, unit, 0.0 if _only_takes(unit, key) else weight))
    takes: dict[ModelId, dict[str, str]] = {}
    counts = {key: sum(copy.weight > 0 for copy in found) for key, found in copies.items()}
    for key, found in copies.items():
        for copy in found:
            if counts[key] > (copy.weight > 0):
                takes.setdefault(copy.model, {})[copy.unit] = key
    return Aggregation({key: tuple(found) for key, found in copies.items() if counts[key]}, takes)


def _only_takes(unit: str, key: str) -> bool:
    """Whether a copy is of a unit that its client looks ahead through, and the average is the network's own."""
    return unit.startswith(f"{AHEAD}.") and not key.startswith(f"{AHEAD}/")


def _trained_on(strategy: Strategy, fleet: Fleet, model: ModelId, unit: str, trained: set[int]) -> list[int]:
    """Clients among `trained` whose data a model's copy of a unit has learnt from."""
    if model.side == "client":
        return [model.client_id] if model.client_id in trained else []
    position = fleet.unit_names.index(unit)
    served = (fleet.clients[client] for client in strategy.served(fleet)[model.client_id])
    return [spec.client_id for spec in served if spec.client_id in trained and spec.cut <= position]


@dataclass
class Ledger:
    """Which average every copy last took or was part of, so that one that sat out starts from the newest."""

    newest: dict[str, int] = field(default_factory=dict)
    """By key, the round after which the average was made."""
    seen: dict[tuple[ModelId, str], int] = field(default_factory=dict)
    """By copy (model, unit)."""

    def copy(self) -> Ledger:
        return Ledger(dict(self.newest), dict(self.seen))

    def record(self, aggregation: Aggregation, round_number: int) -> None:
        """Notes an aggregation: its averages are the newest, and its copies have seen them."""
        for key, copies in aggregation.copies.items():
            self.newest[key] = round_number
            for copy in copies:
                self.seen[(copy.model, copy.unit)] = round_number

    def forget(self, model: ModelId) -> None:
        """The model has lost the averages that it took."""
        self.seen = {copy: seen for copy, seen in self.seen.items() if copy[0] != model}

    def catch_up(self, config: Config, fleet: Fleet, starting: Iterable[int]) -> dict[ModelId, dict[str, str]]:
        """Averages (unit -> key) that copies about to train have missed; they count as seen from now on."""
        starting_set = set(starting)
        missed: dict[ModelId, dict[str, str]] = {}
        strategy = strategy_of(config)
        for model, keys in strategy.averaged_units(config.training, fleet).items():
            for unit, key in keys.items():
                if not _trained_on(strategy, fleet, model, unit, starting_set):
                    continue
                newest = self.newest.get(key, 0)
                if newest > self.seen.get((model, unit), 0):
                    missed.setdefault(model, {})[unit] = key
                    self.seen[(model, unit)] = newest
        return missed


def average_copies(
    copies: Mapping[str, Sequence[Copy]],
    states: Mapping[ModelId, Mapping[str, UnitState]],
    before: Mapping[str, UnitState],
    training: TrainingConfig,
) -> dict[str, UnitState]:
    """The averages of an aggregation by key, over the states of its models and the newest averages before it."""
    averages: dict[str, UnitState] = {}
    for key, of_unit in copies.items():
        counting = [copy for copy in of_unit if copy.weight]
        mean = average_units(
            [states[copy.model][copy.unit] for copy in counting],
            [copy.weight for copy in counting],
            statistics=training.norm_statistics == "shared",
            optimizer=training.optimizer_state == "average",
        )
        averages[key] = step_average(mean, before.get(key), len(counting), training.average_step)
    return averages


def average_units(
    states: Sequence[UnitState], weights: Sequence[float], statistics: bool, optimizer: bool
) -> UnitState:
    """Weighted mean of copies of one unit, sum(w x) / sum(w) in float64, in the order given.

    Norm statistics are averaged only if `statistics`, optimiser states only if `optimizer`; integer tensors, and
    step counts, take the maximum.
    """
    return UnitState(
        parameters=_mean_by_name([state.parameters for state in states], weights),
        buffers=_mean_by_name([state.buffers for state in states], weights),
        statistics=_mean_by_name([state.statistics for state in states], weights) if statistics else {},
        optimizer=_mean_optimizers(states, weights) if optimizer else {},
    )


def _mean_by_name(items: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    return {name: mean_arrays([item[name] for item in items], weights) for name in items[0]}


def _mean_optimizers(states: Sequence[UnitState], weights: Sequence[float]) -> dict[str, Arrays]:
    """By parameter, over the copies that have taken a step on it."""
    means: dict[str, Arrays] = {}
    for name in dict.fromkeys(name for state in states for name in state.optimizer):
        having = [index for index, state in enumerate(states) if name in state.optimizer]
        means[name] = _mean_optimizer([states[i].optimizer[name] for i in having], [weights[i] for i in having])
    return means


def _mean_optimizer(items: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    means = _mean_by_name(items, weights)
    if "step" in means:
        # AdamW counts its steps in a float: the mean of step counts would be no step count.
        means["step"] = maximum([item["step"] for item in items])
    return means


def mean_arrays(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Weighted mean in float64, rounded once to the arrays' type; the maximum for integers."""
    if not np.issubdtype(arrays[0].dtype, np.floating):
        return maximum(arrays)
    total = np.zeros(arrays[0].shape, np.float64)
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * array.astype(np.float64)
    return np.asarray(total / sum(weights), dtype=arrays[0].dtype)


def maximum(arrays: Sequence[Array]) -> Array:
    """Largest value at each position."""
    return np.asarray(np.max(np.stack(arrays), axis=0), dtype=arrays[0].dtype)
