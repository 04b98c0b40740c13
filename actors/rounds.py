"""The rounds of every strategy over actors. Reads as the method does; tensors never reach this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray import ObjectRef

from actors.pipeline import Pipeline, Work, fetch
from actors.placement import Team
from hsee_ray.aggregation import Ledger, ModelId, plan_aggregation
from hsee_ray.reports import EvaluationReport, RoundReport, TrainReport
from hsee_ray.schedule import (
    aggregates_after,
    evaluates_after,
    learning_rate,
    ordered_steps,
    participants,
    queue_order,
    round_batches,
)
from hsee_ray.setup import Setup

MESSAGE_BYTES = 256 * 1024
"""Batches travel together until a message is about this large, so that small ones do not pay for each call."""
EVALUATION_WINDOW = 2
"""Evaluation batches are large: two in flight keep client and server busy."""


class Rounds:
    """A run in progress: its actors, the newest averages by reference, and who has trained since."""

    def __init__(self, setup: Setup, team: Team, trained: Callable[[int], None]) -> None:
        """`trained` is told of every piece of training that is done, in samples."""
        self.setup = setup
        self.tell_trained = trained
        self.config = setup.config
        self.team = team
        self.concurrent = setup.config.cluster.concurrent or os.cpu_count() or 1
        self.ledger = Ledger()
        self.averages: dict[str, ObjectRef[Any]] = {}
        self.trained: set[int] = set()

    def run(self) -> Iterator[RoundReport]:
        """Trains all rounds, one at a time."""
        for round_number in range(1, self.config.training.rounds + 1):
            yield self.run_round(round_number)

    def run_round(self, round_number: int) -> RoundReport:
        begin = time.perf_counter()
        who = participants(self.config, self.setup.fleet, round_number)
        self._load(self.ledger.catch_up(self.config, self.setup.fleet, who), round_number)
        client_training, server_training = self._train(round_number)
        train_s = time.perf_counter() - begin
        self.trained.update(who)
        if aggregates_after(self.config, round_number):
            self._aggregate(round_number)
        evaluation = self._evaluate(round_number) if evaluates_after(self.config, round_number) else {}
        return RoundReport(
            round_number=round_number,
            learning_rate=learning_rate(self.config.training, round_number),
            wall_s=time.perf_counter() - begin,
            train_s=train_s,
            client_training=client_training,
            server_training=server_training,
            evaluation=evaluation,
        )

    def save(self, directory: str) -> list[str]:
        """Every actor writes its model file; returns the digest lines of all of them."""
        fleet, last = self.setup.fleet, self.config.training.rounds
        saves: dict[str, ObjectRef[Any]] = {
            f"client {spec.label}": self.team.clients[spec.number].save.remote(directory) for spec in fleet.clients
        }
        for number, server in self.team.servers.items():
            stem = "server" if self.team.shared_server else fleet.clients[number].server_file
            saves[stem] = server.save.remote(directory, stem)
        timeout_s = self.config.failures.step_timeout_s
        return [line for who, ref in saves.items() for line in fetch(ref, who, last, "save", timeout_s)]

    def _train(self, round_number: int) -> tuple[dict[int, TrainReport], dict[int, TrainReport]]:
        def client_call(work: Work) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
            client = self.team.clients[work.client]
            return client.train.options(num_returns=2).remote(round_number, work.first, work.last)

        def server_call(server: int, work: Work, features: ObjectRef[Any]) -> ObjectRef[Any]:
            return self.team.servers[server].train.remote(work.client, round_number, features)

        parts: dict[int, list[tuple[int, TrainReport, TrainReport | None]]] = {}
        works, window = self._training_works(round_number)
        pipeline = Pipeline(works, client_call, server_call, self.concurrent, window, self.team.shared_server)
        for done in pipeline.run(round_number, "train", self._timeout_s(round_number)):
            self.tell_trained(done.client_report.samples)
            part = (done.work.first, done.client_report, done.server_report)
            parts.setdefault(done.work.client, []).append(part)
        nothing = TrainReport(0, ())
        clients = {n: sum((part[1] for part in sorted(parts[n])), nothing) for n in sorted(parts)}
        servers = {
            n: sum((part[2] for part in sorted(parts[n]) if part[2] is not None), nothing)
            for n in sorted(parts)
            if self.setup.fleet.clients[n].has_server
        }
        return clients, servers

    def _training_works(self, round_number: int) -> tuple[list[Work], int]:
        """The round's work in the order that a shared server must see, and how many pieces may be in flight."""
        training, fleet = self.config.training, self.setup.fleet
        queue = queue_order(self.config, fleet, round_number)
        n_steps = {
            n: len(round_batches(training, self.setup.local_samples[n], fleet.clients[n].batch_size)) for n in queue
        }
        together = 1 if training.turn == "batch" else max(1, min(self._steps_per_message(n) for n in queue))
        pieces = {number: -(-steps // together) for number, steps in n_steps.items()}
        works = [
            Work(
                client=number,
                server=self.team.server_of(fleet.clients[number]),
                first=piece * together,
                last=min((piece + 1) * together, n_steps[number]),
            )
            for number, piece in ordered_steps(queue, pieces, training.turn)
        ]
        return works, max(1, self.config.pipeline.max_in_flight // together)

    def _steps_per_message(self, number: int) -> int:
        spec = self.setup.fleet.clients[number]
        batch_bytes = spec.batch_size * self.setup.feature_bytes(spec.cut)
        return min(-(-MESSAGE_BYTES // batch_bytes), max(1, self.config.pipeline.max_in_flight // 2))

    def _timeout_s(self, round_number: int) -> float:
        """How long nothing may come back; the first round also waits for its actors to start."""
        starting = self.config.cluster.placement_timeout_s if round_number == 1 else 0.0
        return self.config.failures.step_timeout_s + starting

    def _evaluate(self, round_number: int) -> dict[int, EvaluationReport]:
        def client_call(work: Work) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
            client = self.team.clients[work.client]
            return client.evaluate.options(num_returns=2).remote(work.first, work.last)

        def server_call(server: int, work: Work, features: ObjectRef[Any]) -> ObjectRef[Any]:
            return self.team.servers[server].evaluate.remote(work.client, features)

        size, n_test = self.config.evaluation.batch_size, len(self.setup.test_indices)
        works = [
            Work(spec.number, self.team.server_of(spec), first, min(first + size, n_test))
            for spec in self.setup.fleet.clients
            for first in range(0, n_test, size)
        ]
        reports: dict[int, EvaluationReport] = {}
        pipeline = Pipeline(
            works, client_call, server_call, self.concurrent, EVALUATION_WINDOW, self.team.shared_server
        )
        for done in pipeline.run(round_number, "evaluate", self.config.failures.step_timeout_s):
            number, report = done.work.client, done.server_report or done.client_report
            reports[number] = reports[number] + report if number in reports else report
        return dict(sorted(reports.items()))

    def _aggregate(self, round_number: int) -> None:
        plan = plan_aggregation(self.config, self.setup.fleet, self.trained, self.setup.local_samples)
        keys = list(plan.copies)
        if keys:
            states = [self._actor(model).state.remote() for model in plan.sources]
            groups = tuple(plan.copies[key] for key in keys)
            refs: Any = self.team.aggregator.average.options(num_returns=len(keys)).remote(
                groups, plan.sources, *states
            )
            self.averages.update(zip(keys, [refs] if len(keys) == 1 else refs, strict=True))
            self._load(plan.takes, round_number)
        self.ledger.record(plan, round_number)
        self.trained.clear()

    def _load(self, takes: dict[ModelId, dict[str, str]], round_number: int) -> None:
        """Hands averages to the models that take them, and waits until all have."""
        calls: dict[ModelId, ObjectRef[Any]] = {
            model: self._actor(model).load.remote(tuple(units), *(self.averages[key] for key in units.values()))
            for model, units in takes.items()
        }
        for model, ref in calls.items():
            fetch(ref, f"{model.side} {model.number}", round_number, "aggregate", self.config.failures.step_timeout_s)

    def _actor(self, model: ModelId) -> Any:
        return (self.team.clients if model.side == "client" else self.team.servers)[model.number]
