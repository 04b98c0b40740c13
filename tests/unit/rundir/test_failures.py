"""What is decided about a failure, case by case."""

from __future__ import annotations

import pytest

from hsee_ray.config.schema import FailuresConfig
from hsee_ray.rundir.failures import Action, Failure, History, Kind, decide

POLICY = FailuresConfig(max_per_actor=2, max_total=3)
DROPPING = POLICY.model_copy(update={"on_lost_client": "drop"})


def failure(kind: Kind, who: str = "client 001") -> Failure:
    return Failure(who, 4, "train", kind, "because", is_client=who.startswith("client"))


@pytest.mark.parametrize(
    ("kind", "action", "counts"),
    [
        ("error", Action.STOP, False),
        ("died", Action.REPLACE, True),
        ("hung", Action.REPLACE, True),
        ("node", Action.REPLACE, False),
        ("lost", Action.GO_BACK, True),
        ("unplaced", Action.STOP, False),
    ],
)
def test_a_first_failure(kind: Kind, action: Action, counts: bool) -> None:
    decision = decide(failure(kind), History(), POLICY)
    assert (decision.action, decision.counts, decision.reason) == (action, counts, "because")


@pytest.mark.parametrize(
    ("history", "action", "told"),
    [
        ({"client 001": 1}, Action.REPLACE, "because"),
        ({"client 001": 2}, Action.STOP, "because (failures.max_per_actor=2 is used up)"),
        ({"client 002": 2}, Action.REPLACE, "because"),
        ({"client 002": 2, "server 002": 1}, Action.STOP, "because (failures.max_total=3 is used up)"),
    ],
)
def test_the_budget(history: dict[str, int], action: Action, told: str) -> None:
    decision = decide(failure("died"), History(history), POLICY)
    assert (decision.action, decision.reason) == (action, told)


def test_a_lost_node_is_free_of_charge() -> None:
    assert decide(failure("node"), History({"client 001": 2, "x": 9}), POLICY).action is Action.REPLACE


@pytest.mark.parametrize(("who", "action"), [("client 001", Action.DROP), ("server 001", Action.STOP)])
def test_only_a_client_is_left_out(who: str, action: Action) -> None:
    assert decide(failure("unplaced", who), History(), DROPPING).action is action


def test_a_policy_without_patience() -> None:
    assert decide(failure("died"), History(), FailuresConfig(max_total=0)).action is Action.STOP


def test_history_counts_by_actor() -> None:
    history = History()
    for who in ("client 001", "server 001", "client 001"):
        history.count(who)
    assert (history.by_actor, history.total) == ({"client 001": 2, "server 001": 1}, 3)
