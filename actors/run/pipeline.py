"""Moves the batches of a round along their trips over the cut: a bounded number in flight, none waited for one by one.

A retry unit is what is repeated after a failure: one client's pieces of a round, or those of all clients where a server
sees them batch by batch. It is a coroutine, and each of its pieces is one, too: the piece awaits the result of each leg
and submits the next. A failure is an exception that gives the unit's tasks up; what they have sent is forgotten, models
that have moved on are put back, and the unit begins again.

Order: a client's calls are submitted in the order of its pieces, a server's in the order of the round. A shared server
has done with a unit before it begins the next one, while later clients already compute ahead.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from ray import ObjectRef

from actors.run.admission import Admission, Limits
from actors.run.calls import Calls
from actors.run.pieces import Piece, RetryUnit
from actors.run.recovery import LeftOut
from actors.workers.contract import Outcome
from hsee_ray.config.fleet import ModelId
from hsee_ray.method.legs import Leg, Side, Trip

Reports = dict[Side, Any]
"""Reports of a piece by side, added up over its legs."""
UnitReports = dict[Piece, Reports]


class Stage(Protocol):
    """Interface of a stage of a round to the pipeline."""

    def trip_of(self, piece: Piece) -> Trip:
        """The legs of a piece."""

    def pool(self, piece: Piece) -> str:
        """Clients of one pool wait for the same slots."""

    def take_slots(self, piece: Piece) -> bool:
        """Has client and server hold slots; False, and nothing done, when one of them must wait."""

    def leave_slot(self, model: ModelId) -> None:
        """The model has nothing to do for now, and holds its slot no longer."""

    def submit(
        self, piece: Piece, leg: Leg, payload: ObjectRef[Any] | None, ends_piece: bool, ends_unit: bool
    ) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        """Submits a leg on what the leg before has sent; gives the references of what it sends, and of its Outcome.

        The model's part in the piece, or in the whole unit, may be over with it.
        """

    async def until_done(
        self, attempt: Callable[[], Awaitable[UnitReports]], rewind: Callable[[], None]
    ) -> UnitReports:
        """Repeats an attempt until no actor fails in it. Raises LeftOut."""

    def restore(self, model: ModelId) -> None:
        """Puts a model back to where it was before the unit."""

    def commit(self, unit: RetryUnit) -> None:
        """A unit is over: from now on its models go back to its end."""


class Pipeline:
    """Runs units of pieces over a stage's models.

    With a shared server, a client that computes nothing makes room for the next one, which then computes ahead; with a
    server for each client, it makes room when its server is done.
    """

    def __init__(
        self,
        stage: Stage,
        calls: Calls,
        limits: Limits,
        shared_server: bool,
        lockstep: bool = False,
        done: Callable[[Piece, Reports], None] = lambda piece, reports: None,
    ) -> None:
        """`lockstep`: a client's next piece waits for the end of this one's trip.

        `done` is told of every piece; after a failure once more, with equal reports.
        """
        self.stage = stage
        self.calls = calls
        self.window = 1 if lockstep else limits.window
        self.lockstep = lockstep
        self.shared_server = shared_server
        self.tell_done = done
        self.admission = Admission(limits, stage.take_slots, stage.pool)

    async def run(self, units: Sequence[RetryUnit]) -> list[UnitReports]:
        """Reports of every unit; none of one whose client was left out. Raises LeftOut where others were in it."""
        over: dict[int, asyncio.Event] = {}
        coroutines = []
        for unit in units:
            servers = {piece.server for piece in unit.pieces if piece.server is not None}
            waits = [over[server] for server in servers if server in over]
            this_over = asyncio.Event()
            over.update(dict.fromkeys(servers, this_over))
            coroutines.append(self._unit(unit, waits, this_over))
        return await together(coroutines)

    async def _unit(self, unit: RetryUnit, waits: Sequence[asyncio.Event], over: asyncio.Event) -> UnitReports:
        """Attempts a unit until it is done. Its servers are free for it when all of `waits` are set."""
        begun: set[ModelId] = set()

        def rewind() -> None:
            for model in begun:
                self.stage.restore(model)
            begun.clear()
            if unit.has_several_clients:
                self.leave_slots(unit)

        try:
            reports = await self.stage.until_done(lambda: _Attempt(self, unit, waits, begun).run(), rewind)
            self.stage.commit(unit)
            return reports
        except LeftOut:
            if unit.has_several_clients:
                raise
            return {}
        finally:
            self.leave_slots(unit)
            over.set()
            self.admission.admit()

    def leave_slots(self, unit: RetryUnit) -> None:
        """A unit's models hold no slots any more; a shared server keeps its own."""
        for client_id, pieces in unit.by_client.items():
            self.admission.vacate(client_id)
            self.stage.leave_slot(pieces[0].client)
            if pieces[0].server is not None and not self.shared_server:
                self.stage.leave_slot(pieces[0].model("server"))


