"""The aggregator actor: averages copies of units that arrive by reference. Needs numpy only, so it starts at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.workers.actor_location import ActorLocation, location_here
from actors.workers.contract import Takes
from actors.workers.origin import Origin
from actors.workers.shards import as_now, picked, read_snapshot, write_shard, write_snapshot
from actors.workers.store_resident import StoreResident, store_resident
from hsee_ray.config.schema import TrainingConfig
from hsee_ray.method.aggregation import Copy, ModelId, average_copies
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import ModelState, named_tensors
from hsee_ray.models.weights import write_model
from hsee_ray.rundir.checkpoint import FileEntry


class Aggregator:
    """Holds nothing between calls."""

    def __init__(self, training: TrainingConfig, origin: Origin | None = None) -> None:
        if origin is not None:
            origin.check(location_here("cpu").node)
        self.statistics = training.norm_statistics == "shared"
        self.optimizer = training.optimizer_state == "average"
        self.reset = training.optimizer_state == "reset"

    def __repr__(self) -> str:
        """What Ray's dashboard calls it."""
        return "aggregator"

    def location(self) -> ActorLocation:
        return location_here("cpu")

    def hold(self, *objects: Any) -> None:
        """Has them copied to this node, where they are found when the one that they were on is gone."""

    def average(
        self, groups: Mapping[str, tuple[Copy, ...]], sources: tuple[ModelId, ...], *snapshots: StoreResident[Snapshot]
    ) -> tuple[StoreResident[ModelState], None]:
        """The average of every group of copies by its key, and nothing for the driver to wait for.

        `snapshots` are those of `sources`.
        """
        by_model = {model: snapshot.payload.units for model, snapshot in zip(sources, snapshots, strict=True)}
        return store_resident(average_copies(groups, by_model, self.statistics, self.optimizer)), None

    def write_averages(self, uri: str, name: str, takes: Takes, *averages: StoreResident[ModelState]) -> FileEntry:
        """Writes the newest averages, by key, as one file of a checkpoint."""
        return write_snapshot(uri, name, Snapshot(picked(takes, averages)))

    def read_averages(self, uri: str, name: str, entry: FileEntry) -> tuple[StoreResident[ModelState], None]:
        """Averages of a checkpoint by key, by reference, and nothing for the driver to wait for."""
        return store_resident(read_snapshot(uri, name, entry).units), None

    def write_shard(
        self, uri: str, name: str, snapshot: StoreResident[Snapshot], takes: Takes, *averages: StoreResident[ModelState]
    ) -> FileEntry:
        """Writes a model's file of a checkpoint when its own actor cannot."""
        return write_shard(uri, name, snapshot, takes, averages, self.reset)

    def read_shard(self, uri: str, name: str, entry: FileEntry) -> tuple[StoreResident[Snapshot], None]:
        """A model's file of a checkpoint, by reference, when its own actor cannot read it."""
        return store_resident(read_snapshot(uri, name, entry)), None

    def save(
        self,
        directory: str,
        stem: str,
        snapshot: StoreResident[Snapshot],
        takes: Takes,
        *averages: StoreResident[ModelState],
    ) -> tuple[str, ...]:
        """Writes a client's final file when the client cannot; returns its digest lines."""
        state = as_now(snapshot, takes, averages, self.reset)
        return write_model(directory, stem, named_tensors(state.units))
