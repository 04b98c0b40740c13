"""Every strategy in one process: the executable specification. A run over actors ends in the same bits."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import ResourcesConfig
from hsee_ray.method.aggregation import Ledger, average_copies, plan_aggregation
from hsee_ray.method.client import Client
from hsee_ray.method.legs import Leg, Side, Trip, Work, evaluating, legs_of
from hsee_ray.method.predictions import Part
from hsee_ray.method.reports import EvaluationReport, RoundReport, TrainReport, learnt
from hsee_ray.method.schedule import (
    evaluates_after,
    learning_rate,
    ordered_steps,
    participants,
    queue_order,
    round_batches,
)
from hsee_ray.method.server import Server
from hsee_ray.method.setup import Setup, build_client, build_network, build_server, mapped_client_data
from hsee_ray.models.state import Arrays, UnitState
from hsee_ray.models.weights import digest_lines, weights_sha256

CPU = torch.device("cpu")


class Reference:
    """All clients and servers of a run, side by side in this process."""

    def __init__(
        self, setup: Setup, device_of: Callable[[ResourcesConfig], torch.device] = lambda resources: CPU
    ) -> None:
        """`device_of` the resources of a client, or of the servers, is where its model computes."""
        torch.set_num_threads(setup.config.training.threads)
        self.setup = setup
        self.config = setup.config
        network = build_network(setup.config, setup.files)
        self.clients = [
            build_client(
                setup,
                spec.client_id,
                mapped_client_data(setup, spec.client_id),
                device_of(spec.resources),
                copy.deepcopy(network),
            )
            for spec in setup.fleet.clients
        ]
        self.strategy = setup.strategy
        self.servers = {
            server: build_server(setup, served, device_of(self.config.server.resources), copy.deepcopy(network))
            for server, served in self.strategy.served(setup.fleet).items()
        }
        self.ledger = Ledger()
        self.averages: dict[str, UnitState] = {}
        self.trained: set[int] = set()

    def run(self) -> Iterator[RoundReport]:
        """Trains all rounds, one at a time."""
        for round_number in range(1, self.config.training.rounds + 1):
            yield self.run_round(round_number)

    def run_round(self, round_number: int) -> RoundReport:
        begin = time.perf_counter()
        who = participants(self.config, self.setup.fleet, round_number)
        for model, units in self.ledger.catch_up(self.config, self.setup.fleet, who).items():
            self.side_of(model).model.load({unit: self.averages[key] for unit, key in units.items()})
        reports: dict[Side, dict[int, TrainReport]] = {"client": {}, "server": {}}
        steps = self._steps(round_number)
        last = dict(steps)
        for client_id, step in steps:
            work = Work(client_id, round_number, step, step + 1, ends_round=step == last[client_id])
            for side, report in self.trip("train", self.strategy.trip_of(self.config.training), work).items():
                own = reports[side]
                own[client_id] = own[client_id] + report if client_id in own else report
        train_s = time.perf_counter() - begin
        self.trained |= learnt(reports, round_number)
        if self.strategy.aggregates_after(self.config.training, round_number):
            self._aggregate(round_number)
        evaluates = evaluates_after(self.config, round_number)
        evaluation = self._evaluate(round_number, "test") if evaluates else {}
        validation = self._evaluate(round_number, "validation") if evaluates else {}
        return RoundReport(
            round_number=round_number,
            learning_rate=learning_rate(self.config.training, round_number),
            wall_s=time.perf_counter() - begin,
            train_s=train_s,
            client_training=reports["client"],
            server_training=reports["server"],
            evaluation=evaluation,
            validation=validation,
        )

    def files(self) -> dict[str, Arrays]:
        """Final tensors by file stem."""
        tensors = {client.spec.client_file: client.tensors() for client in self.clients}
        for server_id, server in self.servers.items():
            tensors[self.strategy.file_of(self.setup.fleet, ModelId("server", server_id))] = server.tensors()
        return tensors

    def digest(self) -> str:
        """The `weights_sha256` of the trained models."""
        return weights_sha256(line for stem, tensors in self.files().items() for line in digest_lines(stem, tensors))

    def _steps(self, round_number: int) -> list[tuple[int, int]]:
        """(client, step) in the order in which a shared server must see them."""
        counts = {
            client_id: len(round_batches(self.config.training, samples, spec.batch_size))
            for client_id, (samples, spec) in enumerate(
                zip(self.setup.local_samples, self.setup.fleet.clients, strict=True)
            )
        }
        return ordered_steps(
            queue_order(self.config, self.setup.fleet, round_number), counts, self.config.training.interleave
        )

    def _aggregate(self, round_number: int) -> None:
        plan = plan_aggregation(self.config, self.setup.fleet, self.trained, self.setup.local_samples)
        states = {model: self.side_of(model).model.state() for model in plan.sources}
        self.averages |= average_copies(plan.copies, states, self.averages, self.config.training)
        for model, units in plan.takes.items():
            self.side_of(model).model.load({unit: self.averages[key] for unit, key in units.items()})
        self.ledger.record(plan, round_number)
        self.trained.clear()

    def _evaluate(self, round_number: int, part: Part) -> dict[int, EvaluationReport]:
        reports: dict[int, EvaluationReport] = {}
        size = self.config.evaluation.batch_size
        for client_id, samples in self.setup.samples_of(part).items():
            for first in range(0, samples, size):
                work = Work(client_id, round_number, first, min(first + size, samples))
                of_piece = self.trip("evaluate", evaluating(part), work)
                report = of_piece.get("server") or of_piece["client"]
                reports[client_id] = reports[client_id] + report if client_id in reports else report
        return reports

    def trip(self, stage: str, trip: Trip, work: Work) -> dict[Side, Any]:
        """Takes a client's batch over the cut; the reports of both sides."""
        reports: dict[Side, Any] = {}
        payload = None
        for leg in legs_of(trip, self.setup.fleet.clients[work.client_id].has_server):
            payload, report = self.perform(stage, leg, work, payload)
            reports[leg.side] = reports[leg.side] + report if leg.side in reports else report
            if payload is None:
                break
        return reports

    def perform(self, stage: str, leg: Leg, work: Work, payload: Any) -> tuple[Any, Any]:
        """Computes one leg: what goes on, and a report."""
        return leg.run(self.side_of(self.model_of(leg.side, work.client_id)), work, payload)

    def model_of(self, side: Side, client_id: int) -> ModelId:
        """A client's own model, or that of the server which takes up its features."""
        if side == "client":
            return ModelId("client", client_id)
        server_id = self.strategy.server_of(self.setup.fleet.clients[client_id])
        assert server_id is not None
        return ModelId("server", server_id)

    def side_of(self, model: ModelId) -> Client | Server:
        return self.clients[model.client_id] if model.side == "client" else self.servers[model.client_id]
