"""The rounds of every strategy over actors. Reads as the method does; tensors never reach this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeVar

import ray
from ray import ObjectRef

from actors.cluster.connection import ClusterContext
from actors.run.actor_status import ActorStatus
from actors.run.admission import Limits
from actors.run.calls import TICK_S, Calls, Worked
from actors.run.fanout import K, MemberCall, fan_out
from actors.run.pieces import Piece, RetryUnit
from actors.run.pipeline import Pipeline, Reports
from actors.run.recovery import LeftOut, Recovery
from actors.run.run_state import Average, RunState, average_refs
from actors.run.stages import Stage, TrainingStage
from actors.run.team import AGGREGATOR, Member, Team
from actors.workers.contract import LoadAverages, ObjectList, WorkerRequest
from hsee_ray.config.fleet import ModelId
from hsee_ray.errors import RunError
from hsee_ray.method.aggregation import plan_aggregation
from hsee_ray.method.legs import Side, Work, evaluating
from hsee_ray.method.predictions import Part
from hsee_ray.method.reports import EvaluationReport, RoundReport, TrainReport, learnt
from hsee_ray.method.schedule import (
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
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Event

T = TypeVar("T")


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
        """Calls `trained` with the samples of every finished piece of training, and `entered` at every stage."""
        self.setup = setup
        self.config = setup.config
        self.strategy = setup.strategy
        self.team = team
        self.recovery = recovery
        self.stop = stop
        self.tell_trained = trained
        self.tell_entered = entered
        self.tell_worked = worked
        self.context = context
        self.one_unit = self.strategy.retries_together(setup.config.training)
        """Whether all clients of a round are one retry unit."""
        self.state = RunState()
        self.whole = RunState()
        """As it was after the last whole round."""
        self.stage: Stage | None = None
        """Stage in progress, or the last one."""
        self.snapshots = True
        """Whether training gives states to go back to; a benchmark does without them."""
        self.status = ActorStatus(team, recovery.tell)
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        self._loop.close()

    def run_round(self, round_number: int) -> RoundReport:
        begin = time.perf_counter()
        starting = not self.team.requests.keys() <= self.team.started
        self._take_back_in(round_number)
        absent = set(self.team.left_out)
        while True:
            who = self._available(round_number)
            self._load(self.state.ledger.catch_up(self.config, self.setup.fleet, who), round_number, "aggregate")
            try:
                training = self._train(round_number)
            except LeftOut:
                continue
            if training["client"]:
                break
        train_s = time.perf_counter() - begin
        self.state.trained |= learnt(training, round_number)
        if self.strategy.aggregates_after(self.config.training, round_number):
            self._aggregate(round_number)
        evaluates = evaluates_after(self.config, round_number)
        evaluation = self._evaluate(round_number, "test") if evaluates else {}
        validation = self._evaluate(round_number, "validation") if evaluates else {}
        self._look(round_number)
        self.state.round_number = round_number
        self.whole = self.state.copy()
        return RoundReport(
            round_number=round_number,
            learning_rate=learning_rate(self.config.training, round_number),
            wall_s=time.perf_counter() - begin,
            train_s=train_s,
            client_training=training["client"],
            server_training=training["server"],
            evaluation=evaluation,
            validation=validation,
            starting=starting,
            missing=tuple(sorted((absent | self.team.left_out) - training["client"].keys())),
        )

    def _available(self, round_number: int) -> list[int]:
        """Participants of a round that have a place. Waits until there is one. Raises RunError when nobody gets one."""
        end = time.monotonic() + self.config.cluster.placement_timeout_s
        drawn = participants(self.config, self.setup.fleet, round_number)
        while True:
            if who := [client_id for client_id in drawn if client_id not in self.team.left_out]:
                return who
            if time.monotonic() >= end:
                raise RunError(
                    f"round {round_number}: none of its {len(drawn)} clients has had a place within "
                    f"{self.config.cluster.placement_timeout_s:g} s (cluster.placement_timeout_s)"
                )
            self.stop.check()
            time.sleep(TICK_S)
            self._take_back_in(round_number)

    def go_to(self, state: RunState) -> None:
        """Puts every model into a state of the run."""
        self.state = state.copy()
        self.whole = state.copy()
        for model in self.team.models:
            self.team.restore(model, self.state.lineage(model))

    def run_stage(
        self,
        stage: Stage,
        units: Sequence[RetryUnit],
        round_number: int,
        name: str,
        window: int,
        done: Callable[[Piece, Reports], None] = lambda piece, reports: None,
    ) -> list[tuple[Piece, Reports]]:
        """Pieces of the units with their reports, in the round's order; a client is at most `window` pieces ahead."""
        self.tell_entered(round_number, name)
        self.stage = stage
        calls = self._calls(round_number, name)
        limits = Limits(self.context.at_once, window, self.context.cores)
        pipeline = Pipeline(stage, calls, limits, self.strategy.shared_server, stage.lockstep, done)
        reports = {piece: of for unit in self._watched(calls, pipeline.run(units)) for piece, of in unit.items()}
        return sorted(reports.items(), key=lambda item: item[0].position)

    def sample_units(self, n_samples: Mapping[int, int], round_number: int) -> list[RetryUnit]:
        """So many samples of each client, in batches of an evaluation."""
        size = self.config.evaluation.batch_size
        bounds = [
            (client_id, first, min(first + size, samples))
            for client_id, samples in n_samples.items()
            if client_id not in self.team.left_out
            for first in range(0, samples, size)
        ]
        return self._units(bounds, round_number, one_unit=False)

    @property
    def evaluation_window(self) -> int:
        """How many batches of an evaluation a client may be ahead of its server."""
        samples = self.config.evaluation.batch_size
        batch_bytes = max(self.setup.feature_bytes(spec, samples) for spec in self.setup.fleet.clients)
        return evaluation_window(self.config.pipeline, batch_bytes)

    def all_of(self, calls: Callable[[], Mapping[K, MemberCall]], round_number: int, stage: str) -> dict[K, Any]:
        """As `all`, of calls that are made again for those whom a client that was left out could not answer."""
        answers: dict[K, Any] = {}
        while left := {key: call for key, call in calls().items() if key not in answers}:
            answers.update(self.all(left, round_number, stage))
        return answers

    def all(self, calls: Mapping[K, MemberCall], round_number: int, stage: str) -> dict[K, Any]:
        """The results of calls of actors; an actor that fails is replaced and called again."""
        self.tell_entered(round_number, stage)
        under_way = self._calls(round_number, stage)
        return self._watched(under_way, fan_out(calls, under_way, self.recovery, self.state))

    def stem(self, model: ModelId) -> str:
        """Name of a model's final file."""
        return self.strategy.file_of(self.setup.fleet, model)

    def _calls(self, round_number: int, stage: str) -> Calls:
        def answered(member: Member) -> None:
            self.recovery.answered(member, round_number, stage)

        return Calls(self.team, self.status, round_number, stage, answered, self.tell_worked)

    def _watched(self, calls: Calls, work: Coroutine[Any, Any, T]) -> T:
        """Runs work to its end while its calls are watched. Raises what it raises, and GraceOver."""

        async def both() -> T:
            watching = asyncio.create_task(calls.watch(self.stop, self._hold_states))
            working = asyncio.create_task(work)
            try:
                await asyncio.wait([watching, working], return_when=asyncio.FIRST_COMPLETED)
                return working.result() if working.done() else watching.result()  # type: ignore[return-value]
            finally:
                for task in (watching, working):
                    task.cancel()
                await asyncio.gather(watching, working, return_exceptions=True)

        return self._loop.run_until_complete(both())

    def _look(self, round_number: int) -> None:
        if nodes := self.status.look(round_number):
            self._hold_states(nodes)

    def _hold_states(self, leaving: Set[str]) -> None:
        """Copies the states that are on these nodes only to the aggregator's, while they are still there."""
        refs = {ref for state in (self.state, self.whole) for ref in state.references}
        if self.stage is not None:
            refs |= self.stage.references
        where = ray.experimental.get_object_locations(list(refs)) if refs else {}
        only_there = [ref for ref, found in where.items() if found["node_ids"] and leaving >= set(found["node_ids"])]
        if only_there:
            self.team.actor(AGGREGATOR).hold.remote(*only_there)

    def _train(self, round_number: int) -> dict[Side, dict[int, TrainReport]]:
        """Reports of both sides by client. Raises LeftOut when the whole round must begin again without a client."""
        units, window = self._training_units(round_number)
        stage = TrainingStage(self.team, self.recovery, self.state, self.strategy, self.one_unit, self.snapshots)
        told: set[int] = set()

        def done(piece: Piece, reports: Reports) -> None:
            if piece.position not in told:
                told.add(piece.position)
                self.tell_trained(reports["client"].samples)

        reports: dict[Side, dict[int, TrainReport]] = {"client": {}, "server": {}}
        for piece, of_piece in self.run_stage(stage, units, round_number, "train", window, done):
            for side, report in of_piece.items():
                own, client_id = reports[side], piece.work.client_id
                own[client_id] = own[client_id] + report if client_id in own else report
        return {side: dict(sorted(own.items())) for side, own in reports.items()}

    def _training_units(self, round_number: int) -> tuple[list[RetryUnit], int]:
        """The round's work in the order that a shared server must see, and how many pieces may be in flight."""
        training, fleet = self.config.training, self.setup.fleet
        queue = [n for n in queue_order(self.config, fleet, round_number) if n not in self.team.left_out]
        n_steps = {
            n: len(round_batches(training, self.setup.local_samples[n], fleet.clients[n].batch_size)) for n in queue
        }
        per_message = (batches_per_message(self.config.pipeline, self._batch_bytes(n), n_steps[n]) for n in queue)
        together = 1 if self.one_unit or self.strategy.lockstep(training) else min(per_message, default=1)
        n_pieces = {client_id: -(-steps // together) for client_id, steps in n_steps.items()}
        bounds = [
            (client_id, piece * together, min((piece + 1) * together, n_steps[client_id]))
            for client_id, piece in ordered_steps(queue, n_pieces, training.interleave)
        ]
        batches = window_batches(self.config.pipeline, max(map(self._batch_bytes, queue), default=1))
        return self._units(bounds, round_number, self.one_unit, n_steps), max(1, batches // together)

    def _units(
        self,
        bounds: Iterable[tuple[int, int, int]],
        round_number: int,
        one_unit: bool,
        n_steps: Mapping[int, int] | None = None,
    ) -> list[RetryUnit]:
        """Retry units of (client, first, last) in the round's order: one for each client, or one for all.

        `n_steps` are those of every client, in training.
        """
        units: dict[int, list[Piece]] = {}
        for position, (client_id, first, last) in enumerate(bounds):
            server = self.strategy.server_of(self.setup.fleet.clients[client_id])
            ends_round = n_steps is not None and last == n_steps[client_id]
            piece = Piece(position, Work(client_id, round_number, first, last, ends_round), server)
            units.setdefault(0 if one_unit else client_id, []).append(piece)
        return [RetryUnit(pieces) for pieces in units.values()]

    def _batch_bytes(self, client_id: int) -> int:
        spec = self.setup.fleet.clients[client_id]
        return self.setup.feature_bytes(spec, spec.batch_size)

    def _evaluate(self, round_number: int, part: Part) -> dict[int, EvaluationReport]:
        units = self.sample_units(self.setup.samples_of(part), round_number)
        if not units:
            return {}
        stage = Stage(self.team, self.recovery, self.state, lambda client: evaluating(part))
        reports: dict[int, EvaluationReport] = {}
        for piece, of_piece in self.run_stage(stage, units, round_number, "evaluate", self.evaluation_window):
            client_id, report = piece.work.client_id, of_piece.get("server") or of_piece["client"]
            reports[client_id] = reports[client_id] + report if client_id in reports else report
        return {client_id: reports[client_id] for client_id in sorted(reports.keys() - self.team.left_out)}

    def _aggregate(self, round_number: int) -> None:
        state = self.state
        plan = plan_aggregation(self.config, self.setup.fleet, state.trained, self.setup.local_samples)
        if plan.copies:
            objects = ObjectList()
            averages: dict[str, Average] = {}
            sources = {model: objects.index(state.snapshot(model)) for model in plan.sources}
            newest = {key: state.averages[key] for key in plan.copies if key in state.averages}
            remembers = self.config.training.average_step.name != "mean"
            before = average_refs(newest if remembers else {}, objects)

            def call() -> ObjectRef[Any]:
                average: Any = self.team.actor(AGGREGATOR).average.options(num_returns=2)
                ref, nothing = average.remote(plan.copies, sources, before, *objects.refs)
                averages.update({key: Average(ref, key) for key in plan.copies})
                return nothing

            self.all({AGGREGATOR: (AGGREGATOR, call)}, round_number, "aggregate")
            state.averages.update(averages)
            self._load(plan.takes, round_number, "aggregate")
        state.ledger.record(plan, round_number)
        state.trained.clear()

    def _load(self, taken: Mapping[ModelId, Mapping[str, str]], round_number: int, stage: str) -> None:
        """Hands averages to the models that take them, by unit and key.

        Waits until all have them that have a slot; the others get them with their slot.
        """
        calls: dict[ModelId, MemberCall] = {}
        for model, units in taken.items():
            averages = {unit: self.state.averages[key] for unit, key in units.items()}
            self.state.lineages[model] = self.state.lineage(model).with_averages(averages)
            if self.team.slots.of(model) is not None:
                objects = ObjectList()
                request = LoadAverages(average_refs(averages, objects))
                calls[model] = model, partial(self._submit, model, request, objects)
        if calls:
            self.all(calls, round_number, stage)

    def _submit(self, model: ModelId, request: WorkerRequest, objects: ObjectList) -> ObjectRef[Any]:
        return self.team.submit(model, request, objects)[-1]

    def _take_back_in(self, round_number: int) -> None:
        """Clients that have found a place since they were left out take part again."""
        if self.team.left_out:
            self._look(round_number)
        for client_id in sorted(self.team.left_out):
            client = ModelId("client", client_id)
            if self.status.has_place(client):  # the slot is its own, for only then it can be left out
                self.team.left_out.discard(client_id)
                self.team.restore(client, self.state.lineage(client))
                self.recovery.tell(Event(round_number, "start", self.team.label(client), "takes part again"))
