"""What a run asks of Ray, and whether a cluster can ever give it. Needs no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from actors.cluster.connection import local_resources
from actors.cluster.requests import requests
from actors.cluster.resources import Request
from actors.cluster.slots import plan_slots
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import Fleet
from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError
from hsee_ray.method.strategies import build_fleet

UNITS = ("stem", "layer1", "head")


def ask(**resources: float) -> Request:
    return Request("client 000 of tier sensor", "sensor", "tiers.0.resources", resources)


def gpus(*amounts: float) -> float:
    return local_resources([ask(CPU=0, GPU=amount) for amount in amounts])["GPU"]


# What a run asks for


def all_requests(config: Config, fleet: Fleet) -> list[Request]:
    """Of a run in which every model has an actor of its own."""
    return requests(config, fleet, plan_slots(config, fleet, None, 1))


def asked(tiers: list[dict[str, Any]], strategy: str = "averaging") -> list[tuple[str, str, float]]:
    config = load_config({"tiers": tiers, "server": {"resources": {"num_cpus": 2}}, "training": {"strategy": strategy}})
    return [
        (request.who, request.config_key, request.resources["CPU"])
        for request in all_requests(config, build_fleet(config, UNITS))
    ]


SENSOR = {"name": "sensor", "clients": 2, "cut": "stem", "resources": {"num_cpus": 0.5}}
PHONE = {"name": "phone", "clients": 1, "cut": "head"}


def test_averaging_asks_for_a_server_beside_every_client_that_has_one() -> None:
    assert asked([SENSOR, PHONE]) == [
        ("client 000 of tier sensor", "tiers.0.resources", 0.5),
        ("the server of client 000", "server.resources", 2.0),
        ("client 001 of tier sensor", "tiers.0.resources", 0.5),
        ("the server of client 001", "server.resources", 2.0),
        ("client 002 of tier phone", "tiers.1.resources", 1.0),
    ]
    assert asked([SENSOR, PHONE], "distributed") == asked([SENSOR, PHONE])


def test_sequential_asks_for_one_server() -> None:
    assert asked([SENSOR, PHONE], "sequential") == [
        ("the shared server", "server.resources", 2.0),
        ("client 000 of tier sensor", "tiers.0.resources", 0.5),
        ("client 001 of tier sensor", "tiers.0.resources", 0.5),
        ("client 002 of tier phone", "tiers.1.resources", 1.0),
    ]
    assert asked([PHONE], "sequential") == [("client 000 of tier phone", "tiers.0.resources", 1.0)]


def test_centralized_asks_for_its_client_on_the_servers_resources() -> None:
    assert asked([SENSOR, PHONE], "centralized") == [("client central of tier central", "server.resources", 2.0)]


def test_everything_that_a_client_asks_for_is_passed_on() -> None:
    resources = {
        "num_cpus": 0.5,
        "num_gpus": 0.25,
        "memory": 1000,
        "custom": {"jetson": 1},
        "accelerator_type": "T4",
        "label_selector": {"zone": "a"},
    }
    config = load_config({"tiers": [{**SENSOR, "resources": resources}]})
    first = all_requests(config, build_fleet(config, UNITS))[0]
    assert first.resources == {"CPU": 0.5, "GPU": 0.25, "memory": 1000.0, "jetson": 1.0, "accelerator_type:T4": 0.001}
    assert first.label_selector == {"zone": "a"}
    assert (first.tier, first.pair) == ("sensor", None)


def test_colocated_clients_and_servers_go_in_pairs() -> None:
    config = load_config({"tiers": [SENSOR, PHONE], "cluster": {"placement": "colocate"}})
    asked_for = all_requests(config, build_fleet(config, UNITS))
    assert [(request.tier, request.pair) for request in asked_for] == [
        ("sensor", 0),
        ("servers", 0),
        ("sensor", 1),
        ("servers", 1),
        ("phone", None),
    ]


def test_one_server_for_all_cannot_be_beside_each_of_them() -> None:
    training, cluster = {"strategy": "sequential"}, {"placement": "colocate"}
    config = load_config({"tiers": [SENSOR], "training": training, "cluster": cluster})
    with pytest.raises(ConfigError, match="sequential has one server for all clients: use pack or spread"):
        build_fleet(config, UNITS)


def test_rays_own_resources_are_not_custom_ones() -> None:
    with pytest.raises(ConfigError, match="say num_gpus instead"):
        load_config({"tiers": [{**SENSOR, "resources": {"custom": {"GPU": 1}}}]})


# A local Ray


def test_a_local_ray_has_room_for_all_actors_at_once() -> None:
    local = local_resources([ask(CPU=0.5, jetson=1), ask(CPU=1), ask(CPU=0.25, jetson=0.5, memory=1e9)])
    assert local == {"CPU": 2, "GPU": 0, "jetson": 2}


def test_no_requests_need_nothing() -> None:
    assert local_resources([]) == {"CPU": 0, "GPU": 0}


@pytest.mark.parametrize(
    ("amounts", "whole"),
    [
        ((0.5, 0.5), 1),
        ((0.25, 0.5, 0.25), 1),
        ((0.75, 0.75), 2),
        ((0.75, 0.75, 0.25, 0.25), 2),
        ((0.25, 0.75, 0.75), 2),
        ((1, 1), 2),
        ((2, 0.5, 0.5), 3),
        ((0, 0), 0),
    ],
)
def test_fractions_share_a_gpu_only_when_they_fit_on_it(amounts: tuple[float, ...], whole: int) -> None:
    assert gpus(*amounts) == whole


def test_decimal_fractions_that_fill_a_gpu_share_it() -> None:
    assert gpus(0.8, 0.2) == 1
