"""`python -m jobs.bench snapshots`: what recording every model's state costs, as a ratio within one run.

Rounds with and without snapshots take turns in one run of Distributed, where nothing else needs them (Averaging
takes them for its averages anyway). The memory of all processes is read after round 3 and after the last.

`python -m jobs.bench serve` is in `bench_serve.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest.mock import patch

from jobs import bench_serve
from jobs.outcome import exit_code

if TYPE_CHECKING:
    from actors.pipeline import Work
    from hsee_ray.reports import RoundReport

DESCRIPTION = "Measure what snapshots cost: rounds with and without them, in turns, in one run."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hsee bench", description="Measure what something costs, on this machine.")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    training = what.add_parser("snapshots", help="what snapshots cost", description=DESCRIPTION)
    training.add_argument("--config", type=Path, default=Path("jobs/configs/cifar10_cpu.yaml"), metavar="FILE")
    training.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="a.b.c=value", help="as in hsee train"
    )
    training.add_argument("--rounds", type=int, default=51, metavar="N", help="rounds to train (default: 51)")
    server = what.add_parser("serve", help="how fast a server answers", description=bench_serve.DESCRIPTION)
    bench_serve.add_options(server)
    options = parser.parse_args(argv)
    if options.what == "serve":
        return exit_code(lambda: bench_serve.serve(options))
    if options.rounds < 9:
        training.error("--rounds: give at least 9")
    return exit_code(lambda: snapshots(options.config, options.set, options.rounds))


def snapshots(config_file: Path, overrides: Sequence[str], rounds: int) -> int:
    """Prints the ratio of the rounds' training times, and the memory early and late."""
    from actors.driver import run
    from actors.session import Listener
    from actors.stages import with_ends
    from hsee_ray.config_files import load_config

    fixed = ["training.strategy=distributed", "evaluation.every=1000000", "checkpoint.every=1000000"]
    config = load_config(config_file, [*fixed, f"training.rounds={rounds}", *overrides])
    train_s: dict[int, float] = {}
    pss_mib: dict[int, float] = {}
    current = 0

    def entered(round_number: int, stage: str) -> None:
        nonlocal current
        current = round_number

    def in_turns(works: Iterable[Work]) -> list[Work]:
        return with_ends(works) if current % 2 else list(works)

    def finished_round(report: RoundReport) -> None:
        train_s[report.round_number] = report.train_s
        if report.round_number in (3, rounds):
            pss_mib[report.round_number] = _pss_mib()

    with TemporaryDirectory() as directory, patch("actors.rounds.with_ends", in_turns):
        run(config, Path(directory) / "run", Listener(entered=entered, finished_round=finished_round))
    pairs = [(train_s[n], (train_s[n - 1] + train_s[n + 1]) / 2) for n in range(3, rounds, 2)]
    ratios = sorted(taken / not_taken for taken, not_taken in pairs)
    low, _, high = quantiles(ratios, n=4)
    print(f"round with snapshots     {median(taken for taken, _ in pairs):.3f} s (median of {len(pairs)})")
    print(f"round without            {median(bare for _, bare in pairs):.3f} s")
    print(f"ratio, neighbours paired {median(ratios):.4f} (quartiles {low:.4f} to {high:.4f})")
    print(
        f"memory (PSS of all)      {pss_mib[3]:.0f} MiB after round 3, {pss_mib[rounds]:.0f} MiB after round {rounds}"
    )
    return 0


def _pss_mib() -> float:
    """Memory of this process and of its local Ray, shared pages counted once."""
    from actors.keeper import MARK, marked_processes

    pids = {os.getpid(), *marked_processes(f"{MARK}={os.environ[MARK]}")}
    total_kib = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended meanwhile
        total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kib / 1024


if __name__ == "__main__":
    sys.exit(main())
