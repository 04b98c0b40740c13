"""The client actor: a plain class around `hsee_ray.method.client.Client`; it runs and is tested without a cluster."""

from __future__ import annotations

import dataclasses

import numpy as np

from actors.workers.compute import prepare_process
from actors.workers.model_actor import ModelActor
from actors.workers.origin import Origin
from actors.workers.store_resident import StoreResident, store_resident
from hsee_ray.backbones import Backbone
from hsee_ray.edge.gate import Gate
from hsee_ray.features.message import Packet
from hsee_ray.method.client import Client, ClientData, Samples
from hsee_ray.method.predictions import ExitPredictions, Part
from hsee_ray.method.reports import EvaluationReport, TrainReport
from hsee_ray.method.setup import Setup, build_client, mapped_client_data
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import named_tensors
from hsee_ray.models.weights import write_model


class ClientActor(ModelActor):
    """One client of the fleet at a time, in a process of its own."""

    side: Client

    def __init__(
        self,
        setup: Setup,
        client_id: int,
        origin: Origin | None = None,
        **samples: Samples,
    ) -> None:
        """`origin` is what it must find here; `samples` are as `client_data` takes them."""
        self.device = prepare_process(setup.config.training, setup.fleet.clients[client_id].resources, origin)
        self.data = client_data(setup, client_id, **samples)
        super().__init__(setup, client_id)

    def __repr__(self) -> str:
        """What Ray's dashboard calls it."""
        spec = self.setup.fleet.clients[self.client_id]
        return f"client {spec.label} ({spec.tier})"

    def build(self, backbone: Backbone) -> Client:
        return build_client(self.setup, self.client_id, self.data, self.device, backbone)

    def move_in(self, client_id: int, **data: Samples) -> None:
        super().move_in(client_id)
        self.data = client_data(self.setup, client_id, **data)

    def train(
        self, round_number: int, first: int, last: int, record: bool, after: object = None
    ) -> tuple[StoreResident[Packet], StoreResident[Snapshot] | None, TrainReport]:
        """Steps first..last-1 of a round: their features for the server, and the report for the driver.

        Between them the state after the steps, if it is to be recorded.
        """
        packet, report = self.side.train(round_number, first, last)
        return store_resident(packet), self.recorded(record), report

    def evaluate(
        self, first: int, last: int, after: object = None
    ) -> tuple[StoreResident[Packet], EvaluationReport | None]:
        """Test samples first..last-1: features for the server, or this client's own report at cut L."""
        packet, report = self.side.evaluate(first, last)
        return store_resident(packet), report

    def answer(
        self, part: Part, first: int, last: int, gate: Gate, after: object = None
    ) -> tuple[StoreResident[Packet] | None, ExitPredictions]:
        """Samples first..last-1, answered here where the exit is sure; the features of the others, if there are any."""
        packet, answers = self.side.answer(part, first, last, gate)
        return (store_resident(packet) if packet else None), answers

    def save(self, directory: str, after: object = None) -> tuple[str, ...]:
        """Writes the model file; returns its digest lines."""
        return write_model(directory, self.side.spec.client_file, named_tensors(self.side.model.state()))


def client_data(
    setup: Setup,
    client_id: int,
    train: Samples | None = None,
    test: Samples | None = None,
    calibration: Samples | None = None,
) -> ClientData:
    """A client's data over images that it is given; without any, mapped from this machine's image files."""
    if train is None or test is None or calibration is None:
        return mapped_client_data(setup, client_id)
    return ClientData(train, test, calibration, setup.files.class_names, setup.mean_C, setup.std_C)


def own_rows(samples: Samples) -> Samples:
    """The same samples with nothing beside them: what a client on another node needs."""
    return dataclasses.replace(
        samples,
        images_NHWC=samples.images_NHWC[samples.indices],
        labels_N=samples.labels_N[samples.indices],
        indices=np.arange(len(samples)),
    )
