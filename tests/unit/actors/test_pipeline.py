"""The pipeline over models that only write down what was done to them, with actors that fail at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from actors.cluster.slots import Slots
from actors.run.admission import Limits
from actors.run.calls import CallFailed
from actors.run.pieces import Piece, RetryUnit
from actors.run.pipeline import Pipeline, UnitReports
from actors.run.recovery import LeftOut
from actors.workers.contract import Outcome
from hsee_ray.config.fleet import ModelId
from hsee_ray.method.legs import TRAINING, Leg, Trip, Work, evaluating, legs_of
from hsee_ray.rundir.failures import Failure

ROUND_TRIP: Trip = (*TRAINING, Leg("client", lambda side, work, payload: (None, None)))
"""Something comes back to the client."""


class FakeActors:
    """Carries calls out in a random order among models, in the order of submission for one; sometimes one fails."""

    def __init__(self, rng: random.Random, fail_at: set[int]) -> None:
        self.rng = rng
        self.fail_at = fail_at
        self.queues: dict[ModelId, list[tuple[Callable[[], Any], asyncio.Future[Any]]]] = {}
        self.answers = 0

    def submit(self, model: ModelId, call: Callable[[], Any]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.queues.setdefault(model, []).append((call, answer))
        return answer

    async def result(self, model: ModelId, answer: asyncio.Future[Any]) -> Any:
        return await answer

    async def work(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(0)
            owing = sorted(model for model, queue in self.queues.items() if queue)
            if owing and self.rng.random() < 0.7:
                model = self.rng.choice(owing)
                call, answer = self.queues[model].pop(0)
                if answer.cancelled():
                    # A forgotten call may still be carried out: its actor does not know.
                    if self.rng.random() < 0.5:
                        call()
                    continue
                self.answers += 1
                if self.answers in self.fail_at:
                    answer.set_exception(CallFailed(model, Failure("x", 1, "train", "died", "killed")))
                else:
                    answer.set_result(call())


POOLS = {
    **{ModelId("client", number): "one" if number < 2 else "other" for number in range(4)},
    **{ModelId("server", number): "servers" for number in range(4)},
}
"""Two tiers of two clients, and their servers."""
ONE_EACH = {"one": 2, "other": 2, "servers": 4}


class FakeStage:
    """Models are lists of what they have learnt, in slots; a snapshot is a copy. Who has no slot knows nothing."""

    def __init__(
        self,
        actors: FakeActors,
        trip: Trip,
        lost: frozenset[int] = frozenset(),
        sends_nothing: frozenset[int] = frozenset(),
        slots: dict[str, int] = ONE_EACH,
        one_unit: bool = False,
    ) -> None:
        """`lost`: clients that are left out when they fail; `sends_nothing`: pieces that need no server."""
        left = dict(slots)
        taken = []
        for model, pool in POOLS.items():
            if left[pool] > 0:
                left[pool] -= 1
                taken.append(model)
        self.actors = actors
        self.trip = trip
        self.slots = Slots(POOLS, taken)
        self.one_unit = one_unit
        self.models: dict[ModelId, list[Any]] = {}
        self.kept: dict[ModelId, list[Any]] = {}
        self.midway: dict[ModelId, list[Any]] = {}
        self.ended: dict[ModelId, list[Any]] = {}
        self.lost = lost
        self.sends_nothing = sends_nothing
        self.moves = 0

    def of(self, model: ModelId) -> list[Any]:
        assert self.slots.of(model) is not None, "who is called has a slot"
        return self.models.setdefault(model, [])

    def trip_of(self, piece: Piece) -> Trip:
        return legs_of(self.trip, piece.server is not None)

    def pool(self, piece: Piece) -> str:
        return self.slots.pool(piece.client)

    def take_slots(self, piece: Piece) -> bool:
        if not all(self.slots.can_take(model) for model in piece.models):
            return False
        for model in piece.models:
            if self.slots.take(model, ()):
                self.moves += 1
                self.models = {other: state for other, state in self.models.items() if self.slots.of(other)}
                self.models[model] = list(self.midway.get(model, self.kept.get(model, [])))
        return True

    def leave_slot(self, model: ModelId) -> None:
        self.slots.leave(model)

    def submit(self, piece: Piece, leg: Leg, payload: Any, ends_piece: bool, ends_unit: bool) -> tuple[Any, Any]:
        model, first = piece.model(leg.side), piece.work.first
        state = self.of(model)
        sent: list[Any] = []

        def call() -> Outcome:
            if payload is None:
                state.append(first)
            else:
                state.extend(payload)
            if ends_unit:
                self.ended[model] = list(state)
            if self.one_unit and ends_piece and leg.side == "client":
                self.midway[model] = list(state)
            sent.append((model.side, piece.work.client_id, len(state), first))
            return Outcome((leg.side, first), first not in self.sends_nothing)

        return sent, self.actors.submit(model, call)

    async def until_done(
        self, attempt: Callable[[], Awaitable[UnitReports]], rewind: Callable[[], None]
    ) -> UnitReports:
        while True:
            try:
                return await attempt()
            except CallFailed as failed:
                rewind()
                assert not isinstance(failed.member, str)
                self.restore(failed.member)
                if failed.member.side == "client" and failed.member.client_id in self.lost:
                    raise LeftOut from None

    def restore(self, model: ModelId) -> None:
        self.midway.pop(model, None)
        if self.slots.of(model) is not None:
            self.models[model] = list(self.kept.get(model, []))

    def commit(self, unit: RetryUnit) -> None:
        for model in unit.last:
            self.kept[model] = self.ended.pop(model)


PIECES = {0: 5, 1: 3, 2: 2, 3: 4}
"""Pieces of each client."""


def units_of(strategy: str) -> list[RetryUnit]:
    """Client 2 holds the whole network and has no server."""
    one_unit = strategy.startswith("round_robin")
    if one_unit:
        order = [(n, p) for p in range(max(PIECES.values())) for n in PIECES if p < PIECES[n]]
    else:
        order = [(n, p) for n in PIECES for p in range(PIECES[n])]
    units: dict[int, list[Piece]] = {}
    for position, (client, first) in enumerate(order):
        server = None if client == 2 else (client if strategy.startswith("averaging") else 0)
        piece = Piece(position, Work(client, 1, first, first + 1), server)
        units.setdefault(0 if one_unit else client, []).append(piece)
    return [RetryUnit(pieces) for pieces in units.values()]


def run(
    strategy: str,
    seed: int,
    fail_at: set[int],
    window: int = 2,
    lost: frozenset[int] = frozenset(),
    slots: dict[str, int] = ONE_EACH,
    cores: int | None = None,
    sends_nothing: frozenset[int] = frozenset(),
) -> tuple[FakeStage, UnitReports]:
    """Runs all units; gives the stage, and the reports of every piece."""
    back = strategy.endswith("_back")
    trip = ROUND_TRIP if back else evaluating("test")

    async def under_way() -> tuple[FakeStage, UnitReports]:
        actors = FakeActors(random.Random(seed), fail_at)
        stage = FakeStage(actors, trip, lost, sends_nothing, slots, strategy.startswith("round_robin"))
        told: list[int] = []
        pipeline = Pipeline(
            stage,
            actors,  # type: ignore[arg-type]
            Limits(2, window, cores),
            not strategy.startswith("averaging"),
            back,
            lambda piece, reports: told.append(piece.position),
        )
        working = asyncio.create_task(actors.work())
        try:
            async with asyncio.timeout(20):
                reports = await pipeline.run(units_of(strategy))
        finally:
            working.cancel()
        assert not pipeline.admission.busy
        by_piece = {piece: of for unit in reports for piece, of in unit.items()}
        assert {piece.position for piece in by_piece} <= set(told)
        return stage, by_piece

    return asyncio.run(under_way())


STRATEGIES = ["averaging", "sequential", "round_robin"]
ALL_TRIPS = [*STRATEGIES, *(f"{strategy}_back" for strategy in STRATEGIES)]


@pytest.mark.parametrize("strategy", ALL_TRIPS)
@pytest.mark.parametrize("window", [1, 3])
def test_whatever_fails_every_model_learns_the_same_in_the_same_order(strategy: str, window: int) -> None:
    undisturbed, reports = run(strategy, 0, set(), window)
    if not strategy.endswith("_back"):
        assert undisturbed.kept[ModelId("client", 0)] == [0, 1, 2, 3, 4]
    for piece, of_piece in reports.items():
        back = ("client", piece.work.first) if strategy.endswith("_back") and piece.server is not None else ()
        assert of_piece["client"] == ("client", piece.work.first, *back)
        assert of_piece.get("server") == (None if piece.server is None else ("server", piece.work.first))
    assert len(reports) == sum(PIECES.values())
    for seed in range(150):
        rng = random.Random(1000 + seed)
        fail_at = {rng.randrange(1, 60) for _ in range(rng.randrange(1, 8))}
        stage, of_pieces = run(strategy, seed, fail_at, window, cores=rng.choice([None, 1, 2]))
        assert stage.kept == undisturbed.kept
        assert of_pieces == reports


@pytest.mark.parametrize("strategy", ALL_TRIPS)
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("slots", [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 1)])
def test_models_that_share_slots_learn_the_same(strategy: str, window: int, slots: tuple[int, int, int]) -> None:
    one, other, servers = slots
    undisturbed, _ = run(strategy, 0, set())
    for seed in range(40):
        rng = random.Random(2000 + seed)
        fail_at = {rng.randrange(1, 60) for _ in range(rng.randrange(0, 6))}
        taken = {"one": one, "other": other, "servers": servers}
        stage, _ = run(strategy, seed, fail_at, window, slots=taken, cores=rng.choice([None, 1, 2]))
        assert stage.kept == undisturbed.kept
        assert stage.moves > 0 or strategy.startswith("sequential") or (one, other) == (2, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("silent", [frozenset({0, 2}), frozenset({1, 3, 4}), frozenset(range(4))])
def test_pieces_that_send_nothing_are_done_without_the_server(strategy: str, silent: frozenset[int]) -> None:
    for seed in range(50):
        rng = random.Random(seed)
        fail_at = {rng.randrange(1, 40) for _ in range(rng.randrange(0, 5))}
        # The last piece of each client is sent: with it go the states.
        ends = {count - 1 for count in PIECES.values()}
        _, reports = run(strategy, seed, fail_at, sends_nothing=silent - ends)
        assert len(reports) == sum(PIECES.values())
        for piece, of_piece in reports.items():
            first = piece.work.first
            sent = piece.server is not None and first not in silent - ends
            assert of_piece.get("server") == (("server", first) if sent else None)


def test_a_server_sees_the_round_in_its_order() -> None:
    kept = run("round_robin", 5, {7, 11})[0].kept
    assert [(client, piece) for _, client, _, piece in kept[ModelId("server", 0)]] == [
        *((n, 0) for n in (0, 1, 3)),
        *((n, 1) for n in (0, 1, 3)),
        *((n, 2) for n in (0, 1, 3)),
        *((n, 3) for n in (0, 3)),
        (0, 4),
    ]


@pytest.mark.parametrize("strategy", ["averaging", "sequential"])
def test_a_client_that_is_left_out_leaves_nothing_behind(strategy: str) -> None:
    for seed in range(50):
        stage, reports = run(strategy, seed, {4, 9}, lost=frozenset({1}))
        done = {piece.work.client_id for piece in reports}
        assert done >= {0, 2, 3}
        if 1 not in done:
            assert ModelId("client", 1) not in stage.kept
            server = stage.kept.get(ModelId("server", 0 if strategy == "sequential" else 1), [])
            assert all(client != 1 for _, client, _, _ in server)


def test_a_unit_of_many_that_loses_a_client_is_lost() -> None:
    with pytest.raises(LeftOut):
        for seed in range(50):
            run("round_robin", seed, {3}, lost=frozenset({0, 1, 2, 3}))
