"""Files of a checkpoint, written and read where the tensors are."""

from __future__ import annotations

from collections.abc import Sequence

from actors.workers.contract import Takes
from actors.workers.store_resident import StoreResident
from hsee_ray.models.snapshot import Snapshot, from_bytes, to_bytes, with_averages
from hsee_ray.models.state import ModelState
from hsee_ray.rundir.checkpoint import FileEntry, check_content, entry_of
from hsee_ray.storage import Storage


def write_shard(
    uri: str,
    name: str,
    snapshot: StoreResident[Snapshot],
    takes: Takes,
    averages: Sequence[StoreResident[ModelState]],
    reset_optimizer: bool,
) -> FileEntry:
    """Writes a snapshot with the averages that its model has taken since."""
    return write_snapshot(uri, name, as_now(snapshot, takes, averages, reset_optimizer))


def as_now(
    snapshot: StoreResident[Snapshot],
    takes: Takes,
    averages: Sequence[StoreResident[ModelState]],
    reset_optimizer: bool,
) -> Snapshot:
    """A model's state as it is with the averages that it has taken since the snapshot."""
    return with_averages(snapshot.payload, picked(takes, averages), reset_optimizer)


def picked(takes: Takes, averages: Sequence[StoreResident[ModelState]]) -> ModelState:
    """The averages that a model takes, by unit, out of objects that hold those of whole aggregations."""
    return {unit: averages[index].payload[key] for unit, (index, key) in takes.items()}


def write_snapshot(uri: str, name: str, snapshot: Snapshot) -> FileEntry:
    content = to_bytes(snapshot)
    Storage.at(uri).write(name, content)
    return entry_of(content)


def read_snapshot(uri: str, name: str, entry: FileEntry) -> Snapshot:
    """Raises DataError when the file is damaged."""
    content = Storage.at(uri).read(name)
    check_content(name, content, entry)
    return from_bytes(content)
