"""`python -m jobs.runs [DIR]`: the runs in a directory, finished or not, also as `hsee runs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.options import job_parser, user_path
from jobs.outcome import exit_code

DESCRIPTION = """List the runs in a directory, the newest first: whether each has finished, trains now, has failed or
was stopped, after how many of its rounds, and what it has reached. `hsee show RUN` prints one of them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 listed, 2 there is no such directory, or a run in it is damaged."""
    parser = job_parser("runs", DESCRIPTION)
    parser.add_argument("directory", nargs="?", type=user_path, default=Path("runs"), help="default: runs")
    options = parser.parse_args(argv)
    return exit_code(lambda: _list(options.directory))


def _list(directory: Path) -> int:
    from hsee_ray.rundir.listing import listed_runs
    from hsee_ray.rundir.tables import NONE, align, percent

    runs, damaged = listed_runs(directory)
    if not runs and not damaged:
        print(f"no runs in {directory}")
        return 0
    rows = [["run", "state", "rounds", "strategy", "client accuracy", "server accuracy", "last change", "weights"]]
    for run in runs:
        training = run.config.training
        overall = {} if run.summary is None else run.summary["overall"]
        rows.append(
            [
                run.path.name,
                run.state,
                f"{run.done}/{training.rounds}",
                str(training.strategy),
                percent(overall.get("client_accuracy")),
                percent(overall.get("server_accuracy")),
                f"{run.changed:%Y-%m-%d %H:%M}",
                NONE if run.summary is None else run.summary["weights_sha256"][:12],
            ]
        )
    print(align(rows))
    for error in damaged:
        print(f"error: {error}", file=sys.stderr)
    return 2 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
