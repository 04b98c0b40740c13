"""The client actor: a plain class around `hsee_ray.client.Client`; it runs and is tested without a cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from actors.compute import prepare_process
from actors.sealed import Sealed, seal
from hsee_ray.checkpoint import write_model
from hsee_ray.client import ClientData, Samples
from hsee_ray.reports import EvaluationReport, TrainReport
from hsee_ray.setup import Setup, build_client, mapped_client_data
from hsee_ray.state import ModelState, UnitState, named_tensors
from hsee_ray.wire import Packet

Array = np.ndarray[Any, Any]


class ClientActor:
    """One client of the fleet in its own process."""

    def __init__(self, setup: Setup, number: int, train: Samples | None, test: Samples | None) -> None:
        """`train` and `test` are this client's images; None maps them from this machine's image files."""
        spec = setup.fleet.clients[number]
        device = prepare_process(setup.config.training, spec.resources)
        if train is None or test is None:
            data = mapped_client_data(setup, number)
        else:
            data = ClientData(train, test, setup.files.class_names, setup.mean_C, setup.std_C)
        self.client = build_client(setup, number, data, device)

    def train(self, round_number: int, first: int, last: int) -> tuple[Sealed[Packet], TrainReport]:
        """Steps first..last-1 of a round: their features for the server, and the report for the driver."""
        packet, report = self.client.train(round_number, first, last)
        return seal(packet), report

    def evaluate(self, first: int, last: int) -> tuple[Sealed[Packet], EvaluationReport | None]:
        """Test samples first..last-1: features for the server, or this client's own report at cut L."""
        packet, report = self.client.evaluate(first, last)
        return seal(packet), report

    def state(self) -> Sealed[ModelState]:
        """The client's model by unit."""
        return seal(self.client.model.state())

    def load(self, units: tuple[str, ...], *averages: Sealed[UnitState]) -> None:
        """Takes the averages of these units."""
        self.client.model.load({unit: average.payload for unit, average in zip(units, averages, strict=True)})

    def save(self, directory: str) -> tuple[str, ...]:
        """Writes the model file; returns its digest lines."""
        return write_model(Path(directory), self.client.spec.client_file, named_tensors(self.client.model.state()))


def own_rows(samples: Samples) -> Samples:
    """The same samples with nothing beside them: what a client on another node needs."""
    return dataclasses.replace(
        samples,
        images_NHWC=samples.images_NHWC[samples.indices],
        labels_N=samples.labels_N[samples.indices],
        indices=np.arange(len(samples)),
    )
