"""What becomes of a run's requests on a cluster: worked out by hand on a few nodes. Needs no cluster."""

from __future__ import annotations

import pytest

from actors.cluster.capacity import Verdict, assess
from actors.cluster.doctor import store_check
from actors.cluster.resources import Growth, Labels, Node, NodeType, Request, matches


def ask(tier: str = "sensor", pair: int | None = None, labels: Labels | None = None, **resources: float) -> Request:
    return Request(f"client of tier {tier}", tier, f"tiers.{tier}.resources", resources, labels or {}, pair)


def node(labels: Labels | None = None, **total: float) -> Node:
    return Node(total, total, labels or {})


def can_add(*types: NodeType, most: int = 10) -> Growth:
    return Growth(types, most)


def only(requests: list[Request], nodes: list[Node], growth: Growth | None = None) -> Verdict:
    (verdict,) = assess(requests, nodes, growth or Growth())
    return verdict


SENSOR = NodeType("sensor", {"CPU": 2, "sensor": 2}, {}, most=3)
GPU = NodeType("gpu", {"CPU": 4, "GPU": 1}, {"zone": "a"}, most=1)


# Fits


def test_what_is_there_and_free_fits() -> None:
    verdict = only([ask(CPU=1), ask(CPU=1)], [node(CPU=2)])
    assert (str(verdict), verdict.actors, verdict.asks, verdict.waits) == ("fits", 2, "1 CPU", False)


@pytest.mark.parametrize("share", [0.1, 0.3333, 0.7])
def test_fractions_that_fill_a_node_exactly_fit(share: float) -> None:
    exactly = [ask(CPU=share)] * int(1 / share)
    assert str(only(exactly, [node(CPU=1)])) == "fits"
    assert only([*exactly, ask(CPU=share)], [node(CPU=1)]).never is not None


def test_nothing_asked_for_fits_on_a_head_that_has_nothing() -> None:
    assert str(only([ask(CPU=0)], [node(CPU=0)])) == "fits"


def test_large_requests_are_placed_before_small_ones() -> None:
    assert str(only([ask(CPU=1), ask(CPU=1), ask(CPU=2)], [node(CPU=2), node(CPU=2)])) == "fits"


def test_requests_without_gpu_leave_the_gpu_nodes_to_those_with() -> None:
    assert str(only([ask(CPU=1), ask(CPU=1, GPU=1)], [node(CPU=1, GPU=1), node(CPU=1)])) == "fits"


def test_labels_decide_where_a_request_goes() -> None:
    nodes = [node({"zone": "a"}, CPU=1), node({"zone": "b"}, CPU=1)]
    assert str(only([ask(CPU=1, labels={"zone": "b"}), ask(CPU=1)], nodes)) == "fits"
    assert only([ask(CPU=1, labels={"zone": "b"})] * 2, nodes).never is not None


@pytest.mark.parametrize(
    ("wanted", "has", "expected"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", None, False),
        ("!a", "b", True),
        ("!a", "a", False),
        ("!a", None, True),
        ("in(a, b)", "b", True),
        ("in(a,b)", "c", False),
        ("!in(a,b)", "c", True),
        ("!in(a,b)", "a", False),
    ],
)
def test_label_selectors_mean_what_ray_says(wanted: str, has: str | None, expected: bool) -> None:
    assert matches({"zone": wanted}, {} if has is None else {"zone": has}) is expected


def test_a_pair_needs_one_node_for_both() -> None:
    pair = [ask("sensor", pair=0, CPU=1), ask("servers", pair=0, CPU=1)]
    assert [str(verdict) for verdict in assess(pair, [node(CPU=2)], Growth())] == ["fits", "fits"]
    refused = assess(pair, [node(CPU=1), node(CPU=1)], Growth())
    assert all("1 CPU; 1 CPU together on one node, and no node has 2 CPU" in str(verdict) for verdict in refused)


# Waits


def test_nodes_that_must_come_are_counted_by_type() -> None:
    verdict = only([ask(CPU=1, sensor=1)] * 3, [node(CPU=0)], can_add(SENSOR, GPU))
    assert str(verdict) == "waits for 2 more nodes of type sensor"
    assert verdict.waits


def test_only_what_finds_no_room_now_waits() -> None:
    verdict = only([ask(CPU=1, sensor=1)] * 3, [node(CPU=2, sensor=2)], can_add(SENSOR))
    assert str(verdict) == "waits for 1 more node of type sensor"


