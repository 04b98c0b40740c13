"""Calls under way: awaited by whoever needs their results, watched together for actors that hang or go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.run.actor_status import ActorStatus
from actors.run.team import Member, Team
from hsee_ray.errors import first_line
from hsee_ray.rundir.failures import Failure, Kind
from hsee_ray.training.interrupt import StopRequest

TICK_S = 1.0
"""At most so long passes before a request to stop, or an actor that hangs, is noticed."""

LEAVING: tuple[Kind, str] = "drained", "its node is about to go"

Worked = Callable[[Member, str, int, float, float], None]
"""Called after every answer: member, stage, round, begin and end in `time.monotonic` seconds."""


class CallFailed(Exception):
    """An actor has not given the result of a call."""

    def __init__(self, member: Member, failure: Failure, actor: ActorHandle[Any] | None = None) -> None:
        """`actor` was the member's when it was called; by now it may have another one."""
        super().__init__(f"{failure.who}: {failure.reason}")
        self.member = member
        self.failure = failure
        self.actor = actor


class Calls:
    """Results that a stage of a round awaits, each with the actor that owes it."""

    def __init__(
        self,
        team: Team,
        status: ActorStatus,
        round_number: int,
        stage: str,
        answered: Callable[[Member], None],
        worked: Worked,
    ) -> None:
        self.team = team
        self.status = status
        self.round_number = round_number
        self.stage = stage
        self.tell_answered = answered
        self.tell_worked = worked
        self._owed: dict[Member, set[asyncio.Future[Any]]] = {}
        self._since: dict[Member, float] = {}
        """When an actor that owes an answer last gave one, or was first asked."""
        self._placed: dict[Member, ObjectRef[Any]] = {}
        """Actors that had a place when it was time for their first answer, and were starting; by their location."""

    async def result(self, member: Member, ref: ObjectRef[Any]) -> Any:
        """Awaits the result of a call to `member`. Raises CallFailed."""
        slot = self.team.slot_of(member)
        actor = self.team.actors[slot]
        if self.status.is_leaving(slot):
            raise CallFailed(member, self._failure(member, *LEAVING), actor)
        waiting = _delivery(ref)
        self._owed.setdefault(member, set()).add(waiting)
        self._since.setdefault(member, time.monotonic())
        try:
            value = await waiting
            begin_s = self._since[member]
        except RayError as error:
            raise CallFailed(member, self._failure(member, *diagnosis(error)), actor) from None
        finally:
            self._owed[member].discard(waiting)
            if self._owed[member]:
                self._since[member] = time.monotonic()
            else:
                del self._owed[member], self._since[member]
        if self.team.actors[slot] is actor:
            self.team.started.add(slot)
        self.tell_worked(member, self.stage, self.round_number, begin_s, time.monotonic())
        self.tell_answered(member)
        return value

    async def watch(self, stop: StopRequest, leaving: Callable[[set[str]], None]) -> None:
        """Fails calls of actors that hang or whose nodes go; ends only by an exception, when the run is to stop.

        `leaving` is told of nodes that are about to go.
        """
        while True:
            stop.check()
            if nodes := self.status.look(self.round_number):
                leaving(set(nodes))
            now = time.monotonic()
            for member in list(self._since):
                if self.status.is_leaving(self.team.slot_of(member)):
                    self._fail(member, *LEAVING)
                elif now >= self._since[member] + self._patience_s(member):
                    self._out_of_patience(member)
            deadlines = (since + self._patience_s(member) - now for member, since in self._since.items())
            await asyncio.sleep(max(0.01, min(TICK_S, stop.left_s(), *deadlines)))

    def _has_started(self, member: Member) -> bool:
        return self.team.slot_of(member) in self.team.started

    def _was_placed(self, member: Member) -> bool:
        """Whether it has been seen to start; an actor in its place has not."""
        location = self.team.locations[self.team.slot_of(member)]
        return member in self._placed and self._placed[member] is location

    def _patience_s(self, member: Member) -> float:
        """How long an actor may take for its next answer; the first one also waits for its place and its start."""
        config = self.team.setup.config
        if self._has_started(member):
            return config.failures.step_timeout_s
        placement_s = config.cluster.placement_timeout_s
        return placement_s + config.failures.step_timeout_s if self._was_placed(member) else placement_s

    def _out_of_patience(self, member: Member) -> None:
        """Fails an actor's calls, unless it has a place and may go on starting."""
        patience_s = self._patience_s(member)
        slot = self.team.slot_of(member)
        if self._has_started(member) or self._was_placed(member):
            self._fail(member, "hung", f"no answer within {patience_s:g} s")
        elif self.status.has_place(slot):
            self._placed[member] = self.team.locations[slot]
        else:
            reason = f"no node has had room for it within {patience_s:g} s (cluster.placement_timeout_s)"
            self._fail(member, "unplaced", f"{reason}: {self.status.status_line()}")

    def _fail(self, member: Member, kind: Kind, reason: str) -> None:
        actor = self.team.actors[self.team.slot_of(member)]
        for waiting in self._owed[member]:
            if not waiting.done():
                _fail(waiting, CallFailed(member, self._failure(member, kind, reason), actor))

    def _failure(self, member: Member, kind: Kind, reason: str) -> Failure:
        return Failure(
            self.team.label(member),
            self.round_number,
            self.stage,
            kind,
            reason,
            is_client=not isinstance(member, str) and member.side == "client",
        )


def _delivery(ref: ObjectRef[Any]) -> asyncio.Future[Any]:
    """The result of a call as a future of the running loop; Ray delivers it from a thread of its own."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[Any] = loop.create_future()

    def deliver(done: Future[Any]) -> None:
        if waiting.done():
            return  # nobody waits for it any more
        error = done.exception()
        if error is None:
            waiting.set_result(done.result())
        else:
            _fail(waiting, error)

    def hand_over(done: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the run is over
            loop.call_soon_threadsafe(deliver, done)

    ref.future().add_done_callback(hand_over)
    return waiting


def _fail(waiting: asyncio.Future[Any], error: BaseException) -> None:
    waiting.set_exception(error)
    waiting.exception()  # looked at: asyncio complains of errors that nobody takes, as when a turn is given up


def diagnosis(error: RayError) -> tuple[Kind, str]:
    """Kind of failure of a Ray error, and one line about it."""
    if isinstance(error, RayTaskError):
        # A call also fails with the error of the call that it depends on.
        return diagnosis(error.cause) if isinstance(error.cause, RayError) else ("error", first_line(error.cause))
    if isinstance(error, ObjectLostError):
        return "lost", "an object that it needs went with its node"
    if isinstance(error, ActorDiedError):
        if error.actor_init_failed:
            return "error", _last_line(error)
        if error.preempted or "node has died" in str(error) or "node was terminated" in str(error):
            return "node", "its node is gone"
        return "died", "its process died"
    if isinstance(error, ActorUnavailableError):
        return "died", "it cannot be reached"
    if isinstance(error, OutOfMemoryError):
        return "died", "Ray ended its process, because its node was short of memory"
    if isinstance(error, WorkerCrashedError):
        return "died", "its process died"
    if isinstance(error, NodeDiedError):
        return "node", "its node is gone"
    return "error", first_line(error)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
