"""Files of a checkpoint, written and read where the tensors are."""

from __future__ import annotations

from collections.abc import Sequence

from actors.sealed import Sealed
from hsee_ray.checkpoint import FileEntry, check_content, entry_of
from hsee_ray.snapshot import Snapshot, from_bytes, to_bytes, with_averages
from hsee_ray.state import UnitState
from hsee_ray.storage import Storage


def write_shard(
    uri: str,
    name: str,
    units: Sequence[str],
    snapshot: Sealed[Snapshot],
    averages: Sequence[Sealed[UnitState]],
    reset_optimizer: bool,
) -> FileEntry:
    """Writes a snapshot with the averages that its model has taken since, `averages` for `units`."""
    return write_snapshot(uri, name, as_now(units, snapshot, averages, reset_optimizer))


def as_now(
    units: Sequence[str], snapshot: Sealed[Snapshot], averages: Sequence[Sealed[UnitState]], reset_optimizer: bool
) -> Snapshot:
    """A model's state as it is with the averages that it has taken since the snapshot, `averages` for `units`."""
    taken = {unit: average.payload for unit, average in zip(units, averages, strict=True)}
    return with_averages(snapshot.payload, taken, reset_optimizer)


def write_snapshot(uri: str, name: str, snapshot: Snapshot) -> FileEntry:
    content = to_bytes(snapshot)
    Storage.at(uri).write(name, content)
    return entry_of(content)


def read_snapshot(uri: str, name: str, entry: FileEntry) -> Snapshot:
    """Raises DataError when the file is damaged."""
    content = Storage.at(uri).read(name)
    check_content(name, content, entry)
    return from_bytes(content)
