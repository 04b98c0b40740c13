"""Decisions about failures: pure functions of the failure, the history, and the policy.

Nothing here acts: `actors/run/recovery.py` does what is decided.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from hsee_ray.config.schema import FailuresConfig

Kind = Literal["error", "died", "hung", "unplaced", "node", "drained", "lost"]
"""`error`: the code raised, and would again. `died`: the process ended. `hung`: it neither answers nor ends.
`unplaced`: a new actor has not started in time. `node`: it went with its node. `drained`: its node is about to go.
`lost`: an object that was needed went with a node."""


@dataclass(frozen=True)
class Failure:
    """One failure of one actor."""

    who: str
    """`client 003`, `server 003`, `aggregator`."""
    round_number: int
    stage: str
    kind: Kind
    reason: str
    is_client: bool = False


class Action(Enum):
    REPLACE = "replace the actor and repeat the work it was doing"
    DROP = "go on without the client until it can start again"
    GO_BACK = "go back to the newest state that still exists"
    STOP = "end the run"


@dataclass(frozen=True)
class Decision:
    action: Action
    reason: str
    counts: bool
    """Whether the failure uses up the budget."""


@dataclass
class History:
    """Failures that counted so far, over all sessions of a run."""

    by_actor: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.by_actor.values())

    def count(self, who: str) -> None:
        self.by_actor[who] = self.by_actor.get(who, 0) + 1


def decide(failure: Failure, history: History, policy: FailuresConfig) -> Decision:
    """The decision about one failure. An error of the code ends the run: a repetition would only repeat it."""
    if failure.kind == "error":
        return Decision(Action.STOP, failure.reason, counts=False)
    if failure.kind in ("node", "drained"):
        return Decision(Action.REPLACE, failure.reason, counts=False)
    if failure.kind == "unplaced":
        if failure.is_client and policy.on_lost_client == "drop":
            return Decision(Action.DROP, failure.reason, counts=False)
        return Decision(Action.STOP, failure.reason, counts=False)
    if failure.kind != "lost" and history.by_actor.get(failure.who, 0) >= policy.max_per_actor:
        spent = f"failures.max_per_actor={policy.max_per_actor} is used up"
        return Decision(Action.STOP, f"{failure.reason} ({spent})", counts=False)
    if history.total >= policy.max_total:
        return Decision(
            Action.STOP, f"{failure.reason} (failures.max_total={policy.max_total} is used up)", counts=False
        )
    return Decision(Action.GO_BACK if failure.kind == "lost" else Action.REPLACE, failure.reason, counts=True)
