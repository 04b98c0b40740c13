"""The aggregator actor: averages copies of units that arrive by reference. Needs numpy only, so it starts at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.workers.actor_location import ActorLocation, location_here
from actors.workers.contract import (
    AverageRefs,
    ReadShard,
    SaveModel,
    WriteShard,
    select,
    state_of,
)
from actors.workers.origin import Origin
from actors.workers.store_resident import StoreResident, store_resident
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import TrainingConfig
from hsee_ray.method.aggregation import Copy, average_copies
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import ModelState, named_tensors
from hsee_ray.models.weights import write_model
from hsee_ray.rundir.checkpoint import FileEntry
from hsee_ray.rundir.shards import read_snapshot, write_snapshot


class Aggregator:
    """Holds nothing between calls."""

    def __init__(self, training: TrainingConfig, origin: Origin | None = None) -> None:
        if origin is not None:
            origin.check(location_here("cpu").node)
        self.training = training
        self.reset = training.optimizer_state == "reset"

    def __repr__(self) -> str:
        """Name in Ray's dashboard."""
        return "aggregator"

    def location(self) -> ActorLocation:
        return location_here("cpu")

    def hold(self, *objects: Any) -> None:
        """Has them copied to this node, where they are found when the one that they were on is gone."""

    def average(
        self,
        groups: Mapping[str, tuple[Copy, ...]],
        sources: Mapping[ModelId, int],
        before: AverageRefs,
        *objects: StoreResident[Any],
    ) -> tuple[StoreResident[ModelState], None]:
        """The average of every group of copies by its key, and nothing for the driver to wait for.

        `sources` are the indices of their models' snapshots, `before` the newest averages by key, if they are needed.
        """
        by_model = {model: objects[index].payload.units for model, index in sources.items()}
        return store_resident(average_copies(groups, by_model, select(before, objects), self.training)), None

    def write_averages(
        self, uri: str, name: str, averages: AverageRefs, *objects: StoreResident[ModelState]
    ) -> FileEntry:
        """Writes the newest averages, by key, as one file of a checkpoint."""
        return write_snapshot(uri, name, Snapshot(select(averages, objects)))

    def read_averages(self, uri: str, name: str, entry: FileEntry) -> tuple[StoreResident[ModelState], None]:
        """Averages of a checkpoint by key, by reference, and nothing for the driver to wait for."""
        return store_resident(read_snapshot(uri, name, entry).units), None

    def perform(self, request: WriteShard | ReadShard | SaveModel, restore: None, *objects: StoreResident[Any]) -> Any:
        """Answers a request about a model whose own worker cannot."""
        match request:
            case WriteShard(uri, name, state):
                return write_snapshot(uri, name, state_of(state, objects, self.reset))
            case ReadShard(uri, name, entry):
                return store_resident(read_snapshot(uri, name, entry)), None
            case SaveModel(directory, stem, state):
                assert state is not None
                return write_model(directory, stem, named_tensors(state_of(state, objects, self.reset).units))
