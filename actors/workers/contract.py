"""The contract of driver and worker actors: requests as values, tensors as objects beside them.

A worker has one method for requests, `perform`. Ray hands it the objects of a request behind it (a reference only
arrives as its object when it is an argument of its own), so requests name them by their index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from ray import ObjectRef
from ray.actor import ActorHandle

from actors.workers.actor_location import ActorLocation
from actors.workers.store_resident import StoreResident
from hsee_ray.method.legs import Leg, Work
from hsee_ray.models.snapshot import Snapshot, with_averages
from hsee_ray.models.state import ModelState
from hsee_ray.rundir.checkpoint import FileEntry

ActorFactory = Callable[..., ActorHandle[Any]]
"""Creates an actor: of its class, the options that Ray places it by, and what its constructor takes."""

AverageRefs = Mapping[str, tuple[int, str]]
"""By unit: the index of the object that holds the unit's average, and the average's key in it."""


class Outcome(NamedTuple):
    """Result of a leg for the driver."""

    report: Any
    sent: bool
    """Whether something goes on to the next leg."""


@dataclass(frozen=True)
class Restore:
    """A model's state: a snapshot, and the averages that it has taken since."""

    client_id: int
    snapshot: int | None = None
    """None: the state before the first round."""
    averages: AverageRefs = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    """Indices of the client's images where it cannot map them: `train`, `test`, `calibration`, `validation`."""


@dataclass(frozen=True)
class RunLeg:
    """Computes a leg. Results: what is sent on, the state after it if it is wanted, and the Outcome."""

    leg: Leg
    work: Work
    snapshot_after: bool = False
    payload: int | None = None
    results: ClassVar[int] = 3


@dataclass(frozen=True)
class LoadAverages:
    """Takes averages."""

    averages: AverageRefs
    results: ClassVar[int] = 1


@dataclass(frozen=True)
class SaveModel:
    """Writes the final model file. Result: its digest lines.

    The aggregator writes that of another's `state`.
    """

    directory: str
    stem: str
    state: Restore | None = None
    results: ClassVar[int] = 1


@dataclass(frozen=True)
class ReadModel:
    """Reads a final model file. Results: its snapshot, and None for the driver to wait for."""

    path: str
    results: ClassVar[int] = 2


@dataclass(frozen=True)
class WriteShard:
    """Writes a state as one file of a checkpoint. Result: its FileEntry."""

    uri: str
    name: str
    state: Restore
    results: ClassVar[int] = 1


@dataclass(frozen=True)
class ReadShard:
    """Reads a file of a checkpoint. Results: its snapshot, and None for the driver to wait for."""

    uri: str
    name: str
    entry: FileEntry
    results: ClassVar[int] = 2


WorkerRequest = RunLeg | LoadAverages | SaveModel | ReadModel | WriteShard | ReadShard
Objects = Sequence[StoreResident[Any]]


def select(averages: AverageRefs, objects: Objects) -> ModelState:
    """The averages of a request, by unit."""
    return {unit: objects[index].payload[key] for unit, (index, key) in averages.items()}


def state_of(state: Restore, objects: Objects, reset_optimizer: bool) -> Snapshot:
    """The state of a request as one snapshot. It has one: nobody writes a model that is as it was initialised."""
    assert state.snapshot is not None
    return with_averages(objects[state.snapshot].payload, select(state.averages, objects), reset_optimizer)


class ObjectList:
    """References that travel with a request, each once."""

    def __init__(self, refs: Iterable[ObjectRef[Any]] = ()) -> None:
        self.refs = list(refs)

    def index(self, ref: ObjectRef[Any]) -> int:
        """Index of a reference; a new one is appended."""
        if ref not in self.refs:
            self.refs.append(ref)
        return self.refs.index(ref)


class Worker(ABC):
    """An actor that holds one model at a time, and answers requests about it."""

    @abstractmethod
    def location(self) -> ActorLocation:
        """Reports its node and device."""

    @abstractmethod
    def restore(self, state: Restore, objects: Objects) -> None:
        """Puts a model into a state."""

    @abstractmethod
    def answer(self, request: WorkerRequest, objects: Objects) -> tuple[Any, ...]:
        """The results of a request, as many as it says."""

    def perform(
        self, request: WorkerRequest, restore: Restore | None, *objects: StoreResident[Any], restored: None = None
    ) -> Any:
        """Restores, if asked to, and answers: one call of Ray's in place of two. Gives the request's results.

        Behind them, where it restores, one more: None, which later calls take as `restored`. Ray fails a call together
        with those that its arguments come from, so nothing ever runs on a state that was not put back.
        """
        if restore is not None:
            self.restore(restore, objects)
        results = self.answer(request, objects)
        if restore is not None:
            results = (*results, None)
        return results if len(results) > 1 else results[0]
