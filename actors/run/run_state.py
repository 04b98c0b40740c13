"""How the state of every model can be made again, by reference: the driver holds no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray import ObjectRef

from actors.workers.contract import AverageRefs, ObjectList, Restore
from hsee_ray.config.fleet import ModelId
from hsee_ray.method.aggregation import Ledger


@dataclass(frozen=True)
class Average:
    """One unit's average."""

    ref: ObjectRef[Any]
    """All averages of one aggregation."""
    key: str


def average_refs(averages: Mapping[str, Average], objects: ObjectList) -> AverageRefs:
    """Averages by unit, as indices into the objects of a request."""
    return {unit: (objects.index(average.ref), average.key) for unit, average in averages.items()}


@dataclass(frozen=True)
class Lineage:
    """One model's state: a snapshot, and the averages that it has taken since."""

    snapshot: ObjectRef[Any] | None = None
    """None is the state before the first round."""
    averages: Mapping[str, Average] = field(default_factory=dict)
    """By unit."""

    @property
    def references(self) -> set[ObjectRef[Any]]:
        own = () if self.snapshot is None else (self.snapshot,)
        return {*own, *(average.ref for average in self.averages.values())}

    def with_averages(self, averages: Mapping[str, Average]) -> Lineage:
        return replace(self, averages={**self.averages, **averages})

    def restore(self, model: ModelId, objects: ObjectList) -> Restore:
        """Request that puts the model into this state."""
        snapshot = None if self.snapshot is None else objects.index(self.snapshot)
        return Restore(model.client_id, snapshot, average_refs(self.averages, objects))


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

    def snapshot(self, model: ModelId) -> ObjectRef[Any]:
        """The snapshot of a model that has trained."""
        snapshot = self.lineage(model).snapshot
        assert snapshot is not None
        return snapshot

    def forget(self, model: ModelId) -> None:
        """A model that has not trained yet loses the averages that it took to begin; it takes the newest later."""
        if self.lineage(model).snapshot is None:
            self.lineages.pop(model, None)
            self.ledger.forget(model)

    def copy(self) -> RunState:
        """The same state, untouched by what happens to this one."""
        return RunState(
            self.round_number, dict(self.lineages), dict(self.averages), self.ledger.copy(), set(self.trained)
        )
