"""`snapshots`: what recording every model's state costs, as a ratio within one run.

Rounds with and without snapshots take turns in one run of Distributed, where nothing else needs them (Averaging
takes them for its averages anyway). The memory of all processes is read after round 3 and after the last.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from jobs.benches.common import NEVER, Result, paired, refuse_cluster, shown
from jobs.benches.watched import own_pss_mib
from jobs.options import add_overrides, at_least

if TYPE_CHECKING:
    from actors.run.pipeline import Work
    from hsee_ray.method.reports import RoundReport

DESCRIPTION = "Measure what snapshots cost: rounds with and without them, in turns, in one run."


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/cifar10_cpu.yaml"), metavar="FILE")
    add_overrides(parser)
    parser.add_argument("--rounds", type=int, default=51, metavar="N", help="rounds to train (default: 51)")


def measure(options: argparse.Namespace) -> Result:
    """The ratio of the rounds' training times, and the memory early and late."""
    at_least(options, rounds=9)
    refuse_cluster()
    from actors.run.driver import run
    from actors.run.listener import Listener
    from actors.run.stages import with_records
    from hsee_ray.config.files import load_config

    rounds = options.rounds
    fixed = ["training.strategy=distributed", f"evaluation.every={NEVER}", f"checkpoint.every={NEVER}"]
    config = load_config(options.config, [*fixed, f"training.rounds={rounds}", *options.set])
    train_s: dict[int, float] = {}
    memory_mib: dict[int, float] = {}
    current = 0

    def entered(round_number: int, stage: str) -> None:
        nonlocal current
        current = round_number

    def in_turns(works: Sequence[Work]) -> list[Work]:
        return with_records(works) if current % 2 else list(works)

    def finished_round(report: RoundReport, cost: object) -> None:
        train_s[report.round_number] = report.train_s
        if report.round_number in (3, rounds):
            memory_mib[report.round_number] = own_pss_mib()

    with TemporaryDirectory() as directory, patch("actors.run.rounds.with_records", in_turns):
        run(config, Path(directory) / "run", Listener(entered=entered, finished_round=finished_round))
    taken = [train_s[n] for n in range(3, rounds, 2)]
    bare = [(train_s[n - 1] + train_s[n + 1]) / 2 for n in range(3, rounds, 2)]
    return {
        "rounds": rounds,
        "pairs": len(taken),
        "train_s": list(train_s.values()),
        "with_snapshots_s": median(taken),
        "without_s": median(bare),
        "ratio": paired(taken, bare).json(),
        "pss_after_round_3_mib": memory_mib[3],
        "pss_after_last_round_mib": memory_mib[rounds],
    }


def render(result: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            f"round with snapshots     {result['with_snapshots_s']:.3f} s (median of {result['pairs']})",
            f"round without            {result['without_s']:.3f} s",
            f"ratio, neighbours paired {shown(result['ratio'], 4)}",
            f"memory (PSS of all)      {result['pss_after_round_3_mib']:.0f} MiB after round 3, "
            f"{result['pss_after_last_round_mib']:.0f} MiB after round {result['rounds']}",
        ]
    )
