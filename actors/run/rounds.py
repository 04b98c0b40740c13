"""The rounds of every strategy over actors. Reads as the method does; tensors never reach this process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeVar

import ray
from ray import ObjectRef

from actors.cluster.connection import ClusterContext
from actors.run.actor_status import ActorStatus
from actors.run.calls import Calls, Worked
from actors.run.interrupt import StopRequest
from actors.run.listener import Event
from actors.run.pipeline import Done, Pipeline, Stage, TurnLost, Work
from actors.run.recovery import Dropped, Recovery
from actors.run.run_state import Average, Lineage, RunState, taken
from actors.run.stages import EvaluationStage, RoundStage, TrainingStage, with_records
from actors.run.team import AGGREGATOR, Member, Team
from hsee_ray.method.aggregation import ModelId, plan_aggregation
from hsee_ray.method.reports import EvaluationReport, RoundReport, TrainReport
from hsee_ray.method.schedule import (
    aggregates_after,
    batches_per_message,
    evaluates_after,
    evaluation_window,
    learning_rate,
    ordered_steps,
    participants,
    queue_order,
    round_batches,
    window_batches,
)
from hsee_ray.method.setup import Setup
from hsee_ray.rundir.failures import Failure

K = TypeVar("K", bound=Hashable)
MemberCall = tuple[Member, Callable[[], "ObjectRef[Any]"]]
"""An actor, and what submits a call to it: a second time, too, when it has been replaced."""


class Rounds:
    """A run in progress: its actors, and how the state of every model can be made again."""

    def __init__(
        self,
        setup: Setup,
        team: Team,
        recovery: Recovery,
        stop: StopRequest,
        trained: Callable[[int], None],
        entered: Callable[[int, str], None],
        context: ClusterContext,
        worked: Worked = lambda member, stage, round_number, begin_s, end_s: None,
    ) -> None:
        """`trained` is told of every piece of training that is done, in samples; `entered` of every stage."""
        self.setup = setup
        self.config = setup.config
        self.team = team
        self.recovery = recovery
        self.stop = stop
        self.tell_trained = trained
        self.tell_entered = entered
        self.tell_worked = worked
        self.context = context
        self.one_turn = team.shared_server and setup.config.training.interleave == "batch"
        """Whether all clients share one turn at the server."""
        self.state = RunState()
        self.whole = RunState()
        """As it was after the last whole round."""
        self.missing: set[int] = set()
        """Clients that have no place on the cluster."""
        self.stage: RoundStage | None = None
        """What is under way, or was last."""
        self.actor_status = ActorStatus(team, recovery.tell, self._hold_states, self._does_without)

    def run_round(self, round_number: int) -> RoundReport:
        begin = time.perf_counter()
        starting = not self.team.requests.keys() <= self.team.started
        self._take_back_in(round_number)
        absent = set(self.missing)
        while True:
            who = [n for n in participants(self.config, self.setup.fleet, round_number) if n not in self.missing]
            self._load(self.state.ledger.catch_up(self.config, self.setup.fleet, who), round_number, "aggregate")
            try:
                client_training, server_training = self._train(round_number)
            except TurnLost:
                continue
            break
        train_s = time.perf_counter() - begin
        self.state.trained.update(client_training)
        if aggregates_after(self.config, round_number):
            self._aggregate(round_number)
        evaluation = self._evaluate(round_number) if evaluates_after(self.config, round_number) else {}
        self.actor_status.look(round_number, at_once=True)
        self.state.round_number = round_number
        self.whole = self.state.copy()
        return RoundReport(
            round_number=round_number,
            learning_rate=learning_rate(self.config.training, round_number),
            wall_s=time.perf_counter() - begin,
            train_s=train_s,
            client_training=client_training,
            server_training=server_training,
            evaluation=evaluation,
            starting=starting,
            missing=tuple(sorted((absent | self.missing) - client_training.keys())),
        )

    def go_to(self, state: RunState) -> None:
        """Puts every model into a state of the run."""
        self.state = state.copy()
        self.whole = state.copy()
        for model in self.team.models:
            self.team.restore(model, self.state.lineage(model))

    def save(self, directory: str) -> list[str]:
        """Every model's file is written in its actor; returns the digest lines of all of them."""

        def calls() -> dict[ModelId, MemberCall]:
            made: dict[ModelId, MemberCall] = {}
            for model in self.team.models:
                if model.side == "server":
                    made[model] = model, partial(self.team.submit, model, "save", directory, self.stem(model))
                elif model.client_id not in self.missing:
                    made[model] = model, partial(self.team.submit, model, "save", directory)
                elif (lineage := self.state.lineage(model)).snapshot is not None:
                    made[model] = AGGREGATOR, self._for_another("save", lineage, directory, self.stem(model))
            return made

        answers = self.all_of(calls, self.state.round_number, "save")
        return [line for lines in answers.values() for line in lines]

    def stem(self, model: ModelId) -> str:
        """Name of a model's final file."""
        spec = self.setup.fleet.clients[model.client_id]
        if model.side == "client":
            return spec.client_file
        return "server" if self.team.shared_server else spec.server_file

    def write_shard(self, model: ModelId, lineage: Lineage, uri: str, name: str, spread: bool) -> MemberCall:
        """The call that writes a model's file of a checkpoint: in an actor of its tier, or in the aggregator."""
        if not spread or self.is_missing(model):
            return AGGREGATOR, self._for_another("write_shard", lineage, uri, name)
        takes, averages = taken(lineage.loads)
        writer = self.neighbour(model)
        return writer, partial(self.team.submit, writer, "write_shard", uri, name, lineage.snapshot, takes, *averages)

    def neighbour(self, model: ModelId) -> ModelId:
        """Who sits in an actor of the model's tier, for what can be done in any of them; itself where it sits."""
        slots = self.team.slots.of_pool(model)
        if self.team.slots.of(model) is not None:
            return model
        return self.team.slots.occupant(slots[model.client_id % len(slots)])

    def is_missing(self, model: ModelId) -> bool:
        """Whether a client is left out because it has no place."""
        return model.side == "client" and model.client_id in self.missing

    def _does_without(self, member: Member) -> bool:
        """Whether an actor is that of a client that is left out."""
        return not isinstance(member, str) and self.is_missing(self.team.slots.occupant(member))

    def _for_another(self, method: str, lineage: Lineage, *args: Any) -> Callable[[], ObjectRef[Any]]:
        def call() -> ObjectRef[Any]:
            method_of_actor = getattr(self.team.actor(AGGREGATOR), method)
            takes, averages = taken(lineage.loads)
            ref: ObjectRef[Any] = method_of_actor.remote(*args, lineage.snapshot, takes, *averages)
            return ref

        return call

    def calls(self, round_number: int, stage: str) -> Calls[Any]:
        """A new set of calls under way."""
        return Calls(self.team, self.actor_status, round_number, stage, self.stop, self.tell_worked)

    def pipeline(
        self, works: Sequence[Work], stage: Stage, calls: Calls[Any], window: int, one_turn: bool = False
    ) -> Pipeline:
        """Work for the clients and servers of this run, each client at most `window` pieces ahead."""
        shared, at_once, cores = self.team.shared_server, self.context.at_once, self.context.cores
        return Pipeline(works, stage, calls, at_once, window, shared, cores, one_turn)

    @property
    def evaluation_window(self) -> int:
        """How many batches of an evaluation a client may be ahead of its server."""
        samples = self.config.evaluation.batch_size
        batch_bytes = max(self.setup.feature_bytes(spec, samples) for spec in self.setup.fleet.clients)
        return evaluation_window(self.config.pipeline, batch_bytes)

    def _hold_states(self, leaving: Set[str]) -> None:
        """Copies the states that are on these nodes only to the aggregator's, while they are still there."""
        refs = {ref for state in (self.state, self.whole) for ref in state.references}
        if self.stage is not None:
            refs |= self.stage.references
        where = ray.experimental.get_object_locations(list(refs)) if refs else {}
        only_there = [ref for ref, found in where.items() if found["node_ids"] and leaving >= set(found["node_ids"])]
        if only_there:
            self.team.actor(AGGREGATOR).hold.remote(*only_there)

    def all_of(self, calls: Callable[[], Mapping[K, MemberCall]], round_number: int, stage: str) -> dict[K, Any]:
        """As `all`, of calls that are made anew for those whom a client that was left out could not answer."""
        answers: dict[K, Any] = {}
        while left := {key: call for key, call in calls().items() if key not in answers}:
            answers.update(self.all(left, round_number, stage))
        return answers

    def all(self, calls: Mapping[K, MemberCall], round_number: int, stage: str) -> dict[K, Any]:
        """The answers to calls of actors. An actor that fails is replaced and called again.

        Models that take turns are called when they have a slot.
        """
        self.tell_entered(round_number, stage)
        self.team.slots.release_all()
        under_way: Calls[K] = self.calls(round_number, stage)
        answers: dict[K, Any] = {}
        waiting = self._lined_up(calls, calls)
        while any(waiting.values()) or under_way:
            for queue in waiting.values():
                while queue and self._slot(calls[queue[0]][0]):
                    member, call = calls[queue[0]]
                    under_way.add(call(), member, queue.popleft())
            answer = under_way.next()
            if answer.failure is None:
                self.recovery.answered(answer.member, round_number, stage)
                answers[answer.tag] = answer.value
                if not isinstance(answer.member, str) and not under_way.owes(answer.member):
                    self.team.slots.leave(answer.member)
                continue
            kept = self.replace(answer.member, answer.failure)
            # One that has moved along is as new as the one that failed.
            anew = {answer.member, *self.team.relocated}
            under_way.forget(lambda member, _, anew=anew: member in anew)  # type: ignore[misc]
            if not kept:
                anew.discard(answer.member)
            again = [key for key, (member, _) in calls.items() if member in anew and key not in answers]
            later = (key for queue in waiting.values() for key in queue if kept or calls[key][0] != answer.member)
            waiting = self._lined_up(calls, dict.fromkeys([*again, *later]))
        return answers

    def _lined_up(self, calls: Mapping[K, MemberCall], keys: Iterable[K]) -> dict[str, deque[K]]:
        """Keys of calls by those that wait for the same slots."""
        waiting: dict[str, deque[K]] = {}
        for key in keys:
            waiting.setdefault(self.team.tier(calls[key][0]), deque()).append(key)
        return waiting

    def _slot(self, member: Member) -> bool:
        return isinstance(member, str) or self.team.slot({member: self.state.lineage(member)})

    def _train(self, round_number: int) -> tuple[dict[int, TrainReport], dict[int, TrainReport]]:
        self.tell_entered(round_number, "train")
        works, window = self._training_works(round_number)
        stage = TrainingStage(self, round_number)
        calls: Calls[Any] = self.calls(round_number, "train")
        pipeline = self.pipeline(works, stage, calls, window, self.one_turn)
        parts: dict[int, dict[int, Done]] = {}
        turns: dict[int, list[Work]] = {}
        for work in works:
            turns.setdefault(work.turn, []).append(work)
        finished: set[int] = set()
        for done in pipeline.run():
            work = done.work
            of_client = parts.setdefault(work.client, {})
            if work.first not in of_client:
                self.tell_trained(done.client_report.samples)
            of_client[work.first] = done
            if done.turn_done:
                stage.commit(turns[work.turn])
                finished.update(work.client for work in turns[work.turn])
        clients: dict[int, TrainReport] = {}
        servers: dict[int, TrainReport] = {}
        for client_id in sorted(finished):
            in_order = [part for _, part in sorted(parts[client_id].items())]
            clients[client_id] = sum((part.client_report for part in in_order), TrainReport(0, ()))
            if self.setup.fleet.clients[client_id].has_server:
                servers[client_id] = sum((part.server_report for part in in_order), TrainReport(0, ()))
        return clients, servers

    def _training_works(self, round_number: int) -> tuple[list[Work], int]:
        """The round's work in the order that a shared server must see, and how many pieces may be in flight."""
        training, fleet = self.config.training, self.setup.fleet
        queue = [n for n in queue_order(self.config, fleet, round_number) if n not in self.missing]
        n_steps = {
            n: len(round_batches(training, self.setup.local_samples[n], fleet.clients[n].batch_size)) for n in queue
        }
        per_message = (batches_per_message(self.config.pipeline, self._batch_bytes(n), n_steps[n]) for n in queue)
        together = 1 if self.one_turn else min(per_message, default=1)
        pieces = {client_id: -(-steps // together) for client_id, steps in n_steps.items()}
        works = [
            Work(
                client=client_id,
                server=self.team.server_of(fleet.clients[client_id]),
                first=piece * together,
                last=min((piece + 1) * together, n_steps[client_id]),
                turn=0 if self.one_turn else client_id,
            )
            for client_id, piece in ordered_steps(queue, pieces, training.interleave)
        ]
        batches = window_batches(self.config.pipeline, max(map(self._batch_bytes, queue), default=1))
        return with_records(works), max(1, batches // together)

    def _batch_bytes(self, client_id: int) -> int:
        spec = self.setup.fleet.clients[client_id]
        return self.setup.feature_bytes(spec, spec.batch_size)

    def _evaluate(self, round_number: int) -> dict[int, EvaluationReport]:
        self.tell_entered(round_number, "evaluate")
        size, n_test = self.config.evaluation.batch_size, len(self.setup.test_indices)
        works = [
            Work(spec.client_id, self.team.server_of(spec), first, min(first + size, n_test), turn=spec.client_id)
            for spec in self.setup.fleet.clients
            if spec.client_id not in self.missing
            for first in range(0, n_test, size)
        ]
        calls: Calls[Any] = self.calls(round_number, "evaluate")
        stage = EvaluationStage(self, round_number)
        pipeline = self.pipeline(works, stage, calls, self.evaluation_window)
        parts: dict[int, dict[int, EvaluationReport]] = {}
        for done in pipeline.run():
            parts.setdefault(done.work.client, {})[done.work.first] = done.server_report or done.client_report
        reports: dict[int, EvaluationReport] = {}
        for client_id in sorted(parts.keys() - self.missing):
            first, *others = parts[client_id].values()
            reports[client_id] = sum(others, first)
        return reports

    def _aggregate(self, round_number: int) -> None:
        state = self.state
        plan = plan_aggregation(self.config, self.setup.fleet, state.trained, self.setup.local_samples)
        if plan.copies:
            snapshots = [state.lineage(model).snapshot for model in plan.sources]
            averages: dict[str, Average] = {}

            def call() -> ObjectRef[Any]:
                average: Any = self.team.actor(AGGREGATOR).average.options(num_returns=2)
                ref, nothing = average.remote(plan.copies, plan.sources, *snapshots)
                averages.update({key: Average(ref, key) for key in plan.copies})
                return nothing

            self.all({AGGREGATOR: (AGGREGATOR, call)}, round_number, "aggregate")
            state.averages.update(averages)
            self._load(plan.takes, round_number, "aggregate")
        state.ledger.record(plan, round_number)
        state.trained.clear()

    def _load(self, takes: Mapping[ModelId, Mapping[str, str]], round_number: int, stage: str) -> None:
        """Hands averages to the models that take them, and waits until all have that sit; others do when they sit."""
        calls: dict[ModelId, MemberCall] = {}
        for model, units in takes.items():
            averages = {unit: self.state.averages[key] for unit, key in units.items()}
            self.state.lineages[model] = self.state.lineage(model).taking(averages)
            if self.team.slots.of(model) is not None:
                where, refs = taken(averages)
                calls[model] = model, partial(self.team.submit, model, "load", where, *refs)
        if calls:
            self.all(calls, round_number, stage)

    def replace(self, member: Member, failure: Failure) -> bool:
        """Puts a new actor in the place of one that failed; False when it is a client that is now left out."""
        try:
            self.recovery.replace(member, failure, self.state)
        except Dropped:
            assert not isinstance(member, str)
            self.missing.add(member.client_id)
            if self.state.lineage(member).snapshot is None:
                # It has not trained yet: averages that it took to begin are forgotten, it takes the newest later.
                self.state.lineages.pop(member, None)
                self.state.ledger.forget(member)
            return False
        return True

    def _take_back_in(self, round_number: int) -> None:
        """Clients that have found a place since they were left out take part again."""
        if self.missing:
            self.actor_status.look(round_number, at_once=True)
        for client_id in sorted(self.missing):
            client = ModelId("client", client_id)
            if any(slot in self.actor_status.present for slot in self.team.slots.of_pool(client)):
                self.missing.discard(client_id)
                self.recovery.tell(Event(round_number, "start", self.team.label(client), "takes part again"))
