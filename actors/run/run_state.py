"""How the state of every model can be made again, by reference: the driver holds no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray import ObjectRef

from actors.workers.contract import Takes
from hsee_ray.method.aggregation import Ledger, ModelId


@dataclass(frozen=True)
class Average:
    """One unit's average."""

    ref: ObjectRef[Any]
    """All averages of one aggregation."""
    key: str


def taken(loads: Mapping[str, Average]) -> tuple[Takes, list[ObjectRef[Any]]]:
    """Averages by unit as an actor is told of them: where each is, and the objects."""
    refs = list(dict.fromkeys(average.ref for average in loads.values()))
    return {unit: (refs.index(average.ref), average.key) for unit, average in loads.items()}, refs


@dataclass(frozen=True)
class Lineage:
    """One model's state: a snapshot, and the averages that it has taken since."""

    snapshot: ObjectRef[Any] | None = None
    """None is the state before the first round."""
    loads: Mapping[str, Average] = field(default_factory=dict)
    """By unit."""

    @property
    def references(self) -> set[ObjectRef[Any]]:
        own = () if self.snapshot is None else (self.snapshot,)
        return {*own, *(average.ref for average in self.loads.values())}

    def taking(self, averages: Mapping[str, Average]) -> Lineage:
        return replace(self, loads={**self.loads, **averages})


@dataclass
class RunState:
    """Everything that decides the rest of a run, at some moment of it."""

    round_number: int = 0
    """The last whole round."""
    lineages: dict[ModelId, Lineage] = field(default_factory=dict)
    """Of models that are no longer as they were initialised."""
    averages: dict[str, Average] = field(default_factory=dict)
    """The newest, by key."""
    ledger: Ledger = field(default_factory=Ledger)
    trained: set[int] = field(default_factory=set)
    """Clients that trained since the last aggregation."""

    @property
    def references(self) -> set[ObjectRef[Any]]:
        """Everything that the state is made of."""
        of_models = {ref for lineage in self.lineages.values() for ref in lineage.references}
        return of_models | {average.ref for average in self.averages.values()}

    def lineage(self, model: ModelId) -> Lineage:
        return self.lineages.get(model, Lineage())

    def copy(self) -> RunState:
        """The same state, untouched by what happens to this one."""
        ledger = Ledger(dict(self.ledger.newest), dict(self.ledger.seen))
        return RunState(self.round_number, dict(self.lineages), dict(self.averages), ledger, set(self.trained))
