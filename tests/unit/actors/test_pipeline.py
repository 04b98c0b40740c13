"""The pipeline over models that only write down what was done to them, with actors that fail at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from actors.cluster.slots import Slots
from actors.run.calls import CallResult
from actors.run.pipeline import Done, Pipeline, TurnLost, Work
from actors.run.stages import models_of, with_records
from hsee_ray.config.fleet import ModelId
from hsee_ray.rundir.failures import Failure


class FakeCalls:
    """Answers in a random order among actors, in the order of submission within one; sometimes an actor fails."""

    def __init__(self, rng: random.Random, fail_at: set[int]) -> None:
        self.rng = rng
        self.fail_at = fail_at
        self.under_way: list[tuple[Callable[[], Any], ModelId, Any]] = []
        self.answers = 0

    def __bool__(self) -> bool:
        return bool(self.under_way)

    def add(self, ref: Any, member: ModelId, tag: Any) -> None:
        self.under_way.append((ref, member, tag))

    def forget(self, unwanted: Callable[[ModelId, Any], bool]) -> None:
        # A forgotten call may still be carried out: its actor does not know.
        for ref, member, tag in self.under_way:
            if unwanted(member, tag) and self.rng.random() < 0.5:
                ref()
        self.under_way = [call for call in self.under_way if not unwanted(call[1], call[2])]

    def next(self) -> CallResult[Any]:
        member = self.rng.choice(sorted({member for _, member, _ in self.under_way}))
        index = next(i for i, call in enumerate(self.under_way) if call[1] == member)
        ref, _, tag = self.under_way.pop(index)
        self.answers += 1
        if self.answers in self.fail_at:
            return CallResult(tag, member, None, Failure("x", 1, "train", "died", "killed"))
        return CallResult(tag, member, ref(), None)


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
        lost: frozenset[int] = frozenset(),
        sends_nothing: frozenset[int] = frozenset(),
        slots: dict[str, int] = ONE_EACH,
        one_turn: bool = False,
    ) -> None:
        """`lost`: clients that are left out when they fail; `sends_nothing`: pieces that need no server."""
        left = dict(slots)
        taken = []
        for model, pool in POOLS.items():
            if left[pool] > 0:
                left[pool] -= 1
                taken.append(model)
        self.slots = Slots(POOLS, taken)
        self.one_turn = one_turn
        self.models: dict[ModelId, list[Any]] = {}
        self.kept: dict[ModelId, list[Any]] = {}
        self.midway: dict[ModelId, list[Any]] = {}
        self.snapshots: dict[tuple[int, ModelId], list[Any]] = {}
        self.lost = lost
        self.sends_nothing = sends_nothing
        self.moves = 0

    def of(self, model: ModelId) -> list[Any]:
        assert self.slots.of(model) is not None, "who is called has a slot"
        return self.models.setdefault(model, [])

    def queue(self, work: Work) -> str:
        return self.slots.pool(ModelId("client", work.client))

    def slot(self, work: Work) -> bool:
        models = models_of(work)
        if not all(self.slots.can_take(model) for model in models):
            return False
        for model in models:
            if self.slots.take(model, ()):
                self.moves += 1
                self.models = {other: state for other, state in self.models.items() if self.slots.of(other)}
                self.models[model] = list(self.midway.get(model, self.kept.get(model, [])))
        return True

    def leave(self, model: ModelId) -> None:
        self.slots.leave(model)

    def client_call(self, work: Work) -> tuple[Any, Any]:
        client = self.of(ModelId("client", work.client))
        features: list[Any] = []

        def call() -> Any:
            client.append(work.first)
            if "client" in work.records:
                self.snapshots[work.turn, ModelId("client", work.client)] = list(client)
            if self.one_turn:
                self.midway[ModelId("client", work.client)] = list(client)
            features.append((work.client, len(client), work.first))
            return ("client", work.first)

        return features, call

    def server_call(self, work: Work, features: Any, client_report: Any) -> Any:
        assert client_report == ("client", work.first)
        if work.first in self.sends_nothing:
            return None
        model = ModelId("server", work.server or 0)
        server = self.of(model)

        def call() -> Any:
            server.extend(features)
            if "server" in work.records:
                self.snapshots[work.turn, model] = list(server)
            return ("server", work.first)

        return call

    def replace(self, member: ModelId, failure: Failure) -> bool:
        self.restore(member)
        return not (member.side == "client" and member.client_id in self.lost)

    def restore(self, model: ModelId) -> None:
        self.midway.pop(model, None)
        if self.slots.of(model) is not None:
            self.models[model] = list(self.kept.get(model, []))

    def answered(self, member: ModelId) -> None:
        pass

    def commit(self, works: list[Work]) -> None:
        for turn, model in {(work.turn, model) for work in works for model in models_of(work)}:
            self.kept[model] = self.snapshots[turn, model]


def works_of(strategy: str, pieces: dict[int, int]) -> list[Work]:
    """Client 2 holds the whole network and has no server."""

    def work(client: int, piece: int) -> Work:
        server = None if client == 2 else (client if strategy == "averaging" else 0)
        return Work(client, server, piece, piece + 1, turn=0 if strategy == "round_robin" else client)

    if strategy == "round_robin":
        order = [(n, p) for p in range(max(pieces.values())) for n in pieces if p < pieces[n]]
    else:
        order = [(n, p) for n in pieces for p in range(pieces[n])]
    return with_records([work(client, piece) for client, piece in order])


def run(
    strategy: str,
    seed: int,
    fail_at: set[int],
    window: int = 2,
    lost: frozenset[int] = frozenset(),
    slots: dict[str, int] = ONE_EACH,
    cores: int | None = None,
) -> FakeStage:
    works = works_of(strategy, {0: 5, 1: 3, 2: 2, 3: 4})
    stage = FakeStage(lost, slots=slots, one_turn=strategy == "round_robin")
    calls: Any = FakeCalls(random.Random(seed), fail_at)
    done: dict[tuple[int, int], Done] = {}
    for piece in Pipeline(
        works, stage, calls, 2, window, strategy != "averaging", cores, strategy == "round_robin"
    ).run():  # type: ignore[arg-type]
        work = piece.work
        assert piece.client_report == ("client", work.first)
        assert piece.server_report == (None if work.server is None else ("server", work.first))
        done[work.client, work.first] = piece
        if piece.turn_done:
            stage.commit([other for other in works if other.turn == work.turn])
    assert len(done) == len([work for work in works if work.client not in lost])
    return stage


@pytest.mark.parametrize("strategy", ["averaging", "sequential", "round_robin"])
@pytest.mark.parametrize("window", [1, 3])
def test_whatever_fails_every_model_learns_the_same_in_the_same_order(strategy: str, window: int) -> None:
    undisturbed = run(strategy, 0, set(), window)
    assert undisturbed.kept[ModelId("client", 0)] == [0, 1, 2, 3, 4]
    for seed in range(300):
        rng = random.Random(1000 + seed)
        fail_at = {rng.randrange(1, 60) for _ in range(rng.randrange(1, 8))}
        assert run(strategy, seed, fail_at, window, cores=rng.choice([None, 1, 2])).kept == undisturbed.kept


@pytest.mark.parametrize("strategy", ["averaging", "sequential", "round_robin"])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("slots", [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 1)])
def test_models_that_take_turns_in_slots_learn_the_same(
    strategy: str, window: int, slots: tuple[int, int, int]
) -> None:
    one, other, servers = slots
    undisturbed = run(strategy, 0, set())
    for seed in range(100):
        rng = random.Random(2000 + seed)
        fail_at = {rng.randrange(1, 60) for _ in range(rng.randrange(0, 6))}
        taken = {"one": one, "other": other, "servers": servers}
        stage = run(strategy, seed, fail_at, window, slots=taken, cores=rng.choice([None, 1, 2]))
        assert stage.kept == undisturbed.kept
        assert stage.moves > 0 or (strategy, one, other) == ("sequential", 2, 2) or (one, other) == (2, 2)


@pytest.mark.parametrize("strategy", ["averaging", "sequential", "round_robin"])
@pytest.mark.parametrize("silent", [frozenset({0, 2}), frozenset({1, 3, 4}), frozenset(range(5))])
def test_pieces_that_send_nothing_are_done_without_the_server(strategy: str, silent: frozenset[int]) -> None:
    for seed in range(100):
        rng = random.Random(seed)
        works = works_of(strategy, {0: 5, 1: 3, 2: 2, 3: 4})
        stage = FakeStage(sends_nothing=silent)
        calls: Any = FakeCalls(rng, {rng.randrange(1, 40) for _ in range(rng.randrange(0, 5))})
        done = {}
        for piece in Pipeline(
            works, stage, calls, 2, 2, strategy != "averaging", None, strategy == "round_robin"
        ).run():  # type: ignore[arg-type]
            done[piece.work.client, piece.work.first] = piece
        assert len(done) == len(works)
        for (client, first), piece in done.items():
            sent = client != 2 and first not in silent
            assert piece.server_report == (("server", first) if sent else None)


def test_a_server_sees_the_list_in_its_order() -> None:
    kept = run("round_robin", 5, {7, 11}).kept
    assert [(client, piece) for client, _, piece in kept[ModelId("server", 0)]] == [
        *((n, 0) for n in (0, 1, 3)),
        *((n, 1) for n in (0, 1, 3)),
        *((n, 2) for n in (0, 1, 3)),
        *((n, 3) for n in (0, 3)),
        (0, 4),
    ]


@pytest.mark.parametrize("strategy", ["averaging", "sequential"])
def test_a_client_that_is_left_out_leaves_nothing_behind(strategy: str) -> None:
    for seed in range(50):
        works = works_of(strategy, {0: 5, 1: 3, 2: 2, 3: 4})
        stage = FakeStage(frozenset({1}))
        calls: Any = FakeCalls(random.Random(seed), {4, 9})
        turns_done = set()
        for piece in Pipeline(works, stage, calls, 2, 2, strategy == "sequential").run():  # type: ignore[arg-type]
            if piece.turn_done:
                turns_done.add(piece.work.turn)
                stage.commit([other for other in works if other.turn == piece.work.turn])
        assert turns_done >= {0, 2, 3}
        if 1 not in turns_done:
            assert ModelId("client", 1) not in stage.kept
            server = stage.kept.get(ModelId("server", 0 if strategy == "sequential" else 1), [])
            assert all(client != 1 for client, _, _ in server)


def test_a_shared_turn_that_loses_a_client_is_lost() -> None:
    with pytest.raises(TurnLost):
        for seed in range(50):
            run("round_robin", seed, {3}, lost=frozenset({0, 1, 2, 3}))
