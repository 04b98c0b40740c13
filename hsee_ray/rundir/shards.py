"""Files of a checkpoint, written and read where the tensors are."""

from __future__ import annotations

from hsee_ray.models.snapshot import Snapshot, from_bytes, to_bytes
from hsee_ray.rundir.checkpoint import FileEntry, check_content, entry_of
from hsee_ray.storage import Storage


def write_snapshot(uri: str, name: str, snapshot: Snapshot) -> FileEntry:
    content = to_bytes(snapshot)
    Storage.at(uri).write(name, content)
    return entry_of(content)


def read_snapshot(uri: str, name: str, entry: FileEntry) -> Snapshot:
    """Raises DataError when the file is damaged."""
    content = Storage.at(uri).read(name)
    check_content(name, content, entry)
    return from_bytes(content)