def test_every_tier_has_its_own_verdict() -> None:
    asked = [ask("sensor", CPU=1, sensor=1), ask("gateway", CPU=1, GPU=0.5), ask("hub", CPU=0)]
    verdicts = assess(asked, [node(CPU=0)], can_add(SENSOR, GPU))
    assert [(verdict.tier, str(verdict)) for verdict in verdicts] == [
        ("sensor", "waits for 1 more node of type sensor"),
        ("gateway", "waits for 1 more node of type gpu"),
        ("hub", "fits"),
    ]


def test_the_leanest_type_that_will_do_comes() -> None:
    assert str(only([ask(CPU=1)], [], can_add(GPU, SENSOR))) == "waits for 1 more node of type sensor"
    assert str(only([ask(CPU=3)], [], can_add(GPU, SENSOR))) == "waits for 1 more node of type gpu"


def test_memory_of_a_type_that_does_not_say_it_is_not_held_against_it() -> None:
    assert str(only([ask(CPU=1, memory=1e12)], [], can_add(SENSOR))) == "waits for 1 more node of type sensor"
    assert only([ask(CPU=1, memory=1e12)], [node(CPU=1, memory=1e9)]).never is not None


def test_what_others_use_is_waited_for_when_nothing_can_come() -> None:
    busy = Node({"CPU": 4}, {"CPU": 1}, {})
    assert str(only([ask(CPU=1)] * 3, [busy])) == "waits for room that others take now (2 of 3)"
    assert str(only([ask(CPU=1, sensor=1)], [busy], can_add(SENSOR))) == "waits for 1 more node of type sensor"


def test_an_autoscaler_of_which_nothing_is_known_is_given_the_benefit_of_the_doubt() -> None:
    unknown = Growth(known=False)
    verdict = only([ask(GPU=8)], [node(CPU=0)], unknown)
    assert str(verdict) == "waits for nodes that the autoscaler may add, of types that are not known (1)"


# Never


def never(requests: list[Request], nodes: list[Node], growth: Growth | None = None) -> str:
    verdict = only(requests, nodes, growth)
    assert verdict.never is not None
    assert str(verdict) == f"can never fit: {verdict.never}"
    assert "\n" not in verdict.never
    return verdict.never


def test_a_resource_of_which_no_node_has_enough() -> None:
    assert never([ask(CPU=8)], [node(CPU=2)], can_add(SENSOR, GPU)) == (
        "client of tier sensor asks for 8 CPU, and no node has 8 CPU (the most is 4 CPU); change "
        "tiers.sensor.resources, or add such a node"
    )


def test_a_resource_that_no_node_has() -> None:
    assert "no node has any jetson" in never([ask(CPU=1, jetson=1)], [node(CPU=2)], can_add(GPU))
    assert "no node has any accelerator_type:H100" in never(
        [ask(CPU=1, **{"accelerator_type:H100": 0.001})], [node(CPU=2)]
    )


def test_a_label_that_no_node_bears() -> None:
    told = never([ask(CPU=1, labels={"zone": "moon"})], [node({"zone": "b"}, CPU=2)], can_add(GPU))
    assert "asks for 1 CPU, label zone=moon, and no node has the label zone=moon (zone is a or b)" in told
    assert "(zone is on none)" in never([ask(CPU=1, labels={"zone": "moon"})], [node(CPU=2)])


def test_each_of_it_somewhere_and_never_together() -> None:
    told = never([ask(CPU=8, GPU=1)], [node(CPU=8), node(CPU=1, GPU=1)])
    assert "no node has all of that at once" in told


def test_two_fractions_of_a_gpu_that_do_not_fit_on_one() -> None:
    wanted = [ask(GPU=0.75), ask(GPU=0.75)]
    assert str(only(wanted, [node(GPU=1), node(GPU=1)])) == "fits"
    assert str(only(wanted, [node(GPU=2)])) == "fits"
    assert "which ask for 1.5 GPU where it could be" in never(wanted, [node(GPU=1)])
    thirds = [ask(GPU=0.6)] * 3
    assert str(only(thirds, [node(GPU=2)])) == "waits for room that others take now (1 of 3)"
    assert str(only([ask(GPU=2), ask(GPU=0.5)], [node(GPU=2)])).startswith(
        "can never fit: client of tier sensor (0.5 GPU)"
    )


