"""Moves batches through clients and servers: a bounded number in flight, nothing waited for one by one.

A piece of work is one call of a client and the call of its server on what that gives. A server's call is submitted
when its features are there, and in the order of the list: who is faster changes when a server gets its batches, never
which come first, and a client that dies leaves nothing half-done in a server's queue.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef

from hsee_ray.errors import ClientError


@dataclass(frozen=True)
class Work:
    """Steps or samples first..last-1 of one client, and who takes their features up."""

    client: int
    server: int | None
    """Names the server; None at cut L, where the client's report is all there is."""
    first: int
    last: int


@dataclass(frozen=True)
class Done:
    """A piece of work whose calls have both returned."""

    work: Work
    client_report: Any
    server_report: Any


ClientCall = Callable[[Work], tuple["ObjectRef[Any]", "ObjectRef[Any]"]]
"""Submits the client's call; gives the references of its features and of its report."""
ServerCall = Callable[[int, Work, "ObjectRef[Any]"], "ObjectRef[Any]"]
"""Submits the call of a server (by its number) on those features; gives the reference of its report."""


@dataclass
class _Client:
    """What is still to do for one client, and what is under way."""

    todo: deque[int]
    computing: int = 0
    in_flight: int = 0


@dataclass
class _Piece:
    """A piece of work between its submission and its end."""

    features: ObjectRef[Any]
    client_report: Any = None
    computed: bool = False
    """The client's call has returned."""


class Pipeline:
    """Runs a list of work with at most `concurrent` clients at a time, each at most `window` pieces ahead.

    With a shared server, a client whose own calls have returned makes room for the next one in the queue, which then
    computes ahead. With a server for each client, it makes room when its server is done.
    """

    def __init__(
        self,
        works: Sequence[Work],
        client_call: ClientCall,
        server_call: ServerCall,
        concurrent: int,
        window: int,
        shared_server: bool,
    ) -> None:
        self.works = works
        self.client_call = client_call
        self.server_call = server_call
        self.concurrent = concurrent
        self.window = window
        self.shared_server = shared_server
        self.clients: dict[int, _Client] = {}
        self.server_queues: dict[int, deque[int]] = {}
        for index, work in enumerate(works):
            self.clients.setdefault(work.client, _Client(deque())).todo.append(index)
            if work.server is not None:
                self.server_queues.setdefault(work.server, deque()).append(index)
        # Clients by the position of their next piece of work.
        self.ready = [(client.todo[0], number) for number, client in self.clients.items()]
        heapq.heapify(self.ready)
        self.active: set[int] = set()
        self.pieces: dict[int, _Piece] = {}
        self.waiting: dict[ObjectRef[Any], tuple[int, str]] = {}

    def run(self, round_number: int, stage: str, timeout_s: float) -> Iterator[Done]:
        """Yields each piece of work as it is done, in no particular order between clients.

        Raises ClientError when a call fails, or when none returns within `timeout_s`.
        """
        self._submit_clients()
        while self.waiting:
            ready, _ = ray.wait(list(self.waiting), num_returns=1, timeout=timeout_s, fetch_local=False)
            if not ready:
                index, side = next(iter(self.waiting.values()))
                who = f"{side} {self.works[index].client}"
                raise ClientError(who, round_number, stage, f"no answer within {timeout_s:g} s")
            for ref in ready:
                done = self._finish(ref, round_number, stage)
                if done is not None:
                    yield done
            self._submit_clients()

    def _submit_clients(self) -> None:
        """Submits what may start now, strictly by position: what a server needs next is never kept back."""
        skipped: list[tuple[int, int]] = []
        while self.ready:
            position, number = self.ready[0]
            full = len(self.pieces) >= self.concurrent * self.window
            if full or (number not in self.active and len(self.active) >= self.concurrent):
                break
            heapq.heappop(self.ready)
            client = self.clients[number]
            if client.in_flight >= self.window:
                skipped.append((position, number))
                continue
            self._submit(client.todo.popleft(), client)
            self.active.add(number)
            if client.todo:
                heapq.heappush(self.ready, (client.todo[0], number))
        for entry in skipped:
            heapq.heappush(self.ready, entry)

    def _submit(self, index: int, client: _Client) -> None:
        features, report = self.client_call(self.works[index])
        self.pieces[index] = _Piece(features)
        self.waiting[report] = (index, "client")
        client.computing += 1
        client.in_flight += 1

    def _submit_server(self, server: int) -> None:
        """Submits the server's next calls, as far as their features are there without a gap."""
        queue = self.server_queues[server]
        while queue and (piece := self.pieces.get(queue[0])) and piece.computed:
            index = queue.popleft()
            self.waiting[self.server_call(server, self.works[index], piece.features)] = (index, "server")

    def _finish(self, ref: ObjectRef[Any], round_number: int, stage: str) -> Done | None:
        """Takes the result of a call; gives the piece of work if that was its last one."""
        index, side = self.waiting.pop(ref)
        work, piece = self.works[index], self.pieces[index]
        client = self.clients[work.client]
        report = fetch(ref, f"{side} {work.client}", round_number, stage)
        done = None
        if side == "client":
            client.computing -= 1
            piece.client_report, piece.computed = report, True
            if work.server is not None:
                self._submit_server(work.server)
            else:
                done = Done(work, report, None)
        else:
            done = Done(work, piece.client_report, report)
        if done is not None:
            client.in_flight -= 1
            del self.pieces[index]
        occupied = client.computing > 0 or (not self.shared_server and (client.todo or client.in_flight > 0))
        if not occupied:
            self.active.discard(work.client)
        return done


def fetch(ref: ObjectRef[Any], who: str, round_number: int, stage: str, timeout_s: float | None = None) -> Any:
    """The value of a call's result; a failed call becomes a ClientError that says who, when and doing what."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        raise ClientError(who, round_number, stage, _reason(error.cause)) from error
    except ray.exceptions.GetTimeoutError as error:
        raise ClientError(who, round_number, stage, f"no answer within {timeout_s:g} s") from error
    except ray.exceptions.RayError as error:
        raise ClientError(who, round_number, stage, _reason(error)) from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
