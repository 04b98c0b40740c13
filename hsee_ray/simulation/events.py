"""The time that a round of training takes on given devices and links, event by event: no clock, no torch, no chance.

Seconds and bytes go in, spans come out. What is simulated, with the formulas and three rounds by hand, is in
docs/simulation.md.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from math import inf

from hsee_ray.simulation.links import Link, Transfer, transfer_ends
from hsee_ray.simulation.model import ClientLoad, Kind, OneMachine, RoundTiming, Rules, ServerSite, Span
from hsee_ray.simulation.queues import Cores, ParallelServer, SerialServer, queue


def simulate_round(
    loads: Sequence[ClientLoad], context: ServerSite, rules: Rules, one_machine: OneMachine | None = None
) -> RoundTiming:
    """A round of these clients, listed in the order of the queue.

    Each fetches the averages that it has missed, if any, and trains; when all have trained, they exchange their parts
    of the model. Without `one_machine` every client has a device and a link of its own: its batches are computed one
    after the other, and sent one after the other while the next ones are computed.
    """
    simulated = (
        _Round(loads, context, rules) if one_machine is None else _OneMachineRound(loads, rules, one_machine.cores)
    )
    spans = simulated.run()
    train_s = max((span.end_s for span in spans), default=0.0)
    exchange = simulated.exchange(train_s)
    end_s = max((span.end_s for span in exchange), default=train_s)
    return RoundTiming(tuple(sorted([*spans, *exchange], key=_end)), train_s, end_s)


class _Round:
    """Every client has a device and a link of its own; they share the server and its link."""

    def __init__(self, loads: Sequence[ClientLoad], context: ServerSite, rules: Rules) -> None:
        self.loads = loads
        self.context = context
        self.windows = [window_of(load, rules) for load in loads]
        self.spans: list[Span] = []
        self.link = Link(context.downlink_bytes_s)
        self.back = Link(context.uplink_bytes_s)
        self.events: list[tuple[float, int, int, int]] = []
        """Heap of (second, what, client, batch); clients and batches by their places."""
        self.next_batch = [0] * len(loads)
        self.computing = [True] * len(loads)
        """Whether a client has a batch under way, or is not there yet."""
        self.unfinished = [0] * len(loads)
        """Batches of a client that are to be sent, have begun, and are not finished by the server."""
        self.outgoing: list[deque[int]] = [deque() for _ in loads]
        """Batches of a client that are computed and not sent; the first one is under way."""
        self.sent_since = [0.0] * len(loads)
        self.returned_since: dict[tuple[int, int], float] = {}
        self.server = _server(loads, rules, Cores(context.cores))

    def run(self) -> list[Span]:
        events = self.events
        self._arrive()
        while True:
            now_s = min(events[0][0] if events else inf, self.link.next_s(), self.back.next_s())
            if now_s == inf:
                return self.spans
            for link, over in ((self.link, self._sent), (self.back, self._returned)):
                if link.next_s() <= now_s:
                    for client, batch in link.finish():
                        over(now_s, client, batch)
            while events and events[0][0] <= now_s:
                _, what, client, batch = heapq.heappop(events)
                if what == _COMPUTED:
                    self._computed(now_s, client, batch)
                elif what == _ARRIVED:
                    self.server.arrived(now_s, client, batch)
                elif what == _SERVED:
                    self.server.finished(client)
                    self._answer(now_s, client, batch)
                else:
                    self._step(now_s, client, batch)
            self._serve(now_s)

    def _arrive(self) -> None:
        """Starts clients: later where they are away, after the download where they have missed averages."""
        fetching = [client for client, load in enumerate(self.loads) if load.fetch_bytes]
        fetches = [(self.loads[client].delay_s, self.loads[client].fetch_bytes) for client in fetching]
        fetched = dict(zip(fetching, self._down(fetching, fetches), strict=True))
        for client, load in enumerate(self.loads):
            if load.delay_s:
                self.spans.append(Span(load.client, "away", 0.0, load.delay_s))
            if client in fetched:
                self.spans.append(Span(load.client, "fetch", load.delay_s, fetched[client]))
            heapq.heappush(self.events, (fetched.get(client, load.delay_s), _COMPUTED, client, _NONE))

    def _compute(self, now_s: float, client: int) -> None:
        """Begins the client's next batch, if it may."""
        load, batch = self.loads[client], self.next_batch[client]
        if self.computing[client] or batch == len(load.batches) or self.unfinished[client] >= self.windows[client]:
            return
        compute_s = load.batches[batch].compute_s
        self.computing[client] = True
        self.next_batch[client] += 1
        self.unfinished[client] += load.batches[batch].server_s is not None
        self.spans.append(Span(load.client, "compute", now_s, now_s + compute_s, batch))
        heapq.heappush(self.events, (now_s + compute_s, _COMPUTED, client, batch))

    def _computed(self, now_s: float, client: int, batch: int) -> None:
        self.computing[client] = False
        if batch != _NONE and self.loads[client].batches[batch].server_s is not None:
            self.outgoing[client].append(batch)
            if len(self.outgoing[client]) == 1:
                self._send(now_s, client)
        self._compute(now_s, client)

    def _send(self, now_s: float, client: int) -> None:
        load, batch = self.loads[client], self.outgoing[client][0]
        self.sent_since[client] = now_s
        self.link.start(now_s, (client, batch), load.batches[batch].sent_bytes, load.uplink_bytes_s)

    def _sent(self, now_s: float, client: int, batch: int) -> None:
        load = self.loads[client]
        self.spans.append(Span(load.client, "upload", self.sent_since[client], now_s, batch))
        heapq.heappush(self.events, (now_s + load.latency_s, _ARRIVED, client, batch))
        self.outgoing[client].popleft()
        if self.outgoing[client]:
            self._send(now_s, client)

    def _answer(self, now_s: float, client: int, batch: int) -> None:
        """The server has finished a batch, and sends back what comes back of it."""
        load = self.loads[client]
        if load.batches[batch].returned_bytes or load.batches[batch].after_s is not None:
            self.returned_since[client, batch] = now_s
            self.back.start(now_s, (client, batch), load.batches[batch].returned_bytes, load.downlink_bytes_s)
        if load.batches[batch].after_s is None:
            self.unfinished[client] -= 1
            self._compute(now_s, client)

    def _returned(self, now_s: float, client: int, batch: int) -> None:
        load = self.loads[client]
        there_s = now_s + load.latency_s
        self.spans.append(Span(load.client, "download", self.returned_since.pop((client, batch)), there_s, batch))
        if load.batches[batch].after_s is not None:
            heapq.heappush(self.events, (there_s, _RETURNED, client, batch))

    def _step(self, now_s: float, client: int, batch: int) -> None:
        """The client, which has waited, ends its step."""
        load = self.loads[client]
        end_s = now_s + (load.batches[batch].after_s or 0.0)
        self.spans.append(Span(load.client, "step", now_s, end_s, batch))
        self.computing[client] = True
        self.unfinished[client] -= 1
        heapq.heappush(self.events, (end_s, _COMPUTED, client, _NONE))

    def _serve(self, now_s: float) -> None:
        # Only when all that arrives at this moment is there: who has waited longest is next, then the lower number.
        for client, batch, server_s in self.server.begin():
            self.spans.append(Span(self.loads[client].client, "server", now_s, now_s + server_s, batch))
            heapq.heappush(self.events, (now_s + server_s, _SERVED, client, batch))

    def exchange(self, begin_s: float) -> list[Span]:
        """Every client's part of the model to the server and, when all are there, averages back."""
        up = [client for client, load in enumerate(self.loads) if load.model_up_bytes]
        transfers = [
            Transfer(begin_s, load.model_up_bytes, load.uplink_bytes_s) for load in self.loads if load.model_up_bytes
        ]
        arrived = [
            end_s + self.loads[client].latency_s
            for client, end_s in zip(up, transfer_ends(transfers, self.context.downlink_bytes_s), strict=True)
        ]
        all_s = max(arrived, default=begin_s)
        down = [client for client, load in enumerate(self.loads) if load.model_down_bytes]
        taken = self._down(down, [(all_s, self.loads[client].model_down_bytes) for client in down])
        return [
            Span(self.loads[client].client, "exchange", since_s, end_s)
            for since_s, clients, ends in ((begin_s, up, arrived), (all_s, down, taken))
            for client, end_s in zip(clients, ends, strict=True)
        ]

    def _down(self, clients: Sequence[int], wanted: Sequence[tuple[float, int]]) -> list[float]:
        """When each client has got so many bytes, which are sent to it from that second on."""
        transfers = [
            Transfer(begin_s, size_bytes, self.loads[client].downlink_bytes_s)
            for client, (begin_s, size_bytes) in zip(clients, wanted, strict=True)
        ]
        ends = transfer_ends(transfers, self.context.uplink_bytes_s)
        return [end_s + self.loads[client].latency_s for client, end_s in zip(clients, ends, strict=True)]


