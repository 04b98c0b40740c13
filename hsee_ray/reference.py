"""Every strategy in one process: the executable specification. A run over actors ends in the same bits."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from hsee_ray.method.aggregation import Ledger, ModelId, average_copies, plan_aggregation
from hsee_ray.method.reports import EvaluationReport, RoundReport, TrainReport
from hsee_ray.method.schedule import (
    aggregates_after,
    evaluates_after,
    learning_rate,
    ordered_steps,
    participants,
    queue_order,
    round_batches,
)
from hsee_ray.method.setup import Setup, build_client, build_server, mapped_client_data, served_by_one
from hsee_ray.models.model import Model
from hsee_ray.models.state import Arrays, UnitState, named_tensors
from hsee_ray.models.weights import digest_lines, weights_sha256


class Reference:
    """All clients and servers of a run, side by side in this process."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(setup.config.training.threads)
        cpu = torch.device("cpu")
        self.setup = setup
        self.config = setup.config
        self.clients = [
            build_client(setup, spec.client_id, mapped_client_data(setup, spec.client_id), cpu)
            for spec in setup.fleet.clients
        ]
        with_server = served_by_one(setup)
        if self.config.training.strategy == "sequential" and with_server:
            shared = build_server(setup, with_server, cpu)
            self.server_of = dict.fromkeys(with_server, shared)
        else:
            self.server_of = {client_id: build_server(setup, [client_id], cpu) for client_id in with_server}
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
        client_training: dict[int, TrainReport] = {}
        server_training: dict[int, TrainReport] = {}
        for client_id, step in self._steps(round_number):
            packet, report = self.clients[client_id].train(round_number, step, step + 1)
            client_training[client_id] = client_training.get(client_id, TrainReport(0, ())) + report
            if client_id in self.server_of:
                report = self.server_of[client_id].train(client_id, round_number, packet)
                server_training[client_id] = server_training.get(client_id, TrainReport(0, ())) + report
        train_s = time.perf_counter() - begin
        self.trained.update(who)
        if aggregates_after(self.config, round_number):
            self._aggregate(round_number)
        evaluation = self._evaluate() if evaluates_after(self.config, round_number) else {}
        return RoundReport(
            round_number=round_number,
            learning_rate=learning_rate(self.config.training, round_number),
            wall_s=time.perf_counter() - begin,
            train_s=train_s,
            client_training=client_training,
            server_training=server_training,
            evaluation=evaluation,
        )

    def files(self) -> dict[str, Arrays]:
        """Final tensors by file stem."""
        tensors = {client.spec.client_file: named_tensors(client.model.state()) for client in self.clients}
        for client_id, server in self.server_of.items():
            shared = self.config.training.strategy == "sequential"
            stem = "server" if shared else self.setup.fleet.clients[client_id].server_file
            if stem not in tensors:
                tensors[stem] = server.tensors()
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
        size = self.config.evaluation.batch_size
        for client_id, client in enumerate(self.clients):
            for first in range(0, len(self.setup.test_indices), size):
                packet, report = client.evaluate(first, first + size)
                if report is None:
                    report = self.server_of[client_id].evaluate(client_id, packet)
                reports[client_id] = reports[client_id] + report if client_id in reports else report
        return reports

    def _model(self, model: ModelId) -> Model:
        if model.side == "client":
            return self.clients[model.client_id].model
        if self.config.training.strategy == "sequential":
            return next(iter(self.server_of.values())).model
        return self.server_of[model.client_id].model
