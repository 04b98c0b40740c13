"""The server actor: a plain class around `hsee_ray.server.Server`; it runs and is tested without a cluster."""

from __future__ import annotations

from pathlib import Path

from actors.compute import prepare_process
from actors.sealed import Sealed, seal
from hsee_ray.checkpoint import write_model
from hsee_ray.reports import EvaluationReport, TrainReport
from hsee_ray.setup import Setup, build_server
from hsee_ray.state import ModelState, UnitState
from hsee_ray.wire import Packet


class ServerActor:
    """The server of one client, or the shared server of Sequential, in its own process."""

    def __init__(self, setup: Setup, served: tuple[int, ...]) -> None:
        device = prepare_process(setup.config.training, setup.config.server.resources)
        self.server = build_server(setup, served, device)

    def train(self, client: int, round_number: int, packet: Sealed[Packet]) -> TrainReport:
        """One step per batch of the packet, in the order in which packets were submitted."""
        return self.server.train(client, round_number, packet.payload)

    def evaluate(self, client: int, packet: Sealed[Packet]) -> EvaluationReport:
        """Client and server answers to one batch of test samples."""
        return self.server.evaluate(client, packet.payload)

    def state(self) -> Sealed[ModelState]:
        """The server's model by unit."""
        return seal(self.server.model.state())

    def load(self, units: tuple[str, ...], *averages: Sealed[UnitState]) -> None:
        """Takes the averages of these units."""
        self.server.model.load({unit: average.payload for unit, average in zip(units, averages, strict=True)})

    def save(self, directory: str, stem: str) -> tuple[str, ...]:
        """Writes the model file; returns its digest lines."""
        return write_model(Path(directory), stem, self.server.tensors())
