"""What client and server actors share: a model whose state goes out, comes back and is written by reference.

Models of one pool take turns in an actor: `restore` puts another one there. From the second one on they compute with
the same modules, which are put back to their first state for each.

Calls that build on the model's state take `after`, a result of the call that has restored it: Ray fails such a call
with that one, so nothing ever runs on a state that was not put back. It is not used otherwise.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch

from actors.workers.actor_location import ActorLocation, location_here
from actors.workers.contract import Takes
from actors.workers.shards import picked, read_snapshot, write_shard
from actors.workers.store_resident import StoreResident, store_resident
from actors.workers.turns import TakesTurns
from hsee_ray.backbones import Backbone
from hsee_ray.method.setup import Setup, build_network
from hsee_ray.models.model import Model
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import Arrays, ModelState, read_unit, write_unit
from hsee_ray.models.weights import read_model
from hsee_ray.rundir.checkpoint import FileEntry


class Side(Protocol):
    """A client or a server."""

    model: Model

    def snapshot(self) -> Snapshot: ...
    def restore(self, snapshot: Snapshot) -> None: ...
    def take_tensors(self, tensors: Arrays) -> None: ...


class ModelActor(TakesTurns):
    """An actor around one model at a time."""

    device: torch.device

    def __init__(self, setup: Setup, client_id: int) -> None:
        """`client_id` is that of the model's client."""
        self.setup = setup
        self.client_id = client_id
        self._initial: tuple[Backbone, ModelState] | None = None
        self.side: Any = self.build(build_network(setup.config, setup.files))

    @abstractmethod
    def build(self, backbone: Backbone) -> Side:
        """The client or server as it is before the first round, over the units of a network that is so, too."""

    def move_in(self, client_id: int, **data: Any) -> None:
        """The model of another client takes the slot."""
        self.client_id = client_id

    def location(self) -> ActorLocation:
        """Where it is, and what it computes on."""
        return location_here(self.device.type)

    def recorded(self, wanted: bool) -> StoreResident[Snapshot] | None:
        """The state after a piece of work, where it is wanted."""
        return store_resident(self.side.snapshot()) if wanted else None

    def load(self, takes: Takes, *averages: StoreResident[ModelState], after: object = None) -> None:
        """Takes averages by unit."""
        self.side.model.load(picked(takes, averages))

    def restore(
        self,
        client_id: int,
        snapshot: StoreResident[Snapshot] | None,
        takes: Takes,
        *averages: StoreResident[ModelState],
        **data: Any,
    ) -> None:
        moves = client_id != self.client_id
        if moves:
            self.move_in(client_id, **data)
        if moves or snapshot is None:
            self.side = self.build(self._first_network())
        if snapshot is not None:
            self.side.restore(snapshot.payload)
        self.load(takes, *averages)

    def _first_network(self) -> Backbone:
        """The base network as it is before the first round: one for all who sit here, put back for each."""
        if self._initial is None:
            backbone = build_network(self.setup.config, self.setup.files)
            self._initial = backbone, {name: read_unit(unit, None) for name, unit in backbone.units.items()}
        backbone, states = self._initial
        for name, unit in backbone.units.items():
            write_unit(unit, None, states[name])
            unit.zero_grad(set_to_none=True)
        return backbone

    def read_model(self, path: str, after: object = None) -> tuple[StoreResident[Snapshot], None]:
        """A final model file as a snapshot, by reference. Raises DataError when it is damaged or does not fit."""
        self.side.take_tensors(read_model(Path(path)))
        return store_resident(self.side.snapshot()), None

    def write_shard(
        self,
        uri: str,
        name: str,
        snapshot: StoreResident[Snapshot],
        takes: Takes,
        *averages: StoreResident[ModelState],
        after: object = None,
    ) -> FileEntry:
        """Writes a snapshot with the averages taken since as one file of a checkpoint."""
        reset = self.side.model.training.optimizer_state == "reset"
        return write_shard(uri, name, snapshot, takes, averages, reset)

    def read_shard(self, uri: str, name: str, entry: FileEntry) -> tuple[StoreResident[Snapshot], None]:
        """A file of a checkpoint as a snapshot, by reference. Raises DataError when it is damaged."""
        return store_resident(read_snapshot(uri, name, entry)), None
