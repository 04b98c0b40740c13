"""`overhead`: what the driver takes for each batch: real rounds over actors whose steps compute nothing.

Numbers of clients and sizes of features alternate on one Ray. Clients and servers are idle actors in the places of the
real ones; everything else is a run's own. A round is one turn of every client, with the snapshots at its end.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from jobs.benches.common import Result, Spread, paired, refuse_cluster, shown
from jobs.options import add_overrides, at_least

DESCRIPTION = "Measure the driver's wall time per batch with steps that compute nothing, in turns."


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 6, 24], metavar="N", help="(default: 1 6 24)")
    parser.add_argument(
        "--kib",
        type=int,
        nargs="+",
        default=[16, 128, 1024, 8192],
        metavar="N",
        help="features of a batch (default: 16 128 1024 8192)",
    )
    parser.add_argument("--batches", type=int, default=32, metavar="N", help="per client and round (default: 32)")
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="of each; the first is a warm-up (default: 7)"
    )
    add_overrides(parser)


def measure(options: argparse.Namespace) -> Result:
    """Milliseconds per batch of every number of clients and size."""
    at_least(options, clients=1, kib=1, batches=1, rounds=2)
    refuse_cluster()
    from jobs.benches.overhead.rounds import wall_times_s

    clients, kib = sorted(set(options.clients)), sorted(set(options.kib))
    times_s = wall_times_s(clients, kib, options.batches, options.rounds, options.set)
    ms = {(size, n): [1000 * wall_s / (n * options.batches) for wall_s in of[1:]] for (size, n), of in times_s.items()}
    rows = [
        {"kib": size, "clients": n, "ms": ms[size, n], "ms_per_batch": Spread.of(ms[size, n]).json()}
        for size in kib
        for n in clients
    ]
    growth = [
        {"kib": size, "from": few, "to": many, "growth": paired(ms[size, many], ms[size, few]).json()}
        for size in kib
        for few, many in pairwise(clients)
    ]
    return {
        "batches": options.batches,
        "rounds": options.rounds,
        "overrides": options.set,
        "rows": rows,
        "growth": growth,
    }


def render(result: Mapping[str, Any]) -> str:
    from hsee_ray.rundir.tables import align

    growth = {(row["kib"], row["to"]): f"from {row['from']}: {shown(row['growth'], 2)}" for row in result["growth"]}
    rows = [["KiB a batch", "clients", "ms per batch", "growth"]]
    for row in result["rows"]:
        grown = growth.get((row["kib"], row["clients"]), "")
        rows.append([str(row["kib"]), str(row["clients"]), shown(row["ms_per_batch"], 2), grown])
    return f"{align(rows)}\nmedians and quartiles; batches per client and round: {result['batches']}"
