"""Moves batches through clients and servers: a bounded number in flight, nothing waited for one by one.

A piece of work is one call of a client and the call of its server on what that gives. A server's call is submitted
when its features are there, and in the order of the list: who is faster changes when a server gets its batches, never
which come first, and a client that dies leaves nothing half-done in a server's queue.

Pieces belong to turns, and a server is given pieces of one turn at a time. When an actor fails, its turn is done anew
from the beginning by everyone who has begun it; other turns go on.

A client and its server hold slots from the first piece of their turn to its end, so that a turn that has begun never
waits for one that has not. Where all clients are in one turn, each holds its slot while it computes.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ray import ObjectRef

from actors.run.calls import CallResult, Calls
from actors.run.team import Member
from hsee_ray.method.aggregation import ModelId
from hsee_ray.rundir.failures import Failure

Side = Literal["client", "server"]

CALLS_AHEAD = 2
"""Where clients share cores: one call computes, one more is there when it is done."""


@dataclass(frozen=True)
class Work:
    """Steps or samples first..last-1 of one client, and who takes their features up."""

    client: int
    server: int | None
    """Names the server; None where the client's report is all there is."""
    first: int
    last: int
    turn: int
    """What is repeated together after a failure."""
    records: frozenset[Side] = frozenset()
    """Sides whose part in the turn is over with it: their states are recorded."""


@dataclass(frozen=True)
class Done:
    """A piece of work whose calls have returned. After a failure it may be done once more, with equal reports."""

    work: Work
    client_report: Any
    server_report: Any
    turn_done: bool
    """Whether it was the last piece of its turn."""


class TurnLost(Exception):
    """A turn that several clients share has lost one of them; all of it has been taken back."""


class Stage(Protocol):
    """What the pipeline asks of those who do the work."""

    def queue(self, work: Work) -> Hashable:
        """Clients of one queue wait for the same slots."""

    def slot(self, work: Work) -> bool:
        """Has those who take part in a piece of work hold slots; False when there are none and it must wait."""

    def leave(self, model: ModelId) -> None:
        """The model has nothing to do for now, and holds its slot no longer."""

    def client_call(self, work: Work) -> tuple[ObjectRef[Any], ObjectRef[Any]]:
        """Submits the client's call; gives the references of its features and of its report."""

    def server_call(self, work: Work, features: ObjectRef[Any], client_report: Any) -> ObjectRef[Any] | None:
        """Submits the server's call on those features; gives the reference of its report.

        None when the client has sent nothing: the piece of work is done without the server.
        """

    def replace(self, member: Member, failure: Failure) -> bool:
        """Puts an actor, with its model as it was before the turn, in the place of one that failed.

        False when it is a client that is left out of this round.
        """

    def restore(self, model: ModelId) -> None:
        """Puts a model back to where it was before the turn."""

    def answered(self, member: Member) -> None:
        """Told of every answer."""


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
    server_report: Any = None
    computed: bool = False
    """The client's call has returned."""


@dataclass(frozen=True)
class _Call:
    """A call under way."""

    index: int
    by_server: bool


