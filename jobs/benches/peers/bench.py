"""`peers`: Flower's simulation engine beside ours, on this machine, with clients that do nothing or next to nothing.

Flower pins a Ray of its own, so it lives in a virtual environment of its own, made by the first run. Both sides run as
commands of their own, in turns, with as many clients at once and one thread in each; all clients take part in every
round. A client of Flower is one call and its answer, and what it answers is averaged; one of ours has a server that
takes up what it sends, and both are averaged. `flower_app.py` is Flower's side, `peers_ours.py` is ours; each prints a
line for every round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from hsee_ray.process import cores
from jobs.benches.common import Result, Spread, paired, refuse_cluster, shown, tell
from jobs.benches.watched import watch
from jobs.options import at_least

DESCRIPTION = "Measure rounds, start-up and memory of Flower's simulation beside ours, with the same clients."
WORKS = ("noop", "tiny")
REQUIREMENT = "flwr[simulation]==1.41.0"
"""Pinned, so that a figure can be repeated; it brings the Ray that it wants."""
LINE = "peer: "
LIMIT_S = 900.0
"""No run takes so long, also on a slow machine."""
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

Command = Callable[[list[str], Path], list[str]]
"""Makes a side's command of what both sides take, and a directory for its temporary files."""


@dataclass(frozen=True)
class Round:
    """One round of one side, as it says itself."""

    number: int
    first_call_s: float
    """When the round's first client was called; the clock is that of `time.monotonic`."""
    end_s: float
    clients: int
    """Those that answered."""
    work_s: float
    """Of a core, all clients together."""


@dataclass(frozen=True)
class Measured:
    """One run of one side."""

    start_s: float
    """From the command to the first call of a client."""
    round_s: tuple[float, ...]
    """From the end of a round to the end of the next one: the first round, which starts actors, is left out."""
    overhead_ms: tuple[float, ...]
    """Per round and client: what is left without the clients' own work."""
    peak_mib: float
    """Memory (PSS) of all its processes together."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[10, 100, 1000], metavar="N", help="(default: 10 100 1000)"
    )
    parser.add_argument("--work", nargs="+", default=list(WORKS), choices=WORKS, help="of a client (default: both)")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="of each run; the first is a warm-up (default: 5)"
    )
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="runs of each (default: 3)")
    parser.add_argument("--slots", type=int, default=cores(), metavar="N", help="clients at once (default: the cores)")
    parser.add_argument(
        "--peers-dir", type=Path, metavar="DIR", help="where the peer's environment is, or is made (default: the cache)"
    )


def measure(options: argparse.Namespace) -> Result:
    """Every number of clients with every work; the two sides alternate."""
    at_least(options, clients=2, rounds=3, repetitions=1, slots=1)
    refuse_cluster()
    sides = {"flower": flower(peer_python(options.peers_dir or default_directory())), "ours": ours}
    cases: list[Result] = []
    versions: dict[str, Any] = {}
    for clients in options.clients:
        for work in options.work:
            runs: dict[str, list[Measured]] = {side: [] for side in sides}
            for repetition in range(options.repetitions):
                for side, command in sides.items():
                    tell(f"{clients} clients, {work}: {side}, {repetition + 1} of {options.repetitions}")
                    run, versions[side] = run_side(side, command, clients, work, options.rounds, options.slots)
                    runs[side].append(run)
            cases.append({"clients": clients, "work": work, **summarised(runs)})
    return {"slots": options.slots, "versions": versions, "cases": cases}


def summarised(runs: Mapping[str, list[Measured]]) -> Result:
    """Spreads over all rounds of a side, and over runs; ratios of runs that were beside each other."""

    def of_side(measured: list[Measured]) -> Result:
        return {
            "round_s": Spread.of([value for run in measured for value in run.round_s]).json(),
            "overhead_ms": Spread.of([value for run in measured for value in run.overhead_ms]).json(),
            "start_s": Spread.of([run.start_s for run in measured]).json(),
            "peak_mib": Spread.of([run.peak_mib for run in measured]).json(),
        }

    overhead = {side: [median(run.overhead_ms) for run in measured] for side, measured in runs.items()}
    ratio = paired(overhead["flower"], overhead["ours"]).json()
    return {"sides": {side: of_side(measured) for side, measured in runs.items()}, "overhead_ratio": ratio}


def render(result: Mapping[str, Any]) -> str:
    """A table with a line for every number of clients, work and side."""
    from hsee_ray.rundir.tables import align

    rows = [["clients", "work", "side", "s/round", "ms/client and round", "start-up s", "peak MiB", "Flower/ours"]]
    for case in result["cases"]:
        for side, found in case["sides"].items():
            figures = zip(("round_s", "overhead_ms", "start_s", "peak_mib"), (3, 2, 1, 0), strict=True)
            ratio = shown(case["overhead_ratio"], 2) if side == "ours" else ""
            name = {"flower": "Flower", "ours": "hsee-ray"}[side]
            spreads = [shown(found[figure], digits) for figure, digits in figures]
            rows.append([str(case["clients"]), case["work"], name, *spreads, ratio])
    peer = ", ".join(f"{name} {number}" for name, number in result["versions"]["flower"].items())
    legend = (
        f"medians and quartiles; clients at once: {result['slots']}; ms and Flower/ours without the clients' own work"
    )
    return "\n".join([align(rows), legend, f"Flower's side: {peer}"])


def flower(python: Path) -> Command:
    """Flower's side of the benchmark, by the Python of its environment."""

    def command(what: list[str], scratch: Path) -> list[str]:
        app = Path(__file__).with_name("flower_app.py")
        return [str(python), str(app), *what, "--temp-dir", str(scratch / "ray")]

    return command