class _Attempt:
    """One attempt at a unit: thrown away when it fails."""

    def __init__(
        self, pipeline: Pipeline, unit: RetryUnit, waits: Sequence[asyncio.Event], begun: set[ModelId]
    ) -> None:
        """`begun` takes the models that move on from where they were before the unit."""
        self.pipeline = pipeline
        self.stage = pipeline.stage
        self.admission = pipeline.admission
        self.unit = unit
        self.waits = waits
        self.begun = begun
        self.tasks = asyncio.TaskGroup()
        self.reports: UnitReports = {}
        self.owed: Counter[ModelId] = Counter()
        """Calls under way."""
        self.passed = {piece.position: asyncio.Event() for piece in unit.pieces}
        """Set when a piece has gone to its server, or will not."""
        self.returned = {piece.position: asyncio.Event() for piece in unit.pieces}
        """Set when a piece's last leg is submitted."""

    async def run(self) -> UnitReports:
        try:
            async with self.tasks:
                for pieces in self.unit.by_client.values():
                    self.tasks.create_task(self._client(pieces))
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        finally:
            for piece in self.unit.pieces:
                self.admission.leave(piece)
            for model in self.owed.elements():
                self.admission.answered(model)
        return self.reports

    async def _client(self, pieces: Sequence[Piece]) -> None:
        """Starts a client's pieces in their order, as far as it may be ahead of its server."""
        window = asyncio.Semaphore(self.pipeline.window)
        for piece in pieces:
            await window.acquire()
            await self.admission.enter(piece)
            self.owed[piece.client] += 1
            trip = self.stage.trip_of(piece)
            payload, outcome = self._submit(piece, trip, 0, None)
            self.tasks.create_task(self._trip(piece, trip, payload, outcome, window))

    async def _trip(
        self,
        piece: Piece,
        trip: Trip,
        payload: ObjectRef[Any],
        outcome_ref: ObjectRef[Any],
        window: asyncio.Semaphore,
    ) -> None:
        """Follows a piece from its first leg, which is submitted, to its last."""
        outcome = await self._outcome(piece, piece.client, outcome_ref)
        reports: Reports = {"client": outcome.report}
        if piece.server is not None:
            for event in (*self.waits, *self._before(piece)):
                await event.wait()
        for index, leg in enumerate(trip[1:], start=1):
            if not outcome.sent:
                break
            if index > 1 and piece.position in self.unit.client_before:
                # So the last call of a client in a unit is its last piece's.
                await self.returned[self.unit.client_before[piece.position]].wait()
            model = piece.model(leg.side)
            payload, outcome_ref = self._submit(piece, trip, index, payload)
            self.admission.asked(model)
            self.owed[model] += 1
            if leg.side == "server":
                self.passed[piece.position].set()
            if index == len(trip) - 1:
                self.returned[piece.position].set()
            outcome = await self._outcome(piece, model, outcome_ref)
            earlier = reports.get(leg.side)
            reports[leg.side] = outcome.report if earlier is None else earlier + outcome.report
        self.passed[piece.position].set()
        self.returned[piece.position].set()
        self.admission.leave(piece)
        if self.pipeline.lockstep and self.unit.has_several_clients:
            self._leave_slot(piece)
        self.reports[piece] = reports
        self.pipeline.tell_done(piece, reports)
        window.release()
        self.admission.admit()

    def _before(self, piece: Piece) -> Sequence[asyncio.Event]:
        """The piece before at the same server has passed."""
        position = self.unit.before.get(piece.position)
        return [] if position is None else [self.passed[position]]

    def _submit(
        self, piece: Piece, trip: Trip, index: int, payload: ObjectRef[Any] | None
    ) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        side = trip[index].side
        model = piece.model(side)
        self.begun.add(model)
        is_last = all(later.side != side for later in trip[index + 1 :])
        return self.stage.submit(piece, trip[index], payload, is_last, is_last and self.unit.last[model] is piece)

    async def _outcome(self, piece: Piece, model: ModelId, ref: ObjectRef[Any]) -> Outcome:
        """Waits for a call; a client that owes no other makes room."""
        outcome: Outcome = await self.pipeline.calls.result(model, ref)
        self.owed[model] -= 1
        self.admission.answered(model)
        if model.side == "client" and not self.admission.busy[model]:
            if self.pipeline.shared_server:
                self.admission.retire(model.client_id)
            if self.unit.has_several_clients and not self.pipeline.lockstep:
                self._leave_slot(piece)
        self.admission.admit()
        return outcome

    def _leave_slot(self, piece: Piece) -> None:
        self.admission.vacate(piece.work.client_id)
        self.stage.leave_slot(piece.client)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of those that tasks have ended with."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Results of all, in order; the first error gives the others up."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(each) for each in coroutines]
    except BaseExceptionGroup as group:
        raise first_of(group) from None
    return [task.result() for task in running]
