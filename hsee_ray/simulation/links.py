"""A link that several senders share max-min fairly: each gets an equal share, and none more than its own link carries.

Max-min fairness by progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2): the share of all is raised
together; who has reached what its own link carries stays there, and the others go on sharing what is left.

Flows with the same limit have the same rate at every moment. So they are kept together, with the bytes that each of
them would have been given since there was first one of them; a flow is done when that sum reaches its own mark. An
event costs as many steps as there are different limits, not flows.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

Tag = tuple[int, int]


@dataclass
class _Group:
    """Flows of equal limit."""

    limit_bytes_s: float
    given_bytes: float = 0.0
    """To each of its flows that is there since the group was last empty."""
    rate_bytes_s: float = 0.0
    end_s: float = inf
    """When its next flow is done, if nothing changes."""
    flows: list[tuple[float, Tag]] = field(default_factory=list)
    """Heap of marks: how many bytes must be given until the flow is done."""


class Link:
    """Flows that begin and end on one link. Time only moves forward."""

    def __init__(self, capacity_bytes_s: float) -> None:
        self.capacity_bytes_s = capacity_bytes_s
        self.now_s = 0.0
        self._groups: dict[float, _Group] = {}
        self._active: list[_Group] = []
        """Groups with flows, by ascending limit."""
        self._next_s: float | None = inf

    def next_s(self) -> float:
        """When the next flow is done, if none begins before; infinite where there is none."""
        if self._next_s is None:
            self._next_s = self._fill()
        return self._next_s

    def start(self, now_s: float, tag: Tag, size_bytes: float, limit_bytes_s: float) -> None:
        """A flow begins. Tags order what ends at the same time."""
        self._advance(now_s)
        group = self._groups.get(limit_bytes_s)
        if group is None:
            group = self._groups[limit_bytes_s] = _Group(limit_bytes_s)
        if not group.flows:
            group.given_bytes = 0.0
            self._active.append(group)
            self._active.sort(key=_limit)
        heapq.heappush(group.flows, (group.given_bytes + size_bytes, tag))
        self._next_s = None

    def finish(self) -> list[Tag]:
        """Moves on to `next_s`; gives the flows that are done then, in the order of their tags."""
        now_s = self.next_s()
        ending = [group for group in self._active if group.end_s <= now_s]
        self._advance(now_s)
        done: list[Tag] = []
        for group in ending:
            # Exactly, so that flows of equal size that began together also end together.
            group.given_bytes = group.flows[0][0]
            while group.flows and group.flows[0][0] <= group.given_bytes:
                done.append(heapq.heappop(group.flows)[1])
        self._active = [group for group in self._active if group.flows]
        self._next_s = None
        return sorted(done)

    def _advance(self, now_s: float) -> None:
        passed_s = now_s - self.now_s
        if passed_s > 0:
            self.next_s()
            for group in self._active:
                group.given_bytes += group.rate_bytes_s * passed_s
            self.now_s = now_s

    def _fill(self) -> float:
        """Sets every group's rate; gives the time when the next flow is done."""
        left_bytes_s, flows = self.capacity_bytes_s, sum(len(group.flows) for group in self._active)
        next_s = inf
        for group in self._active:
            share = left_bytes_s / flows
            group.rate_bytes_s = min(group.limit_bytes_s, share)
            left_bytes_s -= group.rate_bytes_s * len(group.flows)
            flows -= len(group.flows)
            group.end_s = self.now_s + max(0.0, group.flows[0][0] - group.given_bytes) / group.rate_bytes_s
            next_s = min(next_s, group.end_s)
        return next_s


def _limit(group: _Group) -> float:
    return group.limit_bytes_s


class Transfer(NamedTuple):
    """So many bytes that are sent from a given second on."""

    begin_s: float
    size_bytes: float
    limit_bytes_s: float


def transfer_ends(transfers: Sequence[Transfer], capacity_bytes_s: float) -> list[float]:
    """When each of the transfers over one link is done, in their order."""
    link, ends = Link(capacity_bytes_s), [0.0] * len(transfers)
    later = sorted(range(len(transfers)), key=lambda index: (transfers[index].begin_s, index), reverse=True)
    while later or link.next_s() < inf:
        if later and transfers[later[-1]].begin_s <= link.next_s():
            index = later.pop()
            begin_s, size_bytes, limit_bytes_s = transfers[index]
            link.start(begin_s, (index, 0), size_bytes, limit_bytes_s)
        else:
            for index, _ in link.finish():
                ends[index] = link.now_s
    return ends
