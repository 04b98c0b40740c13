"""What client and server actors share: a model whose state goes out, comes back and is written by reference.

Calls that build on the model's state take `after`, the result of the restore they follow: Ray fails such a call with
that restore, so nothing ever runs on a state that was not put back. It is not used otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch

from actors.presence import Presence, presence_here
from actors.sealed import Sealed, seal
from actors.shards import read_snapshot, write_shard
from hsee_ray.checkpoint import FileEntry
from hsee_ray.model import Model
from hsee_ray.snapshot import Snapshot
from hsee_ray.state import Arrays, UnitState
from hsee_ray.weights import read_model


class Side(Protocol):
    """A client or a server."""

    model: Model

    def snapshot(self) -> Snapshot: ...
    def restore(self, snapshot: Snapshot) -> None: ...
    def take_tensors(self, tensors: Arrays) -> None: ...


class ModelActor(ABC):
    """An actor around one model."""

    device: torch.device

    def __init__(self) -> None:
        self.side: Any = self.build()

    @abstractmethod
    def build(self) -> Side:
        """The client or server as it is before the first round."""

    def presence(self) -> Presence:
        """Where it is, and what it computes on."""
        return presence_here(self.device.type)

    def snapshot(self, after: object = None) -> tuple[Sealed[Snapshot], None]:
        """The state by reference, and nothing for the driver to wait for."""
        return seal(self.side.snapshot()), None

    def load(self, units: tuple[str, ...], *averages: Sealed[UnitState], after: object = None) -> None:
        """Takes the averages of these units."""
        self.side.model.load({unit: average.payload for unit, average in zip(units, averages, strict=True)})

    def restore(self, units: tuple[str, ...], snapshot: Sealed[Snapshot] | None, *averages: Sealed[UnitState]) -> None:
        """Goes back to a snapshot (None: to the beginning) and takes the averages that it took after it."""
        if snapshot is None:
            self.side = self.build()
        else:
            self.side.restore(snapshot.payload)
        self.load(units, *averages)

    def read_model(self, path: str) -> tuple[Sealed[Snapshot], None]:
        """A final model file as a snapshot, by reference. Raises DataError when it is damaged or does not fit."""
        self.side.take_tensors(read_model(Path(path)))
        return seal(self.side.snapshot()), None

    def write_shard(
        self,
        uri: str,
        name: str,
        units: tuple[str, ...],
        snapshot: Sealed[Snapshot],
        *averages: Sealed[UnitState],
        after: object = None,
    ) -> FileEntry:
        """Writes a snapshot with the averages taken since as one file of a checkpoint."""
        reset = self.side.model.training.optimizer_state == "reset"
        return write_shard(uri, name, units, snapshot, averages, reset)

    def read_shard(self, uri: str, name: str, entry: FileEntry) -> tuple[Sealed[Snapshot], None]:
        """A file of a checkpoint as a snapshot, by reference. Raises DataError when it is damaged."""
        return seal(read_snapshot(uri, name, entry)), None
