"""Which copies count and what their mean is: three clients with unequal cuts over a toy network a, b, c, d.

Client 0 holds a, client 1 holds a b, client 2 holds a b c; their servers hold the rest. Every unit is one number:
1, 2 and 6 in the clients' copies, 10, 20 and 60 in the servers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import Fleet, ModelId
from hsee_ray.config.schema import AdamStep, Config, MeanStep, MomentumStep
from hsee_ray.method.aggregation import Aggregation, Copy, Ledger, average_units, maximum, mean_arrays, plan_aggregation
from hsee_ray.method.average_step import step_average
from hsee_ray.method.strategies import build_fleet, strategy_of
from hsee_ray.models.state import UnitState

UNITS = ("a", "b", "c", "d")
CLIENTS = [ModelId("client", number) for number in range(3)]
SERVERS = [ModelId("server", number) for number in range(3)]
VALUES = {**dict(zip(CLIENTS, (1.0, 2.0, 6.0), strict=True)), **dict(zip(SERVERS, (10.0, 20.0, 60.0), strict=True))}
SAMPLES = (1, 1, 2)


def run_of(cuts: tuple[str, ...] = ("a", "b", "c"), **training: Any) -> tuple[Config, Fleet]:
    tiers = [{"name": f"tier{number}", "clients": 1, "cut": cut} for number, cut in enumerate(cuts)]
    config = load_config({"tiers": tiers, "training": training})
    return config, build_fleet(config, UNITS)


def unit(value: float, **parts: Any) -> UnitState:
    return UnitState(
        **{"parameters": {"w": np.float32([value])}, "buffers": {}, "statistics": {}, "optimizer": {}} | parts
    )


def averages(plan: Aggregation, values: Mapping[ModelId, float] = VALUES) -> dict[str, float]:
    """The mean behind every key of a plan."""
    return {
        key: float(
            average_units(
                [unit(values[copy.model]) for copy in copies], [copy.weight for copy in copies], False, False
            ).parameters["w"][0]
        )
        for key, copies in plan.copies.items()
    }


def after(plan: Aggregation) -> dict[ModelId, dict[str, float]]:
    """What every model that takes an average holds then."""
    means = averages(plan)
    return {model: {name: means[key] for name, key in units.items()} for model, units in plan.takes.items()}


# Which copies count


def test_units_that_clients_look_ahead_through_are_averaged_among_peers() -> None:
    config, fleet = run_of(("a", "a", "b"), look_ahead={"units": 2})
    plan = plan_aggregation(config, fleet, {0, 1, 2}, SAMPLES)
    ahead = {key: [copy.model.client_id for copy in copies] for key, copies in plan.copies.items() if "ahead" in key}
    # b and c for the first two; the last unit, d, is never looked through. Client 2 has no peer.
    assert ahead == {"ahead/a/b": [0, 1], "ahead/a/c": [0, 1], "ahead/a/exit": [0, 1]}
    assert plan.takes[CLIENTS[0]]["ahead.b"] == "ahead/a/b"
    assert "ahead.c" not in plan.takes[CLIENTS[2]]


def test_units_that_clients_look_ahead_through_take_the_networks_average_without_a_part_in_it() -> None:
    config, fleet = run_of(look_ahead={"units": 1, "copies": "network"})
    plan = plan_aggregation(config, fleet, {0, 1, 2}, SAMPLES)
    # Copies of b: on clients 1 and 2, at server 0, and ahead of client 0.
    assert averages(plan)["all/b"] == pytest.approx((2 + 6 + 10) / 3)
    assert plan.takes[CLIENTS[0]]["ahead.b"] == "all/b"
    alone = plan_aggregation(config, fleet, {0}, SAMPLES)
    assert averages(alone)["all/b"] == 10
    assert alone.takes == {CLIENTS[0]: {"ahead.b": "all/b"}}, "the one copy that counts is left as it is"


def test_all_copies_of_a_unit_make_one_global_network() -> None:
    plan = plan_aggregation(*run_of(aggregate="all"), (0, 1, 2), SAMPLES)
    # a: 1 2 6; b: 2 6 and 10; c: 6 and 10 20; d: 10 20 60. Every cut has one head only: heads stay.
    assert after(plan) == {
        CLIENTS[0]: {"a": 3.0},
        CLIENTS[1]: {"a": 3.0, "b": 6.0},
        CLIENTS[2]: {"a": 3.0, "b": 6.0, "c": 12.0},
        SERVERS[0]: {"b": 6.0, "c": 12.0, "d": 30.0},
        SERVERS[1]: {"c": 12.0, "d": 30.0},
        SERVERS[2]: {"d": 30.0},
    }
    assert plan.sources == (*CLIENTS, *SERVERS)


def test_both_sides_are_kept_apart() -> None:
    plan = plan_aggregation(*run_of(aggregate="both"), (0, 1, 2), SAMPLES)
    # c on clients and b on servers have one copy each, which is left as it is.
    assert after(plan) == {
        CLIENTS[0]: {"a": 3.0},
        CLIENTS[1]: {"a": 3.0, "b": 4.0},
        CLIENTS[2]: {"a": 3.0, "b": 4.0},
        SERVERS[0]: {"c": 15.0, "d": 30.0},
        SERVERS[1]: {"c": 15.0, "d": 30.0},
        SERVERS[2]: {"d": 30.0},
    }


def test_with_server_copies_alone_no_client_gives_its_parameters_away() -> None:
    plan = plan_aggregation(*run_of(aggregate="server"), (0, 1, 2), SAMPLES)
    assert after(plan) == {
        SERVERS[0]: {"c": 15.0, "d": 30.0},
        SERVERS[1]: {"c": 15.0, "d": 30.0},
        SERVERS[2]: {"d": 30.0},
    }
    assert plan.sources == tuple(SERVERS)


def test_heads_are_averaged_among_clients_of_the_same_cut() -> None:
    config, fleet = run_of(cuts=("b", "a", "b", "d"), aggregate="both")
    plan = plan_aggregation(config, fleet, range(4), (1, 1, 1, 1))
    assert [copy.model.client_id for copy in plan.copies["exit/b"]] == [0, 2]
    assert "exit/a" not in plan.copies
    # The client with the whole network has no head, and no server.
    assert strategy_of(config).averaged_units(config.training, fleet)[ModelId("client", 3)] == {
        name: f"client/{name}" for name in UNITS
    }
    assert ModelId("server", 3) not in strategy_of(config).averaged_units(config.training, fleet)


def test_weights_by_samples() -> None:
    plan = plan_aggregation(*run_of(aggregate="all", aggregate_weights="samples"), (0, 1, 2), SAMPLES)
    # a: (1 + 2 + 2*6) / 4; b: (2 + 2*6 + 10) / 4; c: (2*6 + 10 + 20) / 4; d: (10 + 20 + 2*60) / 4.
    assert averages(plan) == {"all/a": 3.75, "all/b": 6.0, "all/c": 10.5, "all/d": 37.5}


@pytest.mark.parametrize("strategy", ["distributed", "centralized"])
def test_nobody_averages_in_distributed_and_centralized(strategy: str) -> None:
    plan = plan_aggregation(*run_of(strategy=strategy), (0, 1, 2), SAMPLES)
    assert (plan.copies, plan.takes, plan.sources) == ({}, {}, ())


def test_copies_that_did_not_train_do_not_count() -> None:
    plan = plan_aggregation(*run_of(aggregate="all"), (0, 1), SAMPLES)
    # a: 1 2; b: 2 and 10; c: 10 20; d: 10 20.
    assert after(plan) == {
        CLIENTS[0]: {"a": 1.5},
        CLIENTS[1]: {"a": 1.5, "b": 6.0},
        SERVERS[0]: {"b": 6.0, "c": 15.0, "d": 15.0},
        SERVERS[1]: {"c": 15.0, "d": 15.0},
    }


def test_a_single_copy_that_trained_is_left_as_it_is_but_is_the_newest_average() -> None:
    plan = plan_aggregation(*run_of(aggregate="all"), [2], SAMPLES)
    assert plan.takes == {}
    assert averages(plan) == {"all/a": 6.0, "all/b": 6.0, "all/c": 6.0, "all/d": 60.0}


def test_the_plan_does_not_depend_on_who_finished_first() -> None:
    config, fleet = run_of(aggregate="all", aggregate_weights="samples")
    plan = plan_aggregation(config, fleet, [0, 1, 2], SAMPLES)
    assert plan_aggregation(config, fleet, [2, 0, 1], SAMPLES) == plan
    assert plan.copies["all/c"] == (
        Copy(CLIENTS[2], "c", 2.0),
        Copy(SERVERS[0], "c", 1.0),
        Copy(SERVERS[1], "c", 1.0),
    )


# Sequential: one shared server, which holds b, c and d.


def test_the_shared_server_weighs_as_many_samples_as_passed_the_unit() -> None:
    plan = plan_aggregation(
        *run_of(strategy="sequential", aggregate="all", aggregate_weights="samples"), (0, 1, 2), SAMPLES
    )
    shared = SERVERS[0]
    assert plan.copies["all/b"] == (Copy(CLIENTS[1], "b", 1.0), Copy(CLIENTS[2], "b", 2.0), Copy(shared, "b", 1.0))
    assert plan.copies["all/c"] == (Copy(CLIENTS[2], "c", 2.0), Copy(shared, "c", 2.0))
    # d is nowhere but in the shared server.
    assert "all/d" not in plan.copies
    # b: (2 + 2*6 + 10) / 4; c: (2*6 + 2*10) / 4.
    assert averages(plan) == {"all/a": 3.75, "all/b": 6.0, "all/c": 8.0}
    assert after(plan)[shared] == {"b": 6.0, "c": 8.0}


def test_the_shared_server_does_not_count_for_a_unit_that_nobody_passed() -> None:
    plan = plan_aggregation(*run_of(strategy="sequential", aggregate="all"), (1, 2), SAMPLES)
    assert [copy.model for copy in plan.copies["all/b"]] == [CLIENTS[1], CLIENTS[2]]
    assert [copy.model for copy in plan.copies["all/c"]] == [CLIENTS[2], SERVERS[0]]
    assert plan.takes[SERVERS[0]] == {"c": "all/c"}


def test_both_leaves_the_shared_server_alone() -> None:
    plan = plan_aggregation(*run_of(strategy="sequential", aggregate="both"), (0, 1, 2), SAMPLES)
    assert set(plan.copies) == {"client/a", "client/b"}
    assert SERVERS[0] not in plan.takes


def test_sequential_without_any_server_averages_the_clients() -> None:
    config, fleet = run_of(cuts=("d", "d"), strategy="sequential", aggregate="all")
    plan = plan_aggregation(config, fleet, (0, 1), (1, 1))
    assert set(plan.copies) == {"all/a", "all/b", "all/c", "all/d"}
    assert plan.sources == (CLIENTS[0], CLIENTS[1])


# Who sat out


def test_a_client_that_sat_out_starts_from_the_newest_averages_once() -> None:
    config, fleet = run_of(aggregate="all")
    ledger = Ledger()
    assert ledger.catch_up(config, fleet, [1, 2]) == {}
    ledger.record(plan_aggregation(config, fleet, [1, 2], SAMPLES), 1)
    assert ledger.catch_up(config, fleet, [0, 1]) == {
        CLIENTS[0]: {"a": "all/a"},
        SERVERS[0]: {"b": "all/b", "c": "all/c", "d": "all/d"},
    }
    assert ledger.catch_up(config, fleet, [0, 1]) == {}


def test_who_trained_alone_since_leaves_the_others_behind() -> None:
    config, fleet = run_of(aggregate="both")
    ledger = Ledger()
    ledger.record(plan_aggregation(config, fleet, [0, 1, 2], SAMPLES), 1)
    ledger.record(plan_aggregation(config, fleet, [0], SAMPLES), 2)
    # Of what client 0 trained, client 1 shares a on the client, and c and d on the server.
    assert ledger.catch_up(config, fleet, [1]) == {
        CLIENTS[1]: {"a": "client/a"},
        SERVERS[1]: {"c": "server/c", "d": "server/d"},
    }


def test_the_shared_server_catches_up_with_a_unit_when_a_batch_passes_it_again() -> None:
    config, fleet = run_of(strategy="sequential", aggregate="all")
    ledger = Ledger()
    ledger.record(plan_aggregation(config, fleet, [1, 2], SAMPLES), 1)
    assert ledger.catch_up(config, fleet, [1, 2]) == {}
    assert ledger.catch_up(config, fleet, [0]) == {CLIENTS[0]: {"a": "all/a"}, SERVERS[0]: {"b": "all/b"}}
    assert ledger.catch_up(config, fleet, [0]) == {}


# The mean


def test_statistics_are_averaged_only_when_shared() -> None:
    one = unit(1.0, statistics={"running_mean": np.float32([1, 5]), "num_batches_tracked": np.int64(4)})
    two = unit(2.0, statistics={"running_mean": np.float32([3, 7]), "num_batches_tracked": np.int64(9)})
    assert average_units([one, two], [1, 1], statistics=False, optimizer=False).statistics == {}
    shared = average_units([one, two], [1, 3], statistics=True, optimizer=False).statistics
    np.testing.assert_array_equal(shared["running_mean"], np.float32([2.5, 6.5]))
    assert shared["num_batches_tracked"] == 9
    assert shared["num_batches_tracked"].dtype == np.int64


def test_other_buffers_are_averaged_and_integers_take_the_maximum() -> None:
    one = unit(0.0, buffers={"scale": np.float32([1]), "seen": np.int64([[3, 8]]), "on": np.array([True, False])})
    two = unit(0.0, buffers={"scale": np.float32([2]), "seen": np.int64([[5, 2]]), "on": np.array([False, False])})
    buffers = average_units([one, two], [1, 1], statistics=False, optimizer=False).buffers
    assert buffers["scale"].tolist() == [1.5]
    assert buffers["seen"].tolist() == [[5, 8]]
    assert buffers["on"].tolist() == [True, False]
    assert [buffers[name].dtype for name in ("scale", "seen", "on")] == [np.float32, np.int64, np.bool_]


def test_optimiser_states_are_averaged_on_demand_and_steps_take_the_maximum() -> None:
    def adamw(step: float, average: float) -> dict[str, Any]:
        return {"w": {"step": np.float32(step), "exp_avg": np.float32([average])}}

    one, two = unit(0.0, optimizer=adamw(3, 1)), unit(0.0, optimizer=adamw(8, 5))
    assert average_units([one, two], [1, 1], statistics=True, optimizer=False).optimizer == {}
    mean = average_units([one, two], [3, 1], statistics=False, optimizer=True).optimizer["w"]
    assert mean["step"] == 8.0
    assert mean["step"].shape == ()
    assert mean["exp_avg"].tolist() == [2.0]


def test_sums_run_in_float64() -> None:
    # In float32, 2**24 + 1 is 2**24, and the mean would be 0.
    arrays = [np.float32([value]) for value in (2.0**24, 1.0, 2.0, -(2.0**24))]
    mean = mean_arrays(arrays, [1, 1, 1, 1])
    assert mean.tolist() == [0.75]
    assert mean.dtype == np.float32


def test_the_mean_does_not_depend_on_the_order_of_names() -> None:
    def state(value: float, names: str) -> UnitState:
        return unit(0.0, parameters={name: np.float32([value + ord(name)]) for name in names})

    forwards = average_units([state(1, "xyz"), state(2, "xyz")], [1, 2], False, False).parameters
    backwards = average_units([state(1, "zyx"), state(2, "yxz")], [1, 2], False, False).parameters
    assert {name: array.tolist() for name, array in forwards.items()} == {
        name: array.tolist() for name, array in backwards.items()
    }


def test_the_mean_of_one_copy_is_that_copy() -> None:
    array = np.float32([0.1, -1e-30, 3e38])
    np.testing.assert_array_equal(mean_arrays([array], [7.0]), array)


def test_copies_are_left_as_they_are() -> None:
    array = np.float32([4.0])
    mean_arrays([array, np.float32([8.0])], [1, 1])
    maximum([array, np.float32([8.0])])
    assert array.tolist() == [4.0]


def test_an_optimizer_that_never_stepped_has_no_part_in_the_mean() -> None:
    fresh = unit(1.0)
    stepped = [unit(1.0, optimizer={"w": {"momentum_buffer": np.float32([value])}}) for value in (2.0, 5.0)]
    mean = average_units([fresh, *stepped], [9.0, 1.0, 2.0], statistics=False, optimizer=True)
    assert mean.optimizer["w"]["momentum_buffer"].tolist() == [4.0]
    assert average_units([fresh, fresh], [1.0, 1.0], statistics=False, optimizer=True).optimizer == {}


# Steps towards the mean


def test_an_average_moves_towards_the_mean_with_momentum_by_hand() -> None:
    step = MomentumStep(name="momentum", lr=0.5, momentum=0.5)
    first = step_average(unit(2.0), unit(1.0), 2, step)
    # v = 1, w = 1 + 0.5; then d = 2 - 1.5, v = 0.5 + 0.5, w = 1.5 + 0.5.
    assert first.parameters["w"].tolist() == [1.5]
    second = step_average(unit(2.0), first, 2, step)
    assert second.parameters["w"].tolist() == [2.0]
    assert second.moments["w"]["first"].tolist() == [1.0]


def test_an_average_moves_towards_the_mean_by_adams_rule_by_hand() -> None:
    step = AdamStep(name="adam", lr=1.0, betas=(0.5, 0.75), eps=0.5)
    taken = step_average(unit(3.0, buffers={"b": np.float32([7])}), unit(1.0, buffers={"b": np.float32([5])}), 2, step)
    # d = 2, v = 1, s = 1: w = 1 + 1 / 1.5.
    assert taken.parameters["w"].tolist() == pytest.approx([1 + 1 / 1.5])
    assert taken.buffers["b"].tolist() == [7], "only parameters take steps"


@pytest.mark.parametrize("step", [MeanStep(), MomentumStep(name="momentum"), AdamStep(name="adam")])
def test_the_first_average_is_the_mean(step: MeanStep | MomentumStep | AdamStep) -> None:
    assert step_average(unit(2.0), None, 2, step) == unit(2.0)


def test_a_single_copy_is_the_newest_average_as_it_is() -> None:
    step = MomentumStep(name="momentum")
    before = step_average(unit(2.0), unit(1.0), 2, step)
    alone = step_average(unit(9.0), before, 1, step)
    assert (alone.parameters["w"].tolist(), alone.moments) == ([9.0], before.moments)


def test_weights_by_depth_and_of_servers() -> None:
    plan = plan_aggregation(*run_of(aggregate_weights="depth", server_weight=0.5), {0, 1, 2}, SAMPLES)
    # Copies of b: clients 1 and 2 hold two and three units, and server 0 is client 0's, who holds one.
    assert [copy.weight for copy in plan.copies["all/b"]] == [2, 3, 0.5]