def ours(what: list[str], scratch: Path) -> list[str]:
    return [sys.executable, "-m", "jobs.benches.peers.ours", *what, "--run-dir", str(scratch / "run")]


def run_side(
    side: str, command: Command, clients: int, work: str, rounds: int, slots: int
) -> tuple[Measured, dict[str, str]]:
    """One run of one side, and the versions that it used. Raises RunError when it fails, or someone did not answer."""
    from hsee_ray.errors import RunError

    what = [f"--clients={clients}", f"--work={work}", f"--rounds={rounds}", f"--slots={slots}"]
    # A short name: it becomes part of the names of Ray's sockets, which have at most 107 bytes.
    with TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as scratch:
        environment = {**ONE_THREAD, **QUIET, "FLWR_HOME": scratch}
        done = watch(side, command(what, Path(scratch)), environment, Path(scratch), LIMIT_S)
    found, versions = parse(done.output)
    if [each.clients for each in found] != [clients] * rounds:
        raise RunError(f"{side}: {rounds} rounds of {clients} clients were asked for; answers came from {found}")
    return measured(found, done.begin_s, slots, done.peak_mib), versions


def parse(output: Iterable[str]) -> tuple[list[Round], dict[str, str]]:
    """Parses a side's output: its rounds in order, and its versions. Other lines are ignored."""
    rounds: list[Round] = []
    versions: dict[str, str] = {}
    for line in output:
        if line.startswith(LINE):
            told = json.loads(line[len(LINE) :])
            if "versions" in told:
                versions = told["versions"]
            else:
                rounds.append(Round(**told))
    return sorted(rounds, key=lambda each: each.number), versions


def measured(rounds: list[Round], begin_s: float, slots: int, peak_mib: float) -> Measured:
    """The figures of one run; `begin_s` is when its command was given."""
    round_s = [after.end_s - before.end_s for before, after in pairwise(rounds)]
    overhead_ms = [
        1000 * (whole_s - each.work_s / slots) / each.clients for whole_s, each in zip(round_s, rounds[1:], strict=True)
    ]
    return Measured(rounds[0].first_call_s - begin_s, tuple(round_s), tuple(overhead_ms), peak_mib)


def default_directory() -> Path:
    """Beside the image cache, which is remade as easily."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hsee-ray" / "peers"


def peer_python(directory: Path) -> Path:
    """The Python of Flower's environment, which is made when it is not there. Raises RunError when pip fails."""
    from hsee_ray.errors import RunError

    place = directory.absolute() / "flower"
    python, installed = place / "bin" / "python", place / "installed"
    if installed.is_file() and installed.read_text() == REQUIREMENT:
        return python
    tell(f"making an environment with {REQUIREMENT} in {place}")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            last = done.stdout.strip().rpartition("\n")[2]
            raise RunError(f"{' '.join(command)}: exit code {done.returncode}: {last}; pip must reach an index")
    installed.write_text(REQUIREMENT)
    return python
