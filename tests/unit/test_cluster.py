"""What a run asks of Ray, and whether a cluster can ever give it. Needs no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from actors.cluster import check_feasible, local_resources
from actors.placement import Request, requests
from hsee_ray.config_files import load_config
from hsee_ray.errors import ResourceError
from hsee_ray.fleet import build_fleet

UNITS = ("stem", "layer1", "head")


def ask(**resources: float) -> Request:
    return Request("client 000 of tier sensor", "tiers.0.resources", resources)


def gpus(*amounts: float) -> float:
    return local_resources([ask(CPU=0, GPU=amount) for amount in amounts])["GPU"]


# What a run asks for


def asked(tiers: list[dict[str, Any]], strategy: str = "averaging") -> list[tuple[str, str, float]]:
    config = load_config({"tiers": tiers, "server": {"resources": {"num_cpus": 2}}, "training": {"strategy": strategy}})
    return [
        (request.who, request.config_key, request.resources["CPU"])
        for request in requests(config, build_fleet(config, UNITS))
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
    resources = {"num_cpus": 0.5, "num_gpus": 0.25, "memory": 1000, "custom": {"jetson": 1}}
    config = load_config({"tiers": [{**SENSOR, "resources": resources}]})
    first = requests(config, build_fleet(config, UNITS))[0]
    assert first.resources == {"CPU": 0.5, "GPU": 0.25, "memory": 1000.0, "jetson": 1.0}


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


# Feasible or not


def shortage(asked_for: list[Request], *nodes: dict[str, float]) -> str:
    with pytest.raises(ResourceError) as caught:
        check_feasible(asked_for, nodes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_fits_is_let_through() -> None:
    check_feasible([ask(CPU=2, GPU=1), ask(CPU=1), ask(CPU=1)], [{"CPU": 2}, {"CPU": 2, "GPU": 1}])
    check_feasible([ask(CPU=0, GPU=0)], [{"CPU": 1}])
    check_feasible([], [])


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
def test_fractions_of_a_cpu_add_up(share: float) -> None:
    exactly = [ask(CPU=share)] * round(2 / share)
    check_feasible(exactly, [{"CPU": 1}, {"CPU": 1}])
    assert "finds no room beside the others" in shortage([*exactly, ask(CPU=share)], {"CPU": 1}, {"CPU": 1})


def test_two_fractions_of_a_gpu_that_do_not_fit_on_one() -> None:
    wanted = [ask(GPU=0.75), ask(GPU=0.75)]
    check_feasible(wanted, [{"GPU": 1}, {"GPU": 1}])
    assert "finds no room" in shortage(wanted, {"GPU": 1})


def test_a_request_that_no_node_can_hold() -> None:
    told = shortage([ask(CPU=1), ask(CPU=4, GPU=1)], {"CPU": 8, "node:10.0.0.1": 1}, {"CPU": 2, "GPU": 1})
    assert told == (
        "client 000 of tier sensor asks for 4 CPU, 1 GPU, and no node of the cluster has that "
        "(nodes: 8 CPU; 2 CPU, 1 GPU); lower tiers.0.resources or add such a node"
    )


def test_a_custom_resource_that_no_node_has() -> None:
    told = shortage([ask(CPU=1, jetson=1)], {"CPU": 4})
    assert told.startswith("client 000 of tier sensor asks for 1 CPU, 1 jetson, and no node of the cluster has that")


def test_a_total_that_is_too_large() -> None:
    server = Request("the server of client 000", "server.resources", {"CPU": 1.0})
    told = shortage([ask(CPU=2), server, server], {"CPU": 2}, {"CPU": 1})
    assert told == (
        "the run asks for 4 CPU in 3 actors, and the server of client 000 (1 CPU) finds no room beside the others "
        "(nodes: 2 CPU; 1 CPU); lower server.resources or the number of clients, or add nodes"
    )


def test_large_requests_are_placed_before_small_ones() -> None:
    check_feasible([ask(CPU=1), ask(CPU=1), ask(CPU=2)], [{"CPU": 2}, {"CPU": 2}])


def test_requests_without_gpu_leave_the_gpu_nodes_to_those_with() -> None:
    check_feasible([ask(CPU=1), ask(CPU=1, GPU=1)], [{"CPU": 1, "GPU": 1}, {"CPU": 1}])
