"""Strategies without servers: what each client holds, and with whom its copies are averaged."""

from __future__ import annotations

from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import EXIT, ModelId
from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError
from hsee_ray.method.aggregation import plan_aggregation
from hsee_ray.method.strategies import build_fleet, models_of, strategy_of

UNITS = ("a", "b", "c", "d")
TIERS = [
    {"name": "weak", "clients": 2, "cut": "a", "codec": "int8", "stages": ["fp16"]},
    {"name": "strong", "clients": 2, "cut": "c"},
]
STRATEGIES = ("fedavg", "smallest", "per_tier", "depthfl")


def config_of(strategy: Any, tiers: list[dict[str, Any]] = TIERS, **training: Any) -> Config:
    return load_config({"tiers": tiers, "training": {"strategy": strategy, **training}})


def averaged(config: Config, samples: tuple[int, ...] = (1, 1, 1, 1)) -> dict[str, dict[int, float]]:
    """By average: the clients behind it, and their weights."""
    plan = plan_aggregation(config, build_fleet(config, UNITS), range(4), samples)
    assert all(copy.model.side == "client" for copies in plan.copies.values() for copy in copies)
    return {key: {copy.model.client_id: copy.weight for copy in copies} for key, copies in plan.copies.items()}


@pytest.mark.parametrize(
    ("strategy", "cuts", "has_exit"),
    [
        ("fedavg", [4, 4, 4, 4], False),
        ("smallest", [1, 1, 1, 1], True),
        ("per_tier", [1, 1, 3, 3], True),
        ("depthfl", [1, 1, 3, 3], True),
    ],
)
def test_a_client_has_its_units_and_no_server(strategy: str, cuts: list[int], has_exit: bool) -> None:
    config = config_of(strategy)
    fleet = build_fleet(config, UNITS)
    assert [client.cut for client in fleet.clients] == cuts
    assert [client.cut_name for client in fleet.clients] == [UNITS[cut - 1] for cut in cuts]
    assert {(client.has_exit, client.has_server) for client in fleet.clients} == {(has_exit, False)}
    assert {(client.codec, client.stages) for client in fleet.clients} == {("none", ())}, "nothing is sent"
    assert models_of(strategy_of(config), fleet) == [ModelId("client", number) for number in range(4)]


def test_fedavg_does_not_look_at_cuts() -> None:
    fleet = build_fleet(config_of("fedavg", [{"name": "a", "clients": 2, "cut": "no matter"}]), UNITS)
    assert [client.cut_name for client in fleet.clients] == ["d", "d"]


@pytest.mark.parametrize("strategy", ["smallest", "per_tier", "depthfl"])
def test_others_need_a_cut_that_is_there(strategy: str) -> None:
    with pytest.raises(ConfigError, match=r"^tiers\.0\.cut is 'e': the network has no such cut"):
        build_fleet(config_of(strategy, [{"name": "a", "clients": 2, "cut": "e"}]), UNITS)


def test_fedavg_averages_the_whole_network_over_all() -> None:
    everyone = dict.fromkeys(range(4), 1.0)
    assert averaged(config_of("fedavg")) == {f"all/{unit}": everyone for unit in UNITS}
    weighted = averaged(config_of("fedavg", aggregate_weights="samples"), (1, 2, 3, 4))
    assert weighted["all/d"] == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}


def test_the_smallest_model_is_averaged_over_all_with_its_exit() -> None:
    everyone = dict.fromkeys(range(4), 1.0)
    assert averaged(config_of("smallest")) == {"all/a": everyone, f"{EXIT}/a": everyone}


@pytest.mark.parametrize("aggregate", ["all", "both"])
def test_models_of_tiers_are_averaged_within_their_tier(aggregate: str) -> None:
    weak, strong = {0: 1.0, 1: 1.0}, {2: 1.0, 3: 1.0}
    found = averaged(config_of("per_tier", aggregate=aggregate))
    assert sorted(found.values(), key=min) == [weak] * 2 + [strong] * 4, "a exit; a b c exit"
    assert all(key.startswith("tier0/" if 0 in own else "tier1/") for key, own in found.items())


def test_tiers_of_equal_cuts_stay_apart() -> None:
    tiers = [{**tier, "cut": "b"} for tier in TIERS]
    assert [set(own) for own in averaged(config_of("per_tier", tiers)).values()] == [{0, 1}] * 3 + [{2, 3}] * 3


def test_depthfl_has_an_exit_at_every_cut_below_and_averages_those_of_one_cut() -> None:
    config = config_of("depthfl", [*TIERS, {"name": "whole", "clients": 1, "cut": "d"}])
    fleet = build_fleet(config, UNITS)
    assert [client.inner_exits for client in fleet.clients] == [(), (), (1,), (1,), (1, 3)]
    plan = plan_aggregation(config, fleet, range(5), (1, 1, 1, 1, 1))
    heads = {key: [(copy.model.client_id, copy.unit) for copy in plan.copies[f"exit/{key}"]] for key in ("a", "c")}
    assert heads["a"] == [(0, "exit"), (1, "exit"), (2, "exits.a"), (3, "exits.a"), (4, "exits.a")]
    assert heads["c"] == [(2, "exit"), (3, "exit"), (4, "exits.c")]
    assert "d" not in plan.takes[ModelId("client", 4)], "it has one copy"


def test_distillation_has_a_weight_of_0_or_above() -> None:
    assert strategy_of(config_of("depthfl")).distillation == 1.0
    config = config_of({"name": "depthfl", "options": {"distillation": -0.1}})
    with pytest.raises(ConfigError, match=r"^training\.strategy\.options\.distillation is -0\.1: .* equal to 0$"):
        strategy_of(config)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_servers_that_are_not_there_cannot_be_averaged(strategy: str) -> None:
    with pytest.raises(ConfigError, match=rf"^training\.aggregate is 'server', and {strategy} has no servers.*use all"):
        build_fleet(config_of(strategy, aggregate="server"), UNITS)
