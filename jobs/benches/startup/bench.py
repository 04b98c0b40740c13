"""`startup`: seconds from the command to the first training step, and what it is made of.

Each is a process of its own, timed from its start; they alternate. The first step is over when its driver knows: when
client and server have both done the first piece of work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

from hsee_ray.errors import RunError
from jobs.benches.common import Result, Spread, refuse_cluster, shown, tell
from jobs.options import add_overrides, at_least

DESCRIPTION = "Measure the time from the command to the first training step, and what it is made of."
TIMEOUT_S = 300.0
START_AND_END = "from actors.cluster.probe import start_and_end as s; s()"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/quickstart.yaml"), metavar="FILE")
    add_overrides(parser)
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="(default: 5)")


def measure(options: argparse.Namespace) -> Result:
    """Every command in turns; the run trains a single round."""
    at_least(options, repetitions=1)
    refuse_cluster()
    from hsee_ray.config.files import load_config

    overrides = ["training.rounds=1", *options.set]
    load_config(options.config, overrides)  # what is wrong with it is told before anything starts
    seconds: dict[str, list[float]] = {}
    for repetition in range(options.repetitions):
        tell(f"repetition {repetition + 1} of {options.repetitions}")
        for name, taken_s in _once(options.config, overrides).items():
            seconds.setdefault(name, []).append(taken_s)
    spreads = {name: Spread.of(of).json() for name, of in seconds.items()}
    return {"config": str(options.config), "seconds": seconds, "spreads": spreads}


def _once(config: Path, overrides: Sequence[str]) -> dict[str, float]:
    """Seconds of each by its name."""
    with TemporaryDirectory() as directory:
        training = ["-m", "jobs.benches.startup.first_step", "--config", str(config), "--set", *overrides]
        run = seconds_until([*training, "--run-dir", f"{directory}/run"], ["started", "trained"])
    return {
        "jobs.train --help": seconds_until(["-m", "jobs.train", "--help"], [])["end"],
        "import torch": seconds_until(["-c", "import torch"], [])["end"],
        "ray.init": seconds_until(["-c", START_AND_END], ["ready"])["ready"],
        "actors are asked for": run["started"],
        "first step is done": run["trained"],
        "run of one round is over": run["end"],
    }


def seconds_until(arguments: Sequence[str], lines: Collection[str], timeout_s: float = TIMEOUT_S) -> dict[str, float]:
    """Seconds from the start of a Python until it says these lines, and until its `end`.

    Raises RunError when it fails, or does not say them.
    """
    begin = time.perf_counter()
    found: dict[str, float] = {}
    last = ""
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watch = Timer(timeout_s, process.kill)
        watch.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip() or last
                if last in lines:
                    found.setdefault(last, time.perf_counter() - begin)
            code = process.wait(timeout_s)
        finally:
            watch.cancel()
            process.kill()
    missing = set(lines) - found.keys()
    if code != 0 or missing:
        unsaid = f", without `{'`, `'.join(sorted(missing))}`" if missing else ""
        raise RunError(f"python {' '.join(arguments)} ended with {code}{unsaid}: {last}")
    return {**found, "end": time.perf_counter() - begin}


def render(result: Mapping[str, Any]) -> str:
    from hsee_ray.rundir.tables import align

    rows = [["command", "seconds"], *([name, shown(spread, 2)] for name, spread in result["spreads"].items())]
    return f"{align(rows)}\nmedians and quartiles; {result['config']}"
