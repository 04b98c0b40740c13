"""One call to each of many actors, all at the same time as far as there are slots."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from ray import ObjectRef

from actors.run.calls import Calls
from actors.run.pipeline import together
from actors.run.recovery import LeftOut, Recovery
from actors.run.run_state import RunState
from actors.run.team import Member

K = TypeVar("K", bound=Hashable)
MemberCall = tuple[Member, Callable[[], "ObjectRef[Any]"]]
"""An actor, and what submits a call to it: a second time, too, when it has been replaced."""


async def fan_out(calls: Mapping[K, MemberCall], under_way: Calls, recovery: Recovery, state: RunState) -> dict[K, Any]:
    """The results of calls, by their keys; none where the client was left out.

    An actor that fails is replaced and called again. Models that share slots are called when they have one.
    """
    team = recovery.team
    team.slots.release_all()
    results: dict[K, Any] = {}
    outstanding: Counter[Member] = Counter()
    queues: dict[str, deque[K]] = {}
    for key, (member, _) in calls.items():
        queues.setdefault(team.tier(member), deque()).append(key)

    async def call(key: K) -> None:
        member, submit = calls[key]

        async def attempt() -> Any:
            return await under_way.result(member, submit())

        if not isinstance(member, str):
            assert team.slot({member: state.lineage(member)}), "a caller for each slot never finds all of them held"
        outstanding[member] += 1
        try:
            results[key] = await recovery.until_done(attempt, state, lambda: None)
        except LeftOut:
            pass
        finally:
            outstanding[member] -= 1
            if not isinstance(member, str) and not outstanding[member]:
                team.slots.leave(member)

    async def caller(queue: deque[K]) -> None:
        while queue:
            key = queue.popleft()
            if not team.is_left_out(calls[key][0]):
                await call(key)

    def callers(queue: deque[K]) -> int:
        """As many as there are slots for those who are called."""
        member = calls[queue[0]][0]
        return 1 if isinstance(member, str) else len(team.slots.of_pool(member))

    await together(caller(queue) for queue in queues.values() for _ in range(callers(queue)))
    return results
