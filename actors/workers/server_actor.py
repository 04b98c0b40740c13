"""The server actor: a plain class around `hsee_ray.method.server.Server`; it runs and is tested without a cluster."""

from __future__ import annotations

from actors.workers.compute import prepare_process
from actors.workers.model_actor import ModelActor
from actors.workers.origin import Origin
from actors.workers.store_resident import StoreResident
from hsee_ray.backbones import Backbone
from hsee_ray.features.message import Packet
from hsee_ray.method.predictions import ServerPredictions
from hsee_ray.method.reports import EvaluationReport, TrainReport
from hsee_ray.method.server import Server
from hsee_ray.method.setup import Setup, build_server, served_by_one
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.weights import write_model


class ServerActor(ModelActor):
    """The server of one client at a time, or the shared server of Sequential, in a process of its own."""

    side: Server

    def __init__(self, setup: Setup, client_id: int, origin: Origin | None = None) -> None:
        self.device = prepare_process(setup.config.training, setup.config.server.resources, origin)
        super().__init__(setup, client_id)

    def __repr__(self) -> str:
        """What Ray's dashboard calls it."""
        if self.setup.config.training.strategy == "sequential":
            return "shared server"
        return f"server {self.setup.fleet.clients[self.client_id].label}"

    def build(self, backbone: Backbone) -> Server:
        shared = self.setup.config.training.strategy == "sequential"
        served = served_by_one(self.setup) if shared else (self.client_id,)
        return build_server(self.setup, served, self.device, backbone)

    def train(
        self, client: int, round_number: int, packet: StoreResident[Packet], record: bool, after: object = None
    ) -> tuple[StoreResident[Snapshot] | None, TrainReport]:
        """One step per batch of the packet, in the order in which packets were submitted.

        Before the report the state after the steps, if it is to be recorded.
        """
        report = self.side.train(client, round_number, packet.payload)
        return self.recorded(record), report

    def evaluate(self, client: int, packet: StoreResident[Packet], after: object = None) -> EvaluationReport:
        """Client and server answers to one batch of test samples."""
        return self.side.evaluate(client, packet.payload)

    def answer(self, client: int, packet: StoreResident[Packet], after: object = None) -> ServerPredictions:
        """Answers to the samples that a client was not sure of."""
        return self.side.answer(client, packet.payload)

    def save(self, directory: str, stem: str, after: object = None) -> tuple[str, ...]:
        """Writes the model file; returns its digest lines."""
        return write_model(directory, stem, self.side.tensors())
