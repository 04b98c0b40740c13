"""`scale`: many logical clients that share a few actors: time, start-up and memory by their number.

Every number is a run of its own, with the same slots; they alternate. `scale_run.py` is such a run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hsee_ray.process import cores
from jobs.benches.common import Result, Spread, refuse_cluster, shown, tell
from jobs.benches.watched import watch
from jobs.options import at_least

DESCRIPTION = "Measure rounds, start-up and memory with many clients that share a few actors."
LINE = "scale: "
LIMIT_S = 3600.0
EARLY_ROUND = 3
"""After it, memory is compared with that after the last one."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[10, 100, 1000], metavar="N", help="(default: 10 100 1000)"
    )
    parser.add_argument("--slots", type=int, default=cores(), metavar="N", help="for clients, and as many for servers")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="of the largest (default: 20)")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="of each client (default: 32)")
    parser.add_argument("--repetitions", type=int, default=1, metavar="N", help="runs of each (default: 1)")


def measure(options: argparse.Namespace) -> Result:
    """Every number of clients in turns; memory is followed over many rounds with the most of them."""
    at_least(options, clients=2, slots=1, rounds=EARLY_ROUND + 1, images=2, repetitions=1)
    refuse_cluster()
    numbers = sorted(set(options.clients))
    runs: dict[int, list[Result]] = {number: [] for number in numbers}
    for repetition in range(options.repetitions):
        for number in numbers if repetition % 2 == 0 else reversed(numbers):
            tell(f"{number} clients, {repetition + 1} of {options.repetitions}")
            runs[number].append(_run(number, options.slots, options.rounds, options.images))
    cases = [{"clients": number, **summarised(number, found)} for number, found in runs.items()]
    base = cases[0]["ms_per_client_round"]["median"]
    grown = [{**case, "of_the_first": case["ms_per_client_round"]["median"] / base} for case in cases]
    return {"slots": options.slots, "rounds": options.rounds, "images": options.images, "cases": grown}


def _run(clients: int, slots: int, rounds: int, images: int) -> Result:
    what = [f"--clients={clients}", f"--slots={slots}", f"--rounds={rounds}", f"--images={images}"]
    with TemporaryDirectory(prefix="scale-", ignore_cleanup_errors=True) as scratch:
        command = [sys.executable, "-m", "jobs.benches.scale.one_run", *what, f"--run-dir={scratch}/run"]
        done = watch(f"{clients} clients", command, {}, Path(scratch), LIMIT_S)
    told = parse(done.output)
    return {"begin_s": done.begin_s, "peak_mib": done.peak_mib, "rounds": told}


def parse(output: Iterable[str]) -> list[dict[str, float]]:
    """Reported rounds of a run, in order."""
    return [json.loads(line[len(LINE) :]) for line in output if line.startswith(LINE)]


def summarised(clients: int, runs: list[Result]) -> Result:
    """Spreads over all rounds but the first, which starts actors; memory of each run."""
    times_ms = [
        1000 * (after["end_s"] - before["resumed_s"]) / clients
        for run in runs
        for before, after in pairwise(run["rounds"])
    ]
    return {
        "ms_per_client_round": Spread.of(times_ms).json(),
        "start_s": Spread.of([run["rounds"][0]["first_step_s"] - run["begin_s"] for run in runs]).json(),
        "peak_mib": Spread.of([run["peak_mib"] for run in runs]).json(),
        "early_mib": Spread.of([run["rounds"][EARLY_ROUND - 1]["pss_mib"] for run in runs]).json(),
        "late_mib": Spread.of([run["rounds"][-1]["pss_mib"] for run in runs]).json(),
    }


def render(result: Mapping[str, Any]) -> str:
    from hsee_ray.rundir.tables import align

    rows = [["clients", "ms/client and round", "of the first", "start-up s", "peak MiB", "after 3", "after the last"]]
    for case in result["cases"]:
        figures = (("start_s", 1), ("peak_mib", 0), ("early_mib", 0), ("late_mib", 0))
        times = shown(case["ms_per_client_round"], 2)
        spreads = [f"{case[name]['median']:.{digits}f}" for name, digits in figures]
        rows.append([str(case["clients"]), times, f"{case['of_the_first']:.2f}", *spreads])
    legend = (
        f"medians and quartiles; {result['slots']} + {result['slots']} slots, {result['images']} images a client, "
        f"{result['rounds']} rounds; memory is PSS of all processes"
    )
    return f"{align(rows)}\n{legend}"
