"""Queues at the server in a simulated round."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsee_ray.method.schedule import ordered_steps

if TYPE_CHECKING:
    from hsee_ray.simulation.model import ClientLoad, Rules


@dataclass
class Cores:
    """Cores of one machine that have nothing to do."""

    free: int


class ParallelServer:
    """A model for each client, which takes its batches in order. Of all models, the one whose batch came first is next.

    Clients and batches are named by their places in `loads`.
    """

    def __init__(self, loads: Sequence[ClientLoad], cores: Cores) -> None:
        self.loads = loads
        self.cores = cores
        self.queues: list[deque[tuple[float, int]]] = [deque() for _ in loads]
        """Of every model, its batches with the second since when they are there; the first one may be under way."""
        self.waiting: list[tuple[float, int, int, int]] = []
        """Heap of the models that could compute: (since, client's number, client, batch)."""

    def arrived(self, now_s: float, client: int, batch: int) -> None:
        self.queues[client].append((now_s, batch))
        if len(self.queues[client]) == 1:
            heapq.heappush(self.waiting, (now_s, self.loads[client].client, client, batch))

    def finished(self, client: int) -> None:
        self.cores.free += 1
        self.queues[client].popleft()
        if self.queues[client]:
            since_s, batch = self.queues[client][0]
            heapq.heappush(self.waiting, (since_s, self.loads[client].client, client, batch))

    def begin(self) -> Iterator[tuple[int, int, float]]:
        """Batches that begin now, each on a core: client, batch, seconds."""
        while self.waiting and self.cores.free:
            self.cores.free -= 1
            _, _, client, batch = heapq.heappop(self.waiting)
            yield client, batch, self.loads[client].batches[batch].server_s or 0.0


class SerialServer:
    """One model for all clients, which takes batches strictly in the order of the queue."""

    def __init__(self, loads: Sequence[ClientLoad], rules: Rules, cores: Cores) -> None:
        self.loads = loads
        self.cores = cores
        self.order = deque(step for step in queue(loads, rules) if loads[step[0]].batches[step[1]].server_s is not None)
        self.there: set[tuple[int, int]] = set()
        self.busy = False

    def arrived(self, now_s: float, client: int, batch: int) -> None:
        self.there.add((client, batch))

    def finished(self, client: int) -> None:
        self.cores.free += 1
        self.busy = False

    def begin(self) -> Iterator[tuple[int, int, float]]:
        """The batch that begins now, if one does: client, batch, seconds."""
        if not self.busy and self.cores.free and self.order and self.order[0] in self.there:
            self.busy = True
            self.cores.free -= 1
            client, batch = self.order.popleft()
            yield client, batch, self.loads[client].batches[batch].server_s or 0.0


def queue(loads: Sequence[ClientLoad], rules: Rules) -> list[tuple[int, int]]:
    """(client, batch) in the order in which a server for all of them takes a round."""
    return ordered_steps(range(len(loads)), {i: len(load.batches) for i, load in enumerate(loads)}, rules.interleave)
