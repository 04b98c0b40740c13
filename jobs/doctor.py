"""`python -m jobs.doctor --config FILE`: can a cluster give a run what it asks for? Also as `hsee doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.options import add_config, add_overrides, job_parser, user_path
from jobs.outcome import exit_code

DESCRIPTION = """Hold a configuration against the cluster that it names (cluster.address, or $RAY_ADDRESS), in seconds:
what each tier asks for, whether it fits now, waits for nodes that the autoscaler can add, or can never fit, and what to
change then. Also: the same versions on all nodes, a storage that all of them can reach, shared memory, authentication.
Without a cluster, --cluster-yaml alone is judged. Every run does the same when it starts."""
EPILOG = """exit codes:
  0 it fits, or waits for nodes that can come    2 it can never fit, or a check is bad"""
MARKS = {"well": "ok", "slow": "warning", "bad": "BAD"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _diagnose_and_print(options))


def _diagnose_and_print(options: argparse.Namespace) -> int:
    from hsee_ray.config.files import load_config

    config = load_config(options.config, options.set)

    from actors.cluster.doctor import diagnose
    from hsee_ray.rundir.tables import align

    found = diagnose(config, options.cluster_yaml)
    print(f"{options.config} on {found.where}\n{found.has}\n")
    rows = [[v.tier, str(v.actors), v.asks, str(v) if v.never is None else "can never fit"] for v in found.verdicts]
    print(align([["tier", "actors", "each asks for", "verdict"], *rows]))
    print()
    for verdict in found.verdicts:
        if verdict.never is not None:
            print(f"{MARKS['bad']:<8} {verdict.tier}: {verdict.never}")
    for check in found.checks:
        print(f"{MARKS[check.finding]:<8} {check.what}: {check.text}")
    if found.hopeless:
        print("error: this run cannot go well there; what to change stands above", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("doctor", DESCRIPTION, EPILOG)
    add_config(parser, required=True)
    parser.add_argument(
        "--cluster-yaml",
        type=user_path,
        metavar="FILE",
        help="what the autoscaler can add: cluster.yaml of `ray up`, or a KubeRay RayJob (default: cluster.node_types)",
    )
    add_overrides(parser, "override a key of the config, such as cluster.address=auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())
