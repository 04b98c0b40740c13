"""The best cut for every tier: best first, exact, without trying what cannot be best.

Plans are compared by their *key*: what is asked for, then what breaks a tie, then the cuts themselves.

    time     seconds of a round, joules, bytes, cuts
    energy   joules of a round, bytes, cuts
    bytes    bytes of a round, joules, cuts

Of equal plans the one with the lower cut in the first tier that differs is taken: less on the device, more on the
server. Numbers are compared to nine digits, so that the order in which a sum is taken breaks no tie.

Why the first complete plan that comes off the queue is the best: an entry stands for all plans that begin with its
cuts, and its key is a lower bound of theirs, place by place. Joules and bytes are sums over the tiers of what their
clients use whatever the other tiers do: of tiers that are still open, the least that any of their cuts has. Seconds are
a bound that the caller proves. And the cuts chosen so far, as a tuple, come before all their continuations. A tuple
that is at most another in every place is at most that one in order, so no plan behind an entry further back can be
better. An entry whose bound of seconds is above the limit, or whose share of the server's memory is too much, has no
continuation that is allowed, for neither sinks when cuts are added.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

Objective = Literal["time", "energy", "bytes"]

COMPARED: Mapping[Objective, tuple[str, ...]] = {
    "time": ("seconds", "joules", "sent_bytes"),
    "energy": ("joules", "sent_bytes"),
    "bytes": ("sent_bytes", "joules"),
}
"""Figures of plans in the order in which they are compared."""

SLACK = 1 - 1e-12
"""Taken off a bound, so that the rounding of its sums never lifts it above what it bounds."""

Key = tuple[float | tuple[int, ...], ...]


class Figures(NamedTuple):
    """Cost of one round of the whole fleet."""

    seconds: float
    joules: float
    sent_bytes: float


@dataclass(frozen=True)
class Option:
    """One cut of one tier, with what all its clients use in a round at least, whatever the cuts of others."""

    cut: int
    least_joules: float
    least_bytes: float


AnyOption = TypeVar("AnyOption", bound=Option)


def search(
    tiers: Sequence[Sequence[AnyOption]],
    objective: Objective,
    limit_s: float | None,
    evaluate: Callable[[tuple[int, ...]], Figures],
    bound_s: Callable[[Sequence[AnyOption]], float],
    allowed: Callable[[Sequence[AnyOption]], bool],
) -> tuple[int, ...] | None:
    """Cuts of the best plan, one for each tier, or None where no plan is allowed.

    evaluate: the true figures of a plan. bound_s: seconds that no round with these first cuts is below.
    allowed: whether a plan may begin so; once it may not, it may not with more cuts either.
    """
    floors = [(0.0, 0.0)]
    for options in reversed(tiers):
        joules, sent_bytes = floors[0]
        joules += min((option.least_joules for option in options), default=0.0)
        floors.insert(0, (joules, sent_bytes + min((option.least_bytes for option in options), default=0.0)))

    def floor(chosen: Sequence[AnyOption], seconds: float) -> Key:
        open_joules, open_bytes = floors[len(chosen)]
        joules = sum(option.least_joules for option in chosen) + open_joules
        sent_bytes = sum(option.least_bytes for option in chosen) + open_bytes
        figures = Figures(seconds, SLACK * joules, SLACK * sent_bytes)
        return plan_key(objective, figures, [option.cut for option in chosen])

    queue: list[tuple[Key, int, list[AnyOption], bool]] = [((), 0, [], False)]
    count = 0
    while queue:
        _, _, chosen, is_final = heapq.heappop(queue)
        cuts = tuple(option.cut for option in chosen)
        if is_final:
            return cuts
        if len(chosen) == len(tiers):
            figures = evaluate(cuts)
            if meets(figures.seconds, limit_s):
                heapq.heappush(queue, (plan_key(objective, figures, cuts), count, chosen, True))
            continue
        for option in tiers[len(chosen)]:
            longer = [*chosen, option]
            seconds = SLACK * bound_s(longer)
            if allowed(longer) and meets(seconds, limit_s):
                count += 1
                heapq.heappush(queue, (floor(longer, seconds), count, longer, False))
    return None


def plan_key(objective: Objective, figures: Figures, cuts: Sequence[int]) -> Key:
    """Sort key of plans; less is better."""
    return (*(rounded(getattr(figures, name)) for name in COMPARED[objective]), tuple(cuts))


def meets(seconds: float, limit_s: float | None) -> bool:
    """Whether a round is short enough."""
    return limit_s is None or rounded(seconds) <= rounded(limit_s)


def rounded(value: float) -> float:
    """To nine significant digits."""
    return float(f"{value:.8e}")
