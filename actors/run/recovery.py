"""Acts on failures as decided: new actors, restored states, and a record of what happened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from actors.run.calls import CallFailed
from actors.run.run_state import RunState
from actors.run.team import Member, Team
from hsee_ray.errors import ClientError
from hsee_ray.rundir.failures import Action, Failure, History, decide
from hsee_ray.training.engine import StateLost
from hsee_ray.training.listener import Event

T = TypeVar("T")


class LeftOut(Exception):
    """Raised when a client has no place and is left out until it has one; work shared with others begins again."""


class Recovery:
    """The failures of a run and what was done about them."""

    def __init__(self, team: Team, history: History, tell: Callable[[Event], None]) -> None:
        self.team = team
        self.history = history
        self.tell = tell
        self.replaced: Counter[str] = Counter()
        """Actors that were replaced, by tier."""
        self.noticed: dict[Member, float] = {}
        """Replaced actors that have not answered yet, with the time at which their failure was noticed."""

    async def until_done(self, attempt: Callable[[], Awaitable[T]], state: RunState, rewind: Callable[[], None]) -> T:
        """Repeats an attempt until no actor fails in it; one that has failed is replaced, with its model in `state`.

        `rewind` puts models back that have moved on in the attempt. Raises LeftOut, StateLost, and ClientError when the
        run must end.
        """
        while True:
            try:
                return await attempt()
            except CallFailed as failed:
                rewind()
                # Of several calls that fail with one actor, the first has it replaced.
                if self.team.actors[self.team.slot_of(failed.member)] is failed.actor:
                    self.replace(failed.member, failed.failure, state)

    def replace(self, member: Member, failure: Failure, state: RunState) -> None:
        """Replaces a failed actor and restores its model from `state`. Raises as `until_done` does."""
        decision = decide(failure, self.history, self.team.setup.config.failures)
        if decision.action is Action.STOP:
            raise ClientError(failure.who, failure.round_number, failure.stage, decision.reason)
        if decision.counts:
            self.history.count(failure.who)
        said = f"{failure.reason}; {decision.action.value}"
        self.tell(Event(failure.round_number, failure.stage, failure.who, said))
        if decision.action is Action.GO_BACK:
            raise StateLost(failure)
        self.replaced[self.team.tier(member)] += 1
        for slot in self.team.replace(member, elsewhere=failure.kind == "drained"):
            occupant = self.team.slots.occupant(slot)
            self.replaced[self.team.tier(occupant)] += occupant != member
            self.team.restore(occupant, state.lineage(occupant))
        if decision.action is Action.DROP:
            assert not isinstance(member, str)
            self.noticed.pop(member, None)
            self.team.left_out.add(member.client_id)
            state.forget(member)
            raise LeftOut
        self.noticed[member] = time.monotonic()

    def answered(self, member: Member, round_number: int, stage: str) -> None:
        """Notes an answer; reports how long a replaced actor took to be back."""
        if member in self.noticed:
            seconds = time.monotonic() - self.noticed.pop(member)
            self.tell(
                Event(round_number, stage, self.team.label(member), f"is back after {seconds:.1f} s", is_back=True)
            )