class Pipeline:
    """Runs a list of work with at most `concurrent` clients at a time, each at most `window` pieces ahead.

    With a shared server, a client whose own calls have returned makes room for the next one in the queue, which then
    computes ahead. With a server for each client, it makes room when its server is done.

    Where all actors share the `cores` of one machine, clients wait while as many others have work: more processes than
    cores slow each other down, and servers are not kept from what is there for them.
    """

    def __init__(
        self,
        works: Sequence[Work],
        stage: Stage,
        calls: Calls[_Call],
        concurrent: int,
        window: int,
        shared_server: bool,
        cores: int | None = None,
        one_turn: bool = False,
    ) -> None:
        """`one_turn`: all clients are in one turn, so that each leaves its slot whenever it does not compute."""
        self.works = works
        self.stage = stage
        self.calls = calls
        self.concurrent = concurrent
        self.window = window
        self.shared_server = shared_server
        self.cores = cores
        self.busy: Counter[Member] = Counter()
        """Calls under way, by who owes them."""
        self.clients: dict[int, _Client] = {}
        self.server_queues: dict[int, deque[int]] = {}
        self.turns: dict[int, list[int]] = {}
        for index, work in enumerate(works):
            self.clients.setdefault(work.client, _Client(deque())).todo.append(index)
            self.turns.setdefault(work.turn, []).append(index)
            if work.server is not None:
                self.server_queues.setdefault(work.server, deque()).append(index)
        self.one_turn = one_turn
        self.ready: dict[Hashable, list[tuple[int, int]]] = {}
        """By queue, clients by the position of their next piece of work; heaps."""
        self._line_up()
        self.active: set[int] = set()
        self.connected: set[int] = set()
        """Clients that hold their slots, and their server's."""
        self.pieces: dict[int, _Piece] = {}
        self.left = {turn: len(indices) for turn, indices in self.turns.items()}
        """Pieces of each turn that are not done."""
        self.open_turn: dict[int, int] = {}
        """By server, the turn of which it has been given pieces and that is not done."""
        self.begun: dict[int, set[ModelId]] = {}
        """By turn, the models that have moved on from where they were before it."""

    def run(self) -> Iterator[Done]:
        """Yields each piece of work as it is done, in no particular order between turns."""
        self._submit_clients()
        while self.calls:
            answer = self.calls.next()
            if answer.failure is None:
                self._count_down(answer.member)
                self.stage.answered(answer.member)
                finished = self._take(answer)
            else:
                finished = self._do_anew(answer.member, answer.tag, answer.failure)
            yield from self._finish(finished)
            self._submit_clients()

    def _line_up(self) -> None:
        self.ready = {}
        for client_id, client in self.clients.items():
            if client.todo:
                queue = self.stage.queue(self.works[client.todo[0]])
                self.ready.setdefault(queue, []).append((client.todo[0], client_id))
        for each in self.ready.values():
            heapq.heapify(each)

    def _count_down(self, member: Member) -> None:
        self.busy[member] -= 1
        if not self.busy[member]:
            del self.busy[member]

    def _submit_clients(self) -> None:
        """Submits what may start now, strictly by position: what a server needs next is never kept back."""
        skipped: list[tuple[Hashable, tuple[int, int]]] = []
        waiting: set[Hashable] = set()
        while open_queues := [queue for queue, each in self.ready.items() if each and queue not in waiting]:
            queue = min(open_queues, key=lambda queue: self.ready[queue][0])
            position, client_id = self.ready[queue][0]
            # Work that is done anew comes before everything that already waits for the server.
            if len(self.pieces) >= self.concurrent * self.window and position > min(self.pieces):
                break
            client = self.clients[client_id]
            should_wait = self._should_wait(ModelId("client", client_id))
            if client_id not in self.active and (should_wait or len(self.active) >= self.concurrent):
                # Nobody behind it gets what it waits for.
                waiting.add(queue)
            elif should_wait or client.in_flight >= self.window:
                skipped.append((queue, heapq.heappop(self.ready[queue])))
            elif not self._slot(client_id, position):
                waiting.add(queue)
            else:
                heapq.heappop(self.ready[queue])
                self._submit(client.todo.popleft(), client)
                self.active.add(client_id)
                if client.todo:
                    heapq.heappush(self.ready[queue], (client.todo[0], client_id))
        for queue, entry in skipped:
            heapq.heappush(self.ready[queue], entry)

    def _should_wait(self, client: ModelId) -> bool:
        """Whether a client would only take a core from somebody else."""
        if self.cores is None:
            return False
        others = len(self.busy) - (client in self.busy)
        return others >= self.cores or self.busy[client] >= CALLS_AHEAD

    def _slot(self, client_id: int, index: int) -> bool:
        if client_id not in self.connected and self.stage.slot(self.works[index]):
            self.connected.add(client_id)
        return client_id in self.connected

    def _leave(self, work: Work) -> None:
        """A client's share of a turn is over, or must wait: others may have its slot and its server's."""
        self.connected.discard(work.client)
        self.stage.leave(ModelId("client", work.client))
        if work.server is not None and not self.shared_server:
            self.stage.leave(ModelId("server", work.server))

    def _submit(self, index: int, client: _Client) -> None:
        work = self.works[index]
        features, report = self.stage.client_call(work)
        self.pieces[index] = _Piece(features)
        self._expect(report, ModelId("client", work.client), _Call(index, by_server=False))
        client.computing += 1
        client.in_flight += 1

    def _submit_server(self, server: int) -> list[int]:
        """Submits the server's next calls of one turn, as far as their features are there without a gap.

        Gives the pieces that are done without it.
        """
        queue = self.server_queues[server]
        without: list[int] = []
        while queue and (piece := self.pieces.get(queue[0])) and piece.computed:
            turn = self.works[queue[0]].turn
            if self.open_turn.setdefault(server, turn) != turn:
                break
            index = queue.popleft()
            report = self.stage.server_call(self.works[index], piece.features, piece.client_report)
            if report is None:
                without.append(index)
            else:
                self._expect(report, ModelId("server", server), _Call(index, by_server=True))
        return without

    def _expect(self, report: ObjectRef[Any], model: ModelId, call: _Call) -> None:
        self.begun.setdefault(self.works[call.index].turn, set()).add(model)
        self.calls.add(report, model, call)
        self.busy[model] += 1

    def _take(self, answer: CallResult[_Call]) -> list[int]:
        """Takes the result of a call; gives the pieces of work of which it was the last one."""
        index = answer.tag.index
        work, piece = self.works[index], self.pieces[index]
        if answer.tag.by_server:
            piece.server_report = answer.value
            return [index]
        self.clients[work.client].computing -= 1
        piece.client_report, piece.computed = answer.value, True
        self._make_room(work.client)
        if self.one_turn and self.clients[work.client].computing == 0:
            self._leave(work)
        return [index] if work.server is None else self._submit_server(work.server)

    def _finish(self, indices: list[int]) -> Iterator[Done]:
        """Crosses pieces of work off; a turn that ends with one of them makes way for the server's next."""
        while indices:
            index = indices.pop(0)
            work, piece = self.works[index], self.pieces.pop(index)
            self.clients[work.client].in_flight -= 1
            self._make_room(work.client)
            self.left[work.turn] -= 1
            turn_done = self.left[work.turn] == 0
            if turn_done and not self.one_turn:
                self._leave(work)
            if turn_done and work.server is not None:
                self.open_turn.pop(work.server)
                indices += self._submit_server(work.server)
            yield Done(work, piece.client_report, piece.server_report, turn_done)

    def _make_room(self, client_id: int) -> None:
        client = self.clients[client_id]
        occupied = client.computing > 0 or (not self.shared_server and (client.todo or client.in_flight > 0))
        if not occupied:
            self.active.discard(client_id)

    def _do_anew(self, member: Member, call: _Call, failure: Failure) -> list[int]:
        """Replaces the actor that failed and repeats the turn that it was in; gives pieces that are done by that."""
        work = self.works[call.index]
        others = self._rewind(work.turn) - {member}
        kept = self.stage.replace(member, failure)
        for model in others:
            self.stage.restore(model)
        if self.one_turn:
            for index in self.turns[work.turn]:
                self._leave(self.works[index])
        if not kept:
            self._leave_out(work)
        return [] if work.server is None else self._submit_server(work.server)

    def _rewind(self, turn: int) -> set[ModelId]:
        """Takes back what has been done of a turn; gives the models that have begun it."""
        indices = self.turns[turn]
        self.open_turn = {server: other for server, other in self.open_turn.items() if other != turn}
        self.calls.forget(lambda _, call: self.works[call.index].turn == turn)
        for model in self.begun.get(turn, ()):
            self.busy.pop(model, None)
        for index in indices:
            self.pieces.pop(index, None)
        self.left[turn] = len(indices)
        for server in {work.server for index in indices if (work := self.works[index]).server is not None}:
            mine = {index for index in indices if self.works[index].server == server}
            self.server_queues[server] = deque(sorted(mine.union(self.server_queues[server])))
        for client_id in {self.works[index].client for index in indices}:
            client = self.clients[client_id]
            client.todo = deque(index for index in indices if self.works[index].client == client_id)
            client.computing = client.in_flight = 0
            self.active.discard(client_id)
        self._line_up()
        return self.begun.pop(turn, set())

    def _leave_out(self, work: Work) -> None:
        """Removes what a client has to do. Raises TurnLost when others are in its turn."""
        if any(self.works[index].client != work.client for index in self.turns[work.turn]):
            raise TurnLost
        self._leave(work)
        self.clients[work.client].todo.clear()
        if work.server is not None:
            mine = set(self.turns[work.turn])
            self.server_queues[work.server] = deque(i for i in self.server_queues[work.server] if i not in mine)
        self._line_up()
