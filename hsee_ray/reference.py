"""Every strategy in one process: the executable specification. A run over actors ends in the same bits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from hsee_ray.config.fleet import ModelId
from hsee_ray.method.aggregation import Ledger, average_copies, plan_aggregation
from hsee_ray.method.client import Client
from hsee_ray.method.legs import EVALUATION, Side, Work, legs_of
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
from hsee_ray.method.setup import Setup, build_client, build_server, mapped_client_data
from hsee_ray.models.model import Model
from hsee_ray.models.state import Arrays, UnitState
from hsee_ray.models.weights import digest_lines, weights_sha256

CPU = torch.device("cpu")


class Reference:
    """All clients and servers of a run, side by side in this process."""

    def __init__(self, setup: Setup, device: torch.device = CPU) -> None:
        torch.set_num_threads(setup.config.training.threads)
        self.setup = setup
        self.config = setup.config
        self.clients = [
            build_client(setup, spec.client_id, mapped_client_data(setup, spec.client_id), device)
            for spec in setup.fleet.clients
        ]
        self.strategy = setup.strategy
        self.servers = {
            server: build_server(setup, served, device) for server, served in self.strategy.served(setup.fleet).items()
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
            self._model(model).load({unit: self.averages[key] for unit, key in units.items()})
        reports: dict[Side, dict[int, TrainReport]] = {"client": {}, "server": {}}
        for client_id, step in self._steps(round_number):
            work, payload = Work(client_id, round_number, step, step + 1), None
            for leg in legs_of(self.strategy.trip, self.setup.fleet.clients[client_id].has_server):
                payload, report = leg.run(self._side(leg.side, client_id), work, payload)
                own = reports[leg.side]
                own[client_id] = own[client_id] + report if client_id in own else report
                if payload is None:
                    break
        train_s = time.perf_counter() - begin
        self.trained |= learnt(reports, round_number)
        if self.strategy.aggregates_after(self.config.training, round_number):
            self._aggregate(round_number)
        evaluation = self._evaluate() if evaluates_after(self.config, round_number) else {}
        return RoundReport(
            round_number=round_number,
            learning_rate=learning_rate(self.config.training, round_number),
            wall_s=time.perf_counter() - begin,
            train_s=train_s,
            client_training=reports["client"],
            server_training=reports["server"],
            evaluation=evaluation,
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
        training = self.config.training
        plan = plan_aggregation(self.config, self.setup.fleet, self.trained, self.setup.local_samples)
        states = {model: self._model(model).state() for model in plan.sources}
        self.averages |= average_copies(
            plan.copies,
            states,
            statistics=training.norm_statistics == "shared",
            optimizer=training.optimizer_state == "average",
        )
        for model, units in plan.takes.items():
            self._model(model).load({unit: self.averages[key] for unit, key in units.items()})
        self.ledger.record(plan, round_number)
        self.trained.clear()

    def _evaluate(self) -> dict[int, EvaluationReport]:
        reports: dict[int, EvaluationReport] = {}
        size, n_test = self.config.evaluation.batch_size, len(self.setup.test_indices)
        for client_id, spec in enumerate(self.setup.fleet.clients):
            for first in range(0, n_test, size):
                work, payload, report = Work(client_id, 0, first, min(first + size, n_test)), None, None
                for leg in legs_of(EVALUATION, spec.has_server):
                    payload, own = leg.run(self._side(leg.side, client_id), work, payload)
                    report = own or report
                assert report is not None
                reports[client_id] = reports[client_id] + report if client_id in reports else report
        return reports

    def _side(self, side: Side, client_id: int) -> Any:
        """The client, or the server that takes up its features."""
        if side == "client":
            return self.clients[client_id]
        server_id = self.strategy.server_of(self.setup.fleet.clients[client_id])
        assert server_id is not None
        return self.servers[server_id]

    def _model(self, model: ModelId) -> Model:
        side: Client | Server = (
            self.clients[model.client_id] if model.side == "client" else self.servers[model.client_id]
        )
        return side.model
