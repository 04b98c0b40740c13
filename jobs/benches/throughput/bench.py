"""`throughput`: samples a second of a run, of a plain PyTorch loop, and of what the cores could do without Ray.

All three train the same networks on the same batches and alternate in one run, round by round. Averaging is held
against its limit: one single-threaded process per core doing the steps of its share of the clients, with no Ray and no
transport. Sequential has one server that works in the order of the queue, so its bound is max(server work, (server
work + client work) / cores), of work in single-threaded seconds while every core does the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from hsee_ray.process import cores
from jobs.benches.common import Result, Spread, paired, refuse_cluster, shown, tell
from jobs.options import add_overrides, at_least

DESCRIPTION = "Measure samples per second beside a plain loop and the limit of the cores, in turns, in one run."
STRATEGIES = ("averaging", "sequential")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--width", type=int, nargs="+", default=[16, 64], metavar="N", help="of the ResNet-18 (default: 16 64)"
    )
    parser.add_argument("--strategy", nargs="+", default=list(STRATEGIES), choices=STRATEGIES, help="(default: both)")
    parser.add_argument(
        "--rounds", type=int, default=6, metavar="N", help="of each; the first is a warm-up (default: 6)"
    )
    parser.add_argument(
        "--batches", type=int, metavar="N", help="per client and round (default: 8 at width 16, 4 at width 64)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="(default: 64)")
    parser.add_argument("--clients", type=int, default=2, metavar="N", help="in each of the 3 tiers (default: 2)")
    add_overrides(parser)


def measure(options: argparse.Namespace) -> Result:
    """Every strategy at every width, one after the other."""
    at_least(options, width=1, rounds=2, batches=1, batch_size=2, clients=1)
    refuse_cluster()
    from jobs.benches.throughput.case import Case, run_case

    cases: list[Result] = []
    for width in options.width:
        for strategy in options.strategy:
            batches = options.batches or max(4, 128 // width)
            case = Case(
                width, strategy, options.clients, options.batch_size, batches, options.rounds, tuple(options.set)
            )
            tell(f"width {width}, {strategy}: {3 * case.clients} clients, {case.samples} samples a round")
            cases.append(summarised(run_case(case)))
    errors = [error for case in cases for error in case["errors"]]
    return {"cores": cores(), "cases": cases, **({"error": "; ".join(errors)} if errors else {})}


def summarised(case: Result) -> Result:
    """The case with speeds and ratios over its rounds after the first."""
    rounds = case["measured"][1:]
    seconds = {name: [each[f"{name}_s"] for each in rounds] for name in ("ours", "plain", case["best"])}
    speeds = {name: Spread.of([case["samples_per_round"] / s for s in of]).json() for name, of in seconds.items()}
    ratios = {f"ours/{name}": paired(of, seconds["ours"]).json() for name, of in seconds.items() if name != "ours"}
    return {**case, "samples_per_s": speeds, "ratios": ratios}


def render(result: Mapping[str, Any]) -> str:
    """A table of all cases, and what the trained weights say."""
    from hsee_ray.rundir.tables import align

    rows = [["width", "strategy", "samples/s", "plain loop", "limit or bound", "ours/plain", "ours/limit or bound"]]
    notes = []
    for case in result["cases"]:
        speeds, ratios, best = case["samples_per_s"], case["ratios"], case["best"]
        rows.append(
            [
                str(case["width"]),
                case["strategy"],
                *(shown(speeds[name], 0) for name in ("ours", "plain", best)),
                *(shown(ratios[f"ours/{name}"], 3) for name in ("plain", best)),
            ]
        )
        notes.append(f"width {case['width']}, {case['strategy']}: {_agreement(case['weights'], best)}")
    legend = "medians and quartiles; ratios of speeds, of rounds that follow on each other"
    return "\n".join([align(rows), legend, *notes])


def _agreement(weights: Mapping[str, Any], best: str) -> str:
    equal = "are" if weights["ours"] == weights[best] else "are NOT"
    typical, most = weights["plain_relative_difference"]["median"], weights["plain_largest_relative_difference"]
    difference = f"the plain loop's differ by {typical:.1e} of a tensor's largest value, {most:.1e} at most"
    return f"weights {weights['ours'][:12]} {equal} those of one thread without Ray; {difference}"
