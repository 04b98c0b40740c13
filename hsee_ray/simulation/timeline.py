"""Timeline of a run's first rounds as `timeline.json`, in Chrome's trace format, which Perfetto opens.

Process "real" has a row for each actor, "simulated" a row for each device, its link and its model at the server. The
format: docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Trace Event Format).
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hsee_ray.config.fleet import Fleet
from hsee_ray.simulation.model import Span
from hsee_ray.simulation.prediction import RoundCost
from hsee_ray.storage import write_whole

TIMELINE_FILE = "timeline.json"

Process = Literal["real", "simulated"]
PROCESSES: tuple[Process, ...] = ("real", "simulated")
_OWN_ROW = {"upload": " link", "fetch": " link", "download": " link", "exchange": " link"}
"""Activity of a client's link while it computes."""


class Piece(NamedTuple):
    """Something that was done without a pause."""

    process: Process
    row: str
    name: str
    begin_us: float
    duration_us: float
    args: dict[str, Any]
    """At least its `round`."""


class Timeline:
    """The first rounds of one run. What is done again after a resume takes the place of what was done before."""

    def __init__(self, path: Path, rounds: int, done_rounds: int, wall_s: float, shared_server: bool) -> None:
        """Keeps what a file at `path` has of rounds that are done; `wall_s` is how long they took."""
        self.path = path
        self.rounds = rounds
        self.shared_server = shared_server
        self.zero_s = time.monotonic() - wall_s
        self.pieces = [piece for piece in _read(path) if piece.args["round"] <= done_rounds]
        self._is_new = False
        """Whether there is something that the file does not have."""

    def worked(self, actor: str, model: str, stage: str, round_number: int, begin_s: float, end_s: float) -> None:
        """A call that has been answered; seconds of `time.monotonic`."""
        if round_number <= self.rounds:
            args = {"round": round_number, "model": model}
            self._add("real", actor, stage, begin_s - self.zero_s, end_s - begin_s, args)

    def simulated(self, round_number: int, begin_s: float, cost: RoundCost) -> None:
        """A round in simulated time, which began at this simulated second."""
        if round_number > self.rounds:
            return
        evaluation_s = begin_s + cost.train_s + cost.exchange_s
        for stage, since_s, spans in (
            ("train", begin_s, cost.spans),
            ("evaluate", evaluation_s, cost.evaluation_spans),
        ):
            for span in spans:
                args = {"round": round_number, "stage": stage, "batch": span.batch}
                row = self._simulated_row(span, cost.fleet)
                self._add("simulated", row, span.kind, since_s + span.begin_s, span.end_s - span.begin_s, args)

    def write(self) -> None:
        """Writes the file, if there is anything new."""
        if self._is_new:
            write_whole(self.path, json.dumps(trace(self.pieces)).encode())
            self._is_new = False

    def _add(
        self, process: Process, row: str, name: str, begin_s: float, duration_s: float, args: dict[str, Any]
    ) -> None:
        begin_us, duration_us = round(1e6 * begin_s, 3), round(1e6 * max(0.0, duration_s), 3)
        self.pieces.append(Piece(process, row, name, begin_us, duration_us, args))
        self._is_new = True

    def _simulated_row(self, span: Span, fleet: Fleet) -> str:
        label = fleet.clients[span.client].label
        if span.kind == "server":
            return "shared server" if self.shared_server else f"server {label}"
        return f"client {label}{_OWN_ROW.get(span.kind, '')}"


def trace(pieces: list[Piece]) -> dict[str, Any]:
    """The file's content: names of processes and rows, then complete events in the order of their beginning."""
    events: list[dict[str, Any]] = []
    numbers: dict[tuple[str, str], dict[str, int]] = {}
    for pid, process in enumerate(PROCESSES, start=1):
        rows = sorted({piece.row for piece in pieces if piece.process == process}, key=_row_order)
        if rows:
            events.append({"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": process}})
        for tid, row in enumerate(rows, start=1):
            numbers[process, row] = where = {"pid": pid, "tid": tid}
            events.append({"ph": "M", **where, "name": "thread_name", "args": {"name": row}})
            events.append({"ph": "M", **where, "name": "thread_sort_index", "args": {"sort_index": tid}})
    for piece in sorted(pieces, key=lambda piece: (piece.begin_us, PROCESSES.index(piece.process), piece.row)):
        where = numbers[piece.process, piece.row]
        times = {"ts": piece.begin_us, "dur": piece.duration_us}
        events.append({"ph": "X", **where, "name": piece.name, "cat": piece.process, **times, "args": piece.args})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _row_order(row: str) -> tuple[int, int, str]:
    """A client, its link, its server, then the next client; last what all have in common."""
    number = re.search(r"\d+", row)
    return (0, int(number[0]), row) if number else (1, 0, row)


def _read(path: Path) -> list[Piece]:
    """The pieces of a file that `trace` made; none where there is no such file."""
    if not path.is_file():
        return []
    try:
        events = json.loads(path.read_bytes())["traceEvents"]
        names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        return [
            Piece(e["cat"], names[e["pid"], e["tid"]], e["name"], e["ts"], e["dur"], e["args"])
            for e in events
            if e["ph"] == "X"
        ]
    except (ValueError, KeyError, TypeError):
        # Somebody has worked on it. It only shows what was, so the run goes on without that.
        return []