class _OneMachineRound:
    """Everything shares the cores. A free one goes to a server first, then to the client that is first in the queue.

    So it is in a run on one machine: servers get what is there for them, and clients wait while others have the cores.
    """

    def __init__(self, loads: Sequence[ClientLoad], rules: Rules, cores: int) -> None:
        self.loads = loads
        self.windows = [window_of(load, rules) for load in loads]
        self.n_cores = cores
        self.cores = Cores(cores)
        self.server = _server(loads, rules, self.cores)
        self.place = {step: place for place, step in enumerate(queue(loads, rules))}
        self.spans: list[Span] = []
        self.events: list[tuple[float, int, int, int]] = []
        self.ready: list[tuple[int, int]] = []
        """Heap of clients that wait for a core, by the place of their next batch in the queue."""
        self.next_batch = [0] * len(loads)
        self.occupied = [True] * len(loads)
        """Whether a client has a batch under way, waits for a core, or is not there yet."""
        self.returned: dict[int, int] = {}
        """By client, the batch whose step it may end."""
        self.unfinished = [0] * len(loads)

    def run(self) -> list[Span]:
        events = self.events
        for client, load in enumerate(self.loads):
            if load.delay_s:
                self.spans.append(Span(load.client, "away", 0.0, load.delay_s))
            heapq.heappush(events, (load.delay_s, _ARRIVED, client, _NONE))
        while events:
            now_s = events[0][0]
            while events and events[0][0] <= now_s:
                _, what, client, batch = heapq.heappop(events)
                if what == _SERVED:
                    self.server.finished(client)
                    if self.loads[client].batches[batch].after_s is None:
                        self.unfinished[client] -= 1
                    else:
                        self.returned[client] = batch
                else:
                    self.occupied[client] = False
                    self.cores.free += batch != _NONE
                    if what == _COMPUTED and self.loads[client].batches[batch].server_s is not None:
                        self.server.arrived(now_s, client, batch)
                self._line_up(client)
            for client, batch, server_s in self.server.begin():
                load, end_s = self.loads[client], now_s + server_s
                self.spans.append(Span(load.client, "server", now_s, end_s, batch))
                if size := load.batches[batch].returned_bytes:
                    self.spans.append(Span(load.client, "download", end_s, end_s + core_send_s(load, size), batch))
                    end_s = self.spans[-1].end_s
                heapq.heappush(events, (end_s, _SERVED, client, batch))
            while self.ready and self.cores.free:
                self._compute(now_s, heapq.heappop(self.ready)[1])
        return self.spans

    def _line_up(self, client: int) -> None:
        if client in self.returned and not self.occupied[client]:
            self.occupied[client] = True
            heapq.heappush(self.ready, (self.place[client, self.returned[client]], client))
            return
        batch = self.next_batch[client]
        whole = batch == len(self.loads[client].batches)
        if not self.occupied[client] and not whole and self.unfinished[client] < self.windows[client]:
            self.occupied[client] = True
            heapq.heappush(self.ready, (self.place[client, batch], client))

    def _compute(self, now_s: float, client: int) -> None:
        load, batch = self.loads[client], self.next_batch[client]
        self.cores.free -= 1
        if client in self.returned:
            batch = self.returned.pop(client)
            self.unfinished[client] -= 1
            end_s = now_s + (load.batches[batch].after_s or 0.0)
            self.spans.append(Span(load.client, "step", now_s, end_s, batch))
            heapq.heappush(self.events, (end_s, _RETURNED, client, batch))
            return
        self.next_batch[client] += 1
        compute_s, sent_bytes, server_s = load.batches[batch][:3]
        pieces: list[tuple[Kind, float]] = [("compute", compute_s)]
        if batch == 0 and load.fetch_bytes:
            pieces.insert(0, ("fetch", core_send_s(load, load.fetch_bytes)))
        if server_s is not None:
            self.unfinished[client] += 1
            pieces.append(("upload", core_send_s(load, sent_bytes)))
        for kind, taken_s in pieces:
            self.spans.append(Span(load.client, kind, now_s, now_s + taken_s, batch))
            now_s += taken_s
        heapq.heappush(self.events, (now_s, _COMPUTED, client, batch))

    def exchange(self, begin_s: float) -> list[Span]:
        """Every client's part of the model and, when all have sent, the averages; each message takes a core."""
        spans: list[Span] = []
        for sizes in (
            [(load, load.model_up_bytes) for load in self.loads if load.model_up_bytes],
            [(load, load.model_down_bytes) for load in self.loads if load.model_down_bytes],
        ):
            cores = [max((span.end_s for span in spans), default=begin_s)] * self.n_cores
            for load, size_bytes in sizes:
                since_s = heapq.heappop(cores)
                spans.append(Span(load.client, "exchange", since_s, since_s + core_send_s(load, size_bytes)))
                heapq.heappush(cores, spans[-1].end_s)
        return spans


_NONE = -1
"""In place of a batch: the client is there."""
_COMPUTED, _ARRIVED, _SERVED, _RETURNED = range(4)


def window_of(load: ClientLoad, rules: Rules) -> int:
    """How many batches a client may have under way: one, if it waits for what comes back."""
    return 1 if any(batch.after_s is not None for batch in load.batches) else rules.window


def core_send_s(load: ClientLoad, size_bytes: float) -> float:
    """Seconds of a core for a message on one machine."""
    return load.latency_s + size_bytes / load.uplink_bytes_s


def _server(loads: Sequence[ClientLoad], rules: Rules, cores: Cores) -> ParallelServer | SerialServer:
    return ParallelServer(loads, cores) if rules.order == "parallel" else SerialServer(loads, rules, cores)


def _end(span: Span) -> float:
    return span.end_s
