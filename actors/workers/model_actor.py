"""The client and server actors: plain classes around a Client or a Server; they run and are tested without a cluster.

Models of one pool share an actor: a request that finds another state there than it needs brings that along, as a
Restore. From the second model on they compute with the same modules, which are put back to their first state for each.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.workers.actor_location import ActorLocation, location_here
from actors.workers.compute import prepare_process
from actors.workers.contract import (
    LoadAverages,
    Objects,
    Outcome,
    ReadModel,
    ReadShard,
    Restore,
    RunLeg,
    SaveModel,
    Worker,
    WorkerRequest,
    WriteShard,
    select,
    state_of,
)
from actors.workers.origin import Origin
from actors.workers.store_resident import store_resident
from hsee_ray.backbones import Backbone
from hsee_ray.method.client import Client, ClientData, Samples
from hsee_ray.method.server import Server
from hsee_ray.method.setup import Setup, build_client, build_network, build_server, mapped_client_data
from hsee_ray.models.state import ModelState, read_unit, write_unit
from hsee_ray.models.weights import read_model, write_model
from hsee_ray.rundir.shards import read_snapshot, write_snapshot


class ModelActor(Worker):
    """An actor around one Client or Server at a time."""

    device: torch.device

    def __init__(self, setup: Setup, client_id: int) -> None:
        """`client_id` is that of the model."""
        self.setup = setup
        self.client_id = client_id
        self._initial: tuple[Backbone, ModelState] | None = None
        self.side: Any = self.build(build_network(setup.config, setup.files))

    @abstractmethod
    def build(self, backbone: Backbone) -> Client | Server:
        """The client or server as it is before the first round, over the units of a network that is so, too."""

    def move_in(self, state: Restore, objects: Objects) -> None:
        """Another model of the pool takes the slot."""
        self.client_id = state.client_id

    def location(self) -> ActorLocation:
        return location_here(self.device.type)

    def answer(self, request: WorkerRequest, objects: Objects) -> tuple[Any, ...]:
        match request:
            case RunLeg(leg, work, snapshot_after, payload):
                sent, report = leg.run(self.side, work, None if payload is None else objects[payload].payload)
                state = store_resident(self.side.snapshot()) if snapshot_after else None
                payload_sent = None if sent is None else store_resident(sent)
                return payload_sent, state, Outcome(report, sent is not None)
            case LoadAverages(averages):
                self.side.model.load(select(averages, objects))
                return (None,)
            case SaveModel(directory, stem):
                return (write_model(directory, stem, self.side.tensors()),)
            case ReadModel(path):
                self.side.take_tensors(read_model(Path(path)))
                return store_resident(self.side.snapshot()), None
            case WriteShard(uri, name, state):
                reset = self.setup.config.training.optimizer_state == "reset"
                return (write_snapshot(uri, name, state_of(state, objects, reset)),)
            case ReadShard(uri, name, entry):
                return store_resident(read_snapshot(uri, name, entry)), None

    def restore(self, state: Restore, objects: Objects) -> None:
        moves = state.client_id != self.client_id
        if moves:
            self.move_in(state, objects)
        if moves or state.snapshot is None:
            self.side = self.build(self._first_network())
        if state.snapshot is not None:
            self.side.restore(objects[state.snapshot].payload)
        self.side.model.load(select(state.averages, objects))

    def _first_network(self) -> Backbone:
        """The base network as it is before the first round: one for all models of the slot, put back for each."""
        if self._initial is None:
            backbone = build_network(self.setup.config, self.setup.files)
            self._initial = backbone, {name: read_unit(unit, None) for name, unit in backbone.units.items()}
        backbone, states = self._initial
        for name, unit in backbone.units.items():
            write_unit(unit, None, states[name])
            unit.zero_grad(set_to_none=True)
        return backbone


class ClientActor(ModelActor):
    """One client of the fleet at a time."""

    side: Client

    def __init__(self, setup: Setup, client_id: int, origin: Origin | None = None, **rows: Samples) -> None:
        """`origin` is what it must find here; `rows` are as `client_data` takes them."""
        self.setup, self.client_id = setup, client_id  # Ray asks for the name, also where the next line fails
        self.device = prepare_process(setup.config.training, setup.fleet.clients[client_id].resources, origin)
        self.data = client_data(setup, client_id, **rows)
        super().__init__(setup, client_id)

    def __repr__(self) -> str:
        """Name in Ray's dashboard."""
        spec = self.setup.fleet.clients[self.client_id]
        return f"client {spec.label} ({spec.tier})"

    def build(self, backbone: Backbone) -> Client:
        return build_client(self.setup, self.client_id, self.data, self.device, backbone)

    def move_in(self, state: Restore, objects: Objects) -> None:
        super().move_in(state, objects)
        rows: dict[str, Any] = {name: objects[index] for name, index in state.rows.items()}
        self.data = client_data(self.setup, state.client_id, **rows)


class ServerActor(ModelActor):
    """One server model of the strategy at a time."""

    side: Server

    def __init__(self, setup: Setup, client_id: int, origin: Origin | None = None) -> None:
        self.setup, self.client_id = setup, client_id  # Ray asks for the name, also where the next line fails
        self.device = prepare_process(setup.config.training, setup.config.server.resources, origin)
        super().__init__(setup, client_id)

    def __repr__(self) -> str:
        """Name in Ray's dashboard."""
        if self.setup.strategy.shared_server:
            return "shared server"
        return f"server {self.setup.fleet.clients[self.client_id].label}"

    def build(self, backbone: Backbone) -> Server:
        served = self.setup.strategy.served(self.setup.fleet)[self.client_id]
        return build_server(self.setup, served, self.device, backbone)


def client_data(
    setup: Setup,
    client_id: int,
    train: Samples | None = None,
    test: Samples | None = None,
    calibration: Samples | None = None,
    validation: Samples | None = None,
) -> ClientData:
    """A client's data over images that it is given; without any, mapped from this machine's image files."""
    if train is None or test is None or calibration is None or validation is None:
        return mapped_client_data(setup, client_id)
    return ClientData(train, test, calibration, validation, setup.files.class_names, setup.mean_C, setup.std_C)


def own_rows(samples: Samples) -> Samples:
    """The same samples with nothing beside them: what a client on another node needs."""
    return dataclasses.replace(
        samples,
        images_NHWC=samples.images_NHWC[samples.indices],
        labels_N=samples.labels_N[samples.indices],
        indices=np.arange(len(samples)),
    )
