"""`snapshots`: what recording every model's state costs, as a ratio within one run.

Rounds with and without snapshots alternate in one run of Distributed, where nothing else needs them (Averaging
takes them for its averages anyway). The memory of all processes is read after round 3 and after the last.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from jobs.benches.common import NEVER, Result, paired, refuse_cluster, shown, tell
from jobs.benches.watched import own_pss_mib
from jobs.options import add_overrides, at_least

DESCRIPTION = "Measure what snapshots cost: rounds with and without them, in turns, in one run."


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/cifar10_cpu.yaml"), metavar="FILE")
    add_overrides(parser)
    parser.add_argument("--rounds", type=int, default=51, metavar="N", help="rounds to train (default: 51)")


def measure(options: argparse.Namespace) -> Result:
    """The ratio of the rounds' training times, and the memory early and late."""
    at_least(options, rounds=9)
    refuse_cluster()
    from actors.cluster.connection import cluster_context
    from hsee_ray.config.files import load_config
    from hsee_ray.method.setup import prepare_run
    from jobs.benches.overhead.rounds import begin

    rounds = options.rounds
    fixed = ["training.strategy=distributed", f"evaluation.every={NEVER}", f"training.rounds={NEVER}"]
    setup = prepare_run(load_config(options.config, [*fixed, *options.set]))
    train_s: dict[int, float] = {}
    memory_mib: dict[int, float] = {}
    with TemporaryDirectory() as directory, ExitStack() as stack:
        stack.enter_context(cluster_context(setup.config, setup.fleet, lambda who, text: tell(f"{who}: {text}")))
        run = begin(setup, Path(directory) / "run", stack)
        for round_number in range(1, rounds + 1):
            run.snapshots = round_number % 2 == 1
            train_s[round_number] = run.run_round(round_number).train_s
            if round_number in (3, rounds):
                memory_mib[round_number] = own_pss_mib()
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