def test_a_type_of_which_no_more_may_come() -> None:
    told = never([ask(GPU=1)] * 2, [node(CPU=0)], can_add(GPU))
    assert told == (
        "client of tier sensor (1 GPU) finds no room beside the others of 2 actors, which ask for 2 GPU where it could "
        "be (nodes: 1 with nothing, could come: 1 of type gpu (4 CPU, 1 GPU)); lower tiers.sensor.resources or the "
        "number of clients, set tiers.sensor.slots, or add nodes"
    )


def test_nodes_of_a_type_that_are_there_count_against_its_limit() -> None:
    full = Node({"CPU": 4.0, "GPU": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}, {"CPU": 4.0, "GPU": 0.0}, {"zone": "a"})
    verdict = only([ask(GPU=1)], [full], can_add(GPU))
    assert str(verdict) == "waits for room that others take now (1 of 1)"


def test_the_limit_of_all_nodes_together() -> None:
    assert "could come: 3 of type sensor" in never([ask(CPU=2, sensor=2)] * 2, [], can_add(SENSOR, most=1))


# What a rule of thumb must not get wrong


def test_what_others_use_is_not_reckoned_twice_with_what_can_come() -> None:
    busy = Node({"CPU": 4}, {"CPU": 0}, {})
    one_more = can_add(NodeType("plain", {"CPU": 4}, {}, most=2), most=2)
    verdict = only([ask(CPU=1)] * 8, [busy], one_more)
    assert verdict.never is None
    assert str(verdict) == "waits for 1 more node of type plain, room that others take now (4 of 8)"


def test_who_needs_no_label_leaves_the_labelled_node_to_those_who_do() -> None:
    nodes = [node({"zone": "h"}, CPU=1, memory=1e9), node(CPU=1, memory=1e9)]
    asked = [ask("sensor", CPU=1, memory=1e6), ask("hub", CPU=1, labels={"zone": "h"})]
    assert [str(verdict) for verdict in assess(asked, nodes, Growth())] == ["fits", "fits"]


def test_a_packing_that_is_not_found_is_not_called_impossible() -> None:
    assert only([ask(CPU=2), ask(CPU=1.5), ask(CPU=1.5)], [node(CPU=3), node(CPU=2)]).never is None


def test_tiers_that_share_a_node_that_must_come_both_wait_for_it() -> None:
    big = NodeType("big", {"CPU": 4}, {}, most=1)
    asked = [ask("sensor", CPU=1), ask("servers", CPU=1)]
    assert [str(v) for v in assess(asked, [], can_add(big))] == ["waits for 1 more node of type big"] * 2


def test_types_of_equal_size_are_told_apart_by_their_gpu() -> None:
    t4 = NodeType("t4", {"CPU": 4, "GPU": 1, "accelerator_type:T4": 1}, {}, most=1)
    a10 = NodeType("a10", {"CPU": 4, "GPU": 1, "accelerator_type:A10G": 1}, {}, most=1)
    there = Node(a10.resources, {"CPU": 0, "GPU": 0}, {})
    verdict = only([ask(GPU=1, **{"accelerator_type:T4": 0.001})], [there], can_add(t4, a10))
    assert str(verdict) == "waits for 1 more node of type t4"
    verdict = only([ask(GPU=1, **{"accelerator_type:A10G": 0.001})], [there], can_add(t4, a10))
    assert str(verdict) == "waits for room that others take now (1 of 1)"


# Object stores


MIB = 1 << 20


def test_one_node_must_hold_what_its_own_actors_keep() -> None:
    """Two stores that are large enough together are not, when one node can get three of the four actors."""
    actors = [ask(CPU=1) for _ in range(4)]
    small = node(CPU=3, object_store_memory=100.0 * MIB, **{"node:10.0.0.1": 1.0})
    large = node(CPU=3, object_store_memory=1000.0 * MIB, **{"node:__internal_head__": 1.0, "node:10.0.0.2": 1.0})
    check = store_check(200 * MIB, actors, [large, small])
    assert check.finding == "slow"
    assert "node 10.0.0.1 could get 3 of 4 actors, with about 150 MiB of them, and has an object store of 100 MiB" in (
        check.text
    )
    assert store_check(100 * MIB, actors, [large, small]).finding == "well"  # 75 of the 80 MiB that Ray fills
    assert store_check(200 * MIB, actors, [large]).finding == "well"
    assert store_check(200 * MIB, [ask(GPU=1)] * 4, [small]).finding == "well"  # none of them can come there
