"""Calls under way: their answers as they come, and who failed to answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray import ObjectRef
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
from actors.run.interrupt import StopRequest
from actors.run.team import Member, Team
from hsee_ray.rundir.failures import Failure, Kind

TICK_S = 1.0
"""At most so long passes before a request to stop, or an actor that hangs, is noticed."""

T = TypeVar("T")
Worked = Callable[[Member, str, int, float, float], None]
"""Told of every call that has been answered: who, stage, round, and from when to when, in `time.monotonic` seconds."""


@dataclass(frozen=True)
class CallResult(Generic[T]):
    """What became of one call."""

    tag: T
    member: Member
    value: Any
    failure: Failure | None


class Calls(Generic[T]):
    """Results that are being waited for, each with the actor that owes it and a tag of the caller's."""

    def __init__(
        self, team: Team, actor_status: ActorStatus, round_number: int, stage: str, stop: StopRequest, worked: Worked
    ) -> None:
        self.team = team
        self.actor_status = actor_status
        self.round_number = round_number
        self.stage = stage
        self.stop = stop
        self.tell_worked = worked
        self.under_way: dict[ObjectRef[Any], tuple[Member, T]] = {}
        self.since: dict[Member, float] = {}
        """When an actor that owes an answer last gave one, or was first asked."""
        self.placed: set[Member] = set()
        """Actors that had a place when it was time for their first answer, and were starting."""

    def __bool__(self) -> bool:
        return bool(self.under_way)

    def add(self, ref: ObjectRef[Any], member: Member, tag: T) -> None:
        self.under_way[ref] = (member, tag)
        self.since.setdefault(member, time.monotonic())

    def owes(self, member: Member) -> bool:
        """Whether an actor has not answered everything."""
        return member in self.since

    def forget(self, unwanted: Callable[[Member, T], bool]) -> None:
        """Whatever these calls still give is dropped: the work is done anew."""
        self.under_way = {ref: call for ref, call in self.under_way.items() if not unwanted(*call)}
        owing = {member for member, _ in self.under_way.values()}
        self.since = {member: since for member, since in self.since.items() if member in owing}

    def next(self) -> CallResult[T]:
        """Waits for the next answer, or for the time when an actor's patience is used up."""
        while True:
            self.stop.check()
            self.actor_status.look(self.round_number)
            for member in self._on_leaving_nodes():
                return self._given_up(member, "drained", "its node is about to go")
            deadlines = {member: since + self._patience_s(member) for member, since in self.since.items()}
            soonest = min(deadlines, key=deadlines.__getitem__)
            wait_s = max(0.0, min(TICK_S, self.stop.left_s(), deadlines[soonest] - time.monotonic()))
            ready, _ = ray.wait(list(self.under_way), num_returns=1, timeout=wait_s, fetch_local=False)
            if ready:
                return self._answer(ready[0])
            if time.monotonic() >= deadlines[soonest] and (answer := self._no_answer(soonest)):
                return answer

    def _answer(self, ref: ObjectRef[Any]) -> CallResult[T]:
        member, tag = self.under_way.pop(ref)
        begin_s, end_s = self.since[member], time.monotonic()
        if any(other == member for other, _ in self.under_way.values()):
            self.since[member] = end_s
        else:
            del self.since[member]
        try:
            value = ray.get(ref, timeout=self.team.setup.config.failures.step_timeout_s)
        except RayError as error:
            kind, reason = diagnosis(error)
            if kind == "died" and self.team.slot_of(member) in self.team.relocated:
                kind, reason = "node", "it moves together with the other one of its pair"
            return CallResult(tag, member, None, self._failure(member, kind, reason))
        self.team.started.add(self.team.slot_of(member))
        self.team.relocated.discard(self.team.slot_of(member))
        self.tell_worked(member, self.stage, self.round_number, begin_s, end_s)
        return CallResult(tag, member, value, None)

    def _on_leaving_nodes(self) -> list[Member]:
        """Who owes an answer on a node that is about to go."""
        leaving = self.actor_status.leaving
        return [member for member in self.since if self.team.slot_of(member) in leaving] if leaving else []

    def _has_started(self, member: Member) -> bool:
        return self.team.slot_of(member) in self.team.started

    def _patience_s(self, member: Member) -> float:
        """How long an actor may take for its next answer; the first one also waits for its place and its start."""
        config = self.team.setup.config
        if self._has_started(member):
            return config.failures.step_timeout_s
        placement_s = config.cluster.placement_timeout_s
        return placement_s + config.failures.step_timeout_s if member in self.placed else placement_s

    def _no_answer(self, member: Member) -> CallResult[T] | None:
        """What became of a call that has no answer in time; None when its actor has a place and may go on starting."""
        patience_s = self._patience_s(member)
        if self._has_started(member) or member in self.placed:
            return self._given_up(member, "hung", f"no answer within {patience_s:g} s")
        if self.actor_status.has_place(self.team.slot_of(member)):
            self.placed.add(member)
            return None
        reason = f"no node has had room for it within {patience_s:g} s (cluster.placement_timeout_s)"
        return self._given_up(member, "unplaced", f"{reason}: {self.actor_status.status_line()}")

    def _given_up(self, member: Member, kind: Kind, reason: str) -> CallResult[T]:
        tag = next(tag for other, tag in self.under_way.values() if other == member)
        return CallResult(tag, member, None, self._failure(member, kind, reason))

    def _failure(self, member: Member, kind: Kind, reason: str) -> Failure:
        return Failure(
            self.team.label(member),
            self.round_number,
            self.stage,
            kind,
            reason,
            is_client=not isinstance(member, str) and member.side == "client",
        )


def diagnosis(error: RayError) -> tuple[Kind, str]:
    """What kind of failure an error of Ray's is, and one line about it."""
    if isinstance(error, RayTaskError):
        # A call also fails with the error of the call that it depends on.
        return diagnosis(error.cause) if isinstance(error.cause, RayError) else ("error", _first_line(error.cause))
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
    return "error", _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
