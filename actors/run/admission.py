"""Admission of work: clients start strictly in the round's order, as far as there is room for them."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from actors.run.pieces import Piece
from hsee_ray.config.fleet import ModelId

CALLS_AHEAD = 2
"""Calls per client where clients share cores: one computes, one more is queued."""


Entry = tuple[int, int, Piece, asyncio.Future[None]]
"""A piece that waits, after its position and a count that tells entries apart, and what to set when it may start."""


@dataclass(frozen=True)
class Limits:
    """How much may be under way at the same time."""

    concurrent: int
    """Clients that compute."""
    window: int
    """Pieces of one client: so far it may be ahead of its server."""
    cores: int | None = None
    """Models that have work, where all actors share the cores of one machine: more processes than cores slow each
    other down, and servers are not kept from what is there for them. None: Ray has given each its own."""


class Admission:
    """Lets pieces in by their position in the round: what a server needs next is never kept back.

    A client is active from its first piece until `retire`; it holds its slots until `vacate`.
    """

    def __init__(self, limits: Limits, take_slots: Callable[[Piece], bool], pool: Callable[[Piece], str]) -> None:
        """`take_slots` has the client of a piece, and its server, hold slots, or says that it must wait.

        Clients of one `pool` wait for the same slots.
        """
        self.limits = limits
        self.take_slots = take_slots
        self.pool = pool
        self.busy: Counter[ModelId] = Counter()
        """Calls under way, by who owes them."""
        self._waiting: dict[str, list[Entry]] = {}
        """By pool; heaps."""
        self._count = count()
        self._in_flight: set[int] = set()
        """Positions of pieces between their start and their end."""
        self._started: list[int] = []
        """A heap of the same positions, and of some that are over."""
        self._active: set[int] = set()
        self._slotted: set[int] = set()

    async def enter(self, piece: Piece) -> None:
        """Waits until a client may start with a piece."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(
            self._waiting.setdefault(self.pool(piece), []), (piece.position, next(self._count), piece, admitted)
        )
        self.admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if not admitted.cancelled():  # it was let in at the very moment
                self.leave(piece)
                self.answered(piece.client)
            raise

    def asked(self, model: ModelId) -> None:
        """A model has one more call to answer; a client that is let in has."""
        self.busy[model] += 1

    def answered(self, model: ModelId) -> None:
        """A model has one call less to answer."""
        self.busy[model] -= 1
        if not self.busy[model]:
            del self.busy[model]

    def leave(self, piece: Piece) -> None:
        """A piece is over, or given up."""
        self._in_flight.discard(piece.position)

    def retire(self, client_id: int) -> None:
        """A client has nothing to compute for now: another one may be active."""
        self._active.discard(client_id)

    def vacate(self, client_id: int) -> None:
        """A client holds no slots any more."""
        self._active.discard(client_id)
        self._slotted.discard(client_id)

    def admit(self) -> None:
        """Lets in whom there is room for; called whenever something is over."""
        passed_over: list[tuple[str, Entry]] = []
        full: set[str] = set()
        while heads := [(heap[0], pool) for pool, heap in self._waiting.items() if heap and pool not in full]:
            (position, _, piece, admitted), pool = min(heads, key=lambda head: head[0][0])
            heap = self._waiting[pool]
            if admitted.done():  # whoever waited was given up
                heapq.heappop(heap)
                continue
            # Work that is repeated comes before everything that already waits for the server.
            most = self.limits.concurrent * self.limits.window
            if len(self._in_flight) >= most and position > self._oldest():
                break
            no_core = self._has_no_core(piece.client)
            if piece.client.client_id in self._active and no_core:
                passed_over.append((pool, heapq.heappop(heap)))
            elif no_core or not self._activate(piece):
                full.add(pool)  # nobody behind it gets what it waits for
            else:
                heapq.heappop(heap)
                self._in_flight.add(position)
                heapq.heappush(self._started, position)
                self.asked(piece.client)
                admitted.set_result(None)
        for pool, entry in passed_over:
            heapq.heappush(self._waiting[pool], entry)

    def _oldest(self) -> int:
        """The earliest position in flight, at a cost that does not grow with their number."""
        while self._started[0] not in self._in_flight:
            heapq.heappop(self._started)
        return self._started[0]

    def _activate(self, piece: Piece) -> bool:
        client_id = piece.client.client_id
        if client_id not in self._active and len(self._active) >= self.limits.concurrent:
            return False
        if client_id not in self._slotted and not self.take_slots(piece):
            return False
        self._slotted.add(client_id)
        self._active.add(client_id)
        return True

    def _has_no_core(self, client: ModelId) -> bool:
        """Whether a client would only take a core from somebody else."""
        if self.limits.cores is None:
            return False
        others = len(self.busy) - (client in self.busy)
        return others >= self.limits.cores or self.busy[client] >= CALLS_AHEAD
