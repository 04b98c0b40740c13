"""`python -m jobs.show RUN`: one run, finished or not, also as `hsee show`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.options import job_parser, user_path
from jobs.outcome import exit_code

if TYPE_CHECKING:
    from hsee_ray.rundir.listing import Listed
    from hsee_ray.rundir.run import Run

DESCRIPTION = """Print one run: how it stands, what it was trained on and with, what its tiers have reached, and what it
has been calibrated to. Of a run that has not finished: why, and how to go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 shown, 2 there is no run."""
    parser = job_parser("show", DESCRIPTION)
    parser.add_argument("run", type=user_path, metavar="RUN", help="directory of a run")
    options = parser.parse_args(argv)
    return exit_code(lambda: _show(options.run))


def _show(path: Path) -> int:
    from hsee_ray.evaluation.advice import of_training, warnings
    from hsee_ray.rundir.listing import listed
    from hsee_ray.rundir.run import load_run
    from hsee_ray.rundir.tables import render_summary

    run = listed(path)
    print("\n".join(_head(run)))
    if run.summary is not None:
        finished = load_run(path)
        table, advice = render_summary(run.summary), warnings(of_training(finished))
        print(f"\n{table}\nweights_sha256 {run.summary['weights_sha256']}{advice}")
        print(_calibrated(finished), end="")
    return 0


def _head(run: Listed) -> list[str]:
    training, data = run.config.training, run.config.data
    lines = [
        f"{run.path}: {run.state}, {run.done} of {training.rounds} rounds, last change {run.changed:%Y-%m-%d %H:%M}"
    ]
    tiers = ", ".join(f"{tier.clients} {tier.name} (cut {tier.cut})" for tier in run.config.tiers)
    where = "" if data.root is None else f" in {data.root}"
    lines.append(f"{training.strategy} over {tiers}, seed {run.config.seed}; data: {data.name}{where}")
    if run.summary is None:
        if run.error is not None and not run.trains:
            lines.append(f"error: {run.error} (error.log)")
        if not run.trains:
            lines.append(f"go on with: hsee train --resume {run.path}")
        return lines
    summary = run.summary
    lines.append(f"took {summary['wall_s']:,.0f} s, {summary['samples_per_s']:,.0f} training samples/s")
    environment = summary["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "ray") if name in environment)
    lines.append(f"with {versions}; {environment['cores']} cores, {environment['cpu_model'] or environment['machine']}")
    if summary["failures"]:
        failed = ", ".join(f"{who} {count}" for who, count in summary["failures"].items())
        lines.append(f"replaced actors: {failed}")
    return lines


def _calibrated(run: Run) -> str:
    """What the run is calibrated to, with what should be known about it; nothing where it is not."""
    from hsee_ray.evaluation.advice import of_calibration, warnings
    from hsee_ray.evaluation.calibration import calibration_of
    from hsee_ray.evaluation.tables import render_calibration

    found = calibration_of(run)
    if found is None:
        return ""
    table = render_calibration(found)
    return f"\ncalibrated to {found.target}, by {found.confidence}\n\n{table}{warnings(of_calibration(found))}\n"


if __name__ == "__main__":
    sys.exit(main())
