"""Moves batches through clients and servers: a bounded number in flight, nothing waited for one by one.

A piece of work is one call of a client and the call of its server on what that gives. A server's calls are submitted
in the order of the list, and a Ray actor runs one caller's calls in the order of their submission: who is faster
changes when a server gets its batches, never which come first.
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
class _Progress:
    """A piece of work between its submission and its end."""

    features: ObjectRef[Any] | None
    """Dropped when the server's call has been submitted."""
    waits_for: int
    """Calls that have not returned."""
    client_report: Any = None
    server_report: Any = None


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
        self.progress: dict[int, _Progress] = {}
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
            full = len(self.progress) >= self.concurrent * self.window
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
        work = self.works[index]
        features, report = self.client_call(work)
        self.progress[index] = _Progress(features, waits_for=1 if work.server is None else 2)
        self.waiting[report] = (index, "client")
        client.computing += 1
        client.in_flight += 1
        if work.server is not None:
            self._submit_server(work.server)

    def _submit_server(self, server: int) -> None:
        """Submits the server's next calls, as far as their features have been asked for without a gap."""
        queue = self.server_queues[server]
        while queue and queue[0] in self.progress:
            index = queue.popleft()
            progress = self.progress[index]
            assert progress.features is not None
            self.waiting[self.server_call(server, self.works[index], progress.features)] = (index, "server")
            progress.features = None

    def _finish(self, ref: ObjectRef[Any], round_number: int, stage: str) -> Done | None:
        index, side = self.waiting.pop(ref)
        work = self.works[index]
        client = self.clients[work.client]
        report = fetch(ref, f"{side} {work.client}", round_number, stage)
        progress = self.progress[index]
        progress.waits_for -= 1
        if side == "client":
            client.computing -= 1
            progress.client_report = report
        else:
            progress.server_report = report
        if progress.waits_for == 0:
            client.in_flight -= 1
            del self.progress[index]
        occupied = client.computing > 0 or (not self.shared_server and (client.todo or client.in_flight > 0))
        if not occupied:
            self.active.discard(work.client)
        if progress.waits_for == 0:
            return Done(work, progress.client_report, progress.server_report)
        return None


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
