"""A node's report to the doctor. Imports no torch, so it answers at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from actors.workers.origin import versions
from hsee_ray.storage import Storage

SHM = "/dev/shm"


@dataclass(frozen=True)
class NodeReport:
    """Report of one node."""

    versions: Mapping[str, str]
    reads: bool
    """It reads what the driver has written."""
    writes: str | None
    """Why it cannot write to the storage."""
    shm_bytes: int


def look_at_node(uri: str, probe: str, own: str) -> NodeReport:
    """Run on a node: reads the driver's file in the storage, and writes one of its own."""
    storage = Storage.at(uri)
    try:
        reads = storage.read(probe) == probe.encode()
    except OSError:
        reads = False
    writes = None
    try:
        storage.write(own, own.encode())
    except OSError as error:
        writes = str(error).splitlines()[0]
    return NodeReport(versions(), reads, writes, shutil.disk_usage(SHM).total if os.path.isdir(SHM) else 0)
