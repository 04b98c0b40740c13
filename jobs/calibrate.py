"""`python -m jobs.calibrate --run RUN_DIR --target T`: how sure an exit must be, also as `hsee calibrate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.evaluate import add_common, trained_exits
from jobs.options import add_run, job_parser
from jobs.outcome import exit_code

DESCRIPTION = """Pick the threshold of every tier's exits on the samples that the clients have set aside, never on the
test images: the temperature that makes their probabilities honest, and the tau that meets a target at the least cost.
Both are stored with the run; evaluate and export use them."""
EXAMPLES = """targets:
  'offload<=0.3'         send at most 30 % of the samples
  'accuracy_drop<=0.01'  lose at most one point against sending everything; below 0 asks for a gain"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 stored, 1 the calibration failed, 2 bad input or a target that cannot be met."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _calibrate(options))


def _calibrate(options: argparse.Namespace) -> int:
    from hsee_ray.evaluation.calibration import CALIBRATION_FILE, parse_target, save_calibration
    from hsee_ray.rundir.run import load_run

    run = load_run(options.run)
    target = parse_target(options.target)

    from hsee_ray.evaluation.advice import of_calibration, warnings
    from hsee_ray.evaluation.evaluate import calibrate
    from hsee_ray.evaluation.tables import render_calibration

    confidence = options.confidence or run.config.exits.confidence
    with trained_exits(run, options) as exits:
        found = calibrate(exits, run, target, confidence)
    save_calibration(run.path, found)
    print(f"{target}, by {confidence}\n\n{render_calibration(found)}{warnings(of_calibration(found))}")
    print(f"\nstored in {run.path / CALIBRATION_FILE}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("calibrate", DESCRIPTION, EXAMPLES)
    add_run(parser)
    parser.add_argument("--target", required=True, metavar="T", help="what the gates may cost, in quotes")
    add_common(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
