"""Decisions of a round, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import Fleet
from hsee_ray.config.schema import Config
from hsee_ray.method.schedule import (
    BatchSlice,
    batch_bounds,
    evaluates_after,
    learning_rate,
    ordered_steps,
    participants,
    queue_order,
    round_batches,
)
from hsee_ray.method.strategies import build_fleet, strategy_of


def config_of(n_clients: int = 10, seed: int = 0, **training: Any) -> Config:
    return load_config({"seed": seed, "tiers": [{"name": "a", "clients": n_clients, "cut": 1}], "training": training})


def fleet_of(config: Config) -> Fleet:
    return build_fleet(config, ["stem", "head"])


# Who trains


def chosen(config: Config, round_number: int) -> tuple[int, ...]:
    return participants(config, fleet_of(config), round_number)


def test_everyone_trains_by_default() -> None:
    assert chosen(config_of(4), 1) == (0, 1, 2, 3)


@pytest.mark.parametrize(("fraction", "number"), [(0.01, 1), (0.3, 3), (0.34, 3), (0.36, 4), (0.99, 10)])
def test_a_fraction_of_the_clients_trains_and_at_least_one(fraction: float, number: int) -> None:
    who = chosen(config_of(clients_per_round=fraction), 1)
    assert len(set(who)) == number
    assert list(who) == sorted(who)
    assert set(who) <= set(range(10))


def test_participants_follow_the_seed_and_the_round() -> None:
    config = config_of(clients_per_round=0.3)
    rounds = [chosen(config, number) for number in range(1, 21)]
    assert rounds == [chosen(config, number) for number in range(1, 21)]
    assert len(set(rounds)) > 10
    assert {number for who in rounds for number in who} == set(range(10))
    assert rounds != [chosen(config_of(seed=1, clients_per_round=0.3), number) for number in range(1, 21)]


def test_centralized_trains_its_one_client() -> None:
    assert chosen(config_of(strategy="centralized", clients_per_round=0.5), 1) == (0,)


def test_queue_as_listed() -> None:
    config = config_of(clients_per_round=0.5)
    assert queue_order(config, fleet_of(config), 3) == chosen(config, 3)


def test_queue_shuffled_by_seed_and_round() -> None:
    config = config_of(order="shuffled", clients_per_round=0.5)
    queues = [queue_order(config, fleet_of(config), number) for number in range(1, 6)]
    assert queues == [queue_order(config, fleet_of(config), number) for number in range(1, 6)]
    assert [tuple(sorted(queue)) for queue in queues] == [chosen(config, number) for number in range(1, 6)]
    assert any(list(queue) != sorted(queue) for queue in queues)


# What happens after a round


def rounds_after_which(config: Config) -> list[int]:
    return [
        number
        for number in range(1, config.training.rounds + 1)
        if strategy_of(config).aggregates_after(config.training, number)
    ]


def test_averaging_aggregates_every_so_many_rounds_and_in_the_last() -> None:
    assert rounds_after_which(config_of(rounds=4)) == [1, 2, 3, 4]
    assert rounds_after_which(config_of(rounds=7, aggregate_every=3)) == [3, 6, 7]
    assert rounds_after_which(config_of(rounds=2, aggregate_every=9)) == [2]
    assert rounds_after_which(config_of(rounds=4, aggregate="server", aggregate_every=2)) == [2, 4]


@pytest.mark.parametrize(("aggregate", "rounds"), [("all", [2, 3]), ("both", [2, 3]), ("server", [])])
def test_sequential_has_server_copies_to_average_only_with_clients(aggregate: str, rounds: list[int]) -> None:
    config = config_of(rounds=3, strategy="sequential", aggregate=aggregate, aggregate_every=2)
    assert rounds_after_which(config) == rounds


@pytest.mark.parametrize("strategy", ["distributed", "centralized"])
def test_distributed_and_centralized_never_aggregate(strategy: str) -> None:
    assert rounds_after_which(config_of(rounds=3, strategy=strategy)) == []


def test_evaluation_every_so_many_rounds_and_in_the_last() -> None:
    config = load_config(config_of(rounds=5).model_dump(), ["evaluation.every=2"])
    assert [number for number in range(1, 6) if evaluates_after(config, number)] == [2, 4, 5]


# Learning rate


def rates(schedule: dict[str, Any], rounds: int, until: int) -> list[float]:
    training = config_of(rounds=rounds, optimizer={"lr": 0.8}, lr_schedule=schedule).training
    return [learning_rate(training, number) for number in range(1, until + 1)]


def test_constant_rate() -> None:
    assert rates({"name": "constant"}, 3, 5) == [0.8] * 5


def test_step_rate() -> None:
    assert rates({"name": "step", "every": 2, "factor": 0.5}, 6, 6) == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]


def test_cosine_rate_and_beyond_its_horizon() -> None:
    # 0.4 (1 + cos(pi t / 3)) at t = 0, 1, 2: cosines 1, 1/2, -1/2. Beyond the horizon, the last one.
    assert rates({"name": "cosine"}, 3, 5) == pytest.approx([0.8, 0.6, 0.2, 0.2, 0.2], rel=1e-12)


def test_cosine_rate_with_a_horizon_of_its_own() -> None:
    # t / 2 = 0, 1/2: cosines 1, 0.
    assert rates({"name": "cosine", "horizon_rounds": 2}, 4, 4) == pytest.approx([0.8, 0.4, 0.4, 0.4], rel=1e-12)


def test_a_warm_up_rises_in_equal_steps_to_the_schedule() -> None:
    # A third and two thirds of the rate, before and below a step in the second round.
    training = config_of(
        rounds=4, warmup_rounds=2, optimizer={"lr": 0.9}, lr_schedule={"name": "step", "every": 1, "factor": 0.5}
    ).training
    rates = [learning_rate(training, number) for number in range(1, 5)]
    assert rates == pytest.approx([0.3, 0.3, 0.225, 0.1125], rel=1e-12)


# Batches


@pytest.mark.parametrize(
    ("n_samples", "bounds"),
    [
        (8, [(0, 4), (4, 8)]),
        (10, [(0, 4), (4, 8), (8, 10)]),
        (9, [(0, 4), (4, 9)]),
        (5, [(0, 5)]),
        (3, [(0, 3)]),
        (1, [(0, 1)]),
    ],
)
def test_a_last_batch_of_one_sample_joins_the_one_before(n_samples: int, bounds: list[tuple[int, int]]) -> None:
    assert batch_bounds(n_samples, 4) == bounds


def test_a_round_is_so_many_passes() -> None:
    training = config_of(local_epochs=2).training
    assert round_batches(training, 6, 4) == (
        BatchSlice(0, 0, 0, 4),
        BatchSlice(1, 0, 4, 6),
        BatchSlice(2, 1, 0, 4),
        BatchSlice(3, 1, 4, 6),
    )


def test_a_round_of_fixed_steps_begins_another_pass_where_it_must() -> None:
    training = config_of(local_steps=5, local_epochs=7).training
    assert round_batches(training, 6, 4) == (
        BatchSlice(0, 0, 0, 4),
        BatchSlice(1, 0, 4, 6),
        BatchSlice(2, 1, 0, 4),
        BatchSlice(3, 1, 4, 6),
        BatchSlice(4, 2, 0, 4),
    )


def test_a_round_of_fewer_steps_than_batches() -> None:
    assert round_batches(config_of(local_steps=1).training, 100, 4) == (BatchSlice(0, 0, 0, 4),)


def test_whole_turns() -> None:
    assert ordered_steps([2, 0], {0: 1, 1: 9, 2: 2}, "client") == [(2, 0), (2, 1), (0, 0)]


def test_batches_in_turn_with_unequal_counts() -> None:
    assert ordered_steps([2, 0, 1], {0: 1, 1: 3, 2: 2}, "batch") == [
        (2, 0),
        (0, 0),
        (1, 0),
        (2, 1),
        (1, 1),
        (1, 2),
    ]
