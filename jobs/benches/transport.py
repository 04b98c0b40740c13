"""`transport`: gibibytes a second from one actor's result to another one's argument, beside a plain memory copy.

Objects go one at a time, each waited for, and pipelined with several under way. The receiver maps an object and looks
at its first byte, or reads all of it; the plain copy is numpy's, in one thread, into memory that is there. Ray copies
a result into its store once: even an object that is only mapped has to wait for that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.benches.common import Result, Spread, refuse_cluster, shown, tell
from jobs.options import at_least

if TYPE_CHECKING:
    from actors.cluster.probe import Use

DESCRIPTION = "Measure how fast objects pass from actor to actor, beside a plain memory copy, in turns."
WAYS: dict[str, tuple[int, Use]] = {
    "one at a time": (1, "map"),
    "pipelined": (4, "map"),
    "pipelined, read": (4, "read"),
}
"""How many objects are under way, and what the receiver does."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mib", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="of an object (default: 1 8 64)"
    )
    parser.add_argument(
        "--total-mib", type=int, default=256, metavar="N", help="passed in one measurement (default: 256)"
    )
    parser.add_argument("--repetitions", type=int, default=7, metavar="N", help="the first is a warm-up (default: 7)")


def measure(options: argparse.Namespace) -> Result:
    """Every way at every size, in turns."""
    at_least(options, mib=1, total_mib=1, repetitions=2)
    refuse_cluster()
    from actors.cluster.probe import transfers

    rows: list[Result] = [
        {"mib": mib, "objects": max(4, options.total_mib // mib), "seconds": {}} for mib in options.mib
    ]
    with transfers() as between:
        for repetition in range(options.repetitions):
            tell(f"repetition {repetition + 1} of {options.repetitions}")
            for row in rows:
                n_bytes, objects = row["mib"] * 2**20, row["objects"]
                measured = {"plain copy": copy_s(n_bytes, objects)}
                for way, (in_flight, use) in WAYS.items():
                    measured[way] = between.seconds(n_bytes, objects, in_flight, use)
                for way, seconds in measured.items():
                    row["seconds"].setdefault(way, []).append(seconds)
    return {"rows": [summarised(row) for row in rows]}


def copy_s(n_bytes: int, count: int) -> float:
    """Seconds of plain copies of one array into so many others: into memory, not into the cache."""
    import numpy as np

    source = np.ones(n_bytes, np.uint8)
    targets = [np.ones(n_bytes, np.uint8) for _ in range(count)]
    begin = time.perf_counter()
    for target in targets:
        np.copyto(target, source)
    return time.perf_counter() - begin


def summarised(row: Result) -> Result:
    """The row with speeds in GiB/s and shares of the plain copy's, over the repetitions after the first."""
    gib = row["mib"] * row["objects"] / 1024
    seconds = {way: of[1:] for way, of in row["seconds"].items()}
    shares = {
        way: Spread.of([plain / s for plain, s in zip(seconds["plain copy"], of, strict=True)]).json()
        for way, of in seconds.items()
    }
    speeds = {way: Spread.of([gib / s for s in of]).json() for way, of in seconds.items()}
    return {**row, "gib_per_s": speeds, "of_plain_copy": shares}


def render(result: Mapping[str, Any]) -> str:
    from hsee_ray.rundir.tables import align

    table = [["MiB", "way", "GiB/s", "of the plain copy"]]
    for row in result["rows"]:
        for way, speed in row["gib_per_s"].items():
            table.append([str(row["mib"]), way, shown(speed, 2), shown(row["of_plain_copy"][way], 3)])
    return f"{align(table)}\nmedians and quartiles"
