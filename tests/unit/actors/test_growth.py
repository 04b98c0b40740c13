"""The driver's work for a piece does not grow with the number of clients: counted in calls of functions, not timed."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from actors.cluster.slots import Slots
from actors.run.admission import Limits
from actors.run.pieces import Piece, RetryUnit
from actors.run.pipeline import Pipeline
from actors.workers.contract import Outcome
from hsee_ray.config.fleet import ModelId
from hsee_ray.method.legs import Trip, Work, evaluating, legs_of
from hsee_ray.method.schedule import ordered_steps

PIECES = 4
"""Of each client."""
TIERS = 3
ANSWERS = 8
"""Calls that are answered whenever the loop comes round."""


class FakeStage:
    """Calls of actors that do nothing and never fail."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.asked: deque[asyncio.Future[Outcome]] = deque()

    def trip_of(self, piece: Piece) -> Trip:
        return legs_of(evaluating("test"), has_server=True)

    def pool(self, piece: Piece) -> str:
        return self.slots.pool(piece.client)

    def take_slots(self, piece: Piece) -> bool:
        if not all(self.slots.can_take(model) for model in piece.models):
            return False
        for model in piece.models:
            self.slots.take(model, ())
        return True

    def leave_slot(self, model: ModelId) -> None:
        self.slots.leave(model)

    def submit(self, piece: Piece, leg: Any, payload: Any, ends_piece: bool, ends_unit: bool) -> tuple[Any, Any]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return object(), self.asked[-1]

    async def until_done(self, attempt: Callable[[], Awaitable[Any]], rewind: Callable[[], None]) -> Any:
        return await attempt()

    def restore(self, model: ModelId) -> None:
        raise AssertionError("nobody fails")

    def commit(self, unit: RetryUnit) -> None:
        pass

    async def result(self, model: ModelId, answer: asyncio.Future[Outcome]) -> Outcome:
        return await answer

    async def work(self) -> None:
        while True:
            for _ in range(min(ANSWERS, len(self.asked))):
                self.asked.popleft().set_result(Outcome(None, True))
            await asyncio.sleep(0)


def calls_per_piece(clients: int, slots: int, limits: Limits, shared_server: bool, interleave: Any) -> float:
    """Functions that are called for each piece of a round, of Python and of C; `slots` of each tier and of servers."""
    pools = {ModelId("client", n): f"tier {n % TIERS}" for n in range(clients)}
    pools |= {ModelId("server", n): "servers" for n in range(1 if shared_server else clients)}
    left = Counter(dict.fromkeys(pools.values(), slots))
    taken = [model for model, pool in pools.items() if left[pool] > 0 and not left.subtract([pool])]
    order = ordered_steps(list(range(clients)), dict.fromkeys(range(clients), PIECES), interleave)
    units: dict[int, list[Piece]] = {}
    for position, (client, first) in enumerate(order):
        piece = Piece(position, Work(client, 1, first, first + 1), 0 if shared_server else client)
        units.setdefault(0 if interleave == "batch" else client, []).append(piece)
    stage = FakeStage(Slots(pools, taken))
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    async def under_way() -> None:
        pipeline = Pipeline(stage, stage, limits, shared_server)  # type: ignore[arg-type]
        working = asyncio.create_task(stage.work())
        try:
            async with asyncio.timeout(60):
                sys.setprofile(count)
                reports = await pipeline.run([RetryUnit(unit) for unit in units.values()])
        finally:
            sys.setprofile(None)
            working.cancel()
        assert sum(map(len, reports)) == clients * PIECES

    asyncio.run(under_way())
    return calls / (clients * PIECES)


@pytest.mark.parametrize(
    ("slots", "limits", "shared_server", "interleave"),
    [
        (999, Limits(999, 2), False, "client"),
        (999, Limits(2, 2, cores=2), False, "client"),
        (8, Limits(2, 2, cores=2), False, "client"),
        (999, Limits(999, 2), True, "client"),
        (8, Limits(2, 2), True, "client"),
        (999, Limits(999, 2), True, "batch"),
        (8, Limits(24, 2), True, "batch"),
    ],
)
def test_a_piece_costs_the_same_among_many_clients(
    slots: int, limits: Limits, shared_server: bool, interleave: str
) -> None:
    few, many = (calls_per_piece(n, slots, limits, shared_server, interleave) for n in (30, 150))
    assert many < 1.1 * few


def test_a_piece_costs_no_more_where_more_actors_are_shared() -> None:
    """However many slots there are, nobody searches them."""
    few, many = (calls_per_piece(150, slots, Limits(TIERS * slots, 2), False, "client") for slots in (4, 40))
    assert many < 1.3 * few
