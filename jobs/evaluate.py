"""`python -m jobs.evaluate --run RUN_DIR`: a trained run's exits on the real path, also as `hsee evaluate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from jobs.options import add_in_process, add_overrides, add_run
from jobs.outcome import exit_code

if TYPE_CHECKING:
    from hsee_ray.evaluation.exits import Exits
    from hsee_ray.rundir.run import Run

DESCRIPTION = """Run the exits of a finished run as they would run on devices: a client answers what it is sure of, only
the other samples are sent, and only those are computed by the server. Every threshold of the grid is a run of its own,
and so are the two ends, everything local and everything sent. Writes tables, figures and TensorBoard into the run's
directory, below evaluation/."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 done, 1 the evaluation failed, 2 bad input."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> int:
    from hsee_ray.errors import ConfigError
    from hsee_ray.evaluation.calibration import calibration_of, parse_target
    from hsee_ray.rundir.run import load_run

    run = load_run(options.run)
    target = None if options.target is None else parse_target(options.target)
    if any(not 0 <= tau <= 1 for tau in options.taus or ()):
        raise ConfigError(f"--taus {' '.join(map(str, options.taus))}: a tau lies in [0, 1]")

    from hsee_ray.evaluation.advice import of_evaluation, warnings
    from hsee_ray.evaluation.evaluate import Plan, calibrate, evaluate
    from hsee_ray.evaluation.plots import draw, save_figures
    from hsee_ray.evaluation.report import EVALUATION_DIR, write_evaluation
    from hsee_ray.evaluation.tables import render_calibration, render_evaluation

    with trained_exits(run, options) as exits:
        calibration = calibration_of(run)
        confidence = options.confidence or (calibration or run.config.exits).confidence
        if calibration is not None and calibration.confidence != confidence:
            calibration = None
        if target is not None and (calibration is None or calibration.target != str(target)):
            calibration = calibrate(exits, run, target, confidence)
            print(f"{target}, by {confidence}\n\n{render_calibration(calibration)}\n", flush=True)
        taus = tuple(sorted(set(options.taus or exits.setup.config.exits.taus)))
        plan = Plan(options.split, taus, confidence, calibration)
        found, answers = evaluate(exits, run, plan, lambda gate: print(f"answering: {gate}", flush=True))
    directory = run.path / EVALUATION_DIR
    write_evaluation(directory, found)
    save_figures(directory, options.split, draw(found, answers, exits.setup.files.class_names))
    print(f"\n{render_evaluation(found)}{warnings(of_evaluation(found))}\n\ntables and figures: {directory}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hsee evaluate", description=DESCRIPTION)
    add_run(parser)
    gate = parser.add_mutually_exclusive_group()
    gate.add_argument("--taus", type=float, nargs="+", metavar="TAU", help="thresholds to try (default: the run's own)")
    gate.add_argument(
        "--target", help="also try the gates that meet a target, such as 'offload<=0.3' (default: the calibrated ones)"
    )
    parser.add_argument("--split", choices=("test", "calibration"), default="test", help="which images (default: test)")
    add_common(parser)
    return parser


def trained_exits(run: Run, options: argparse.Namespace) -> AbstractContextManager[Exits]:
    """The models of a finished run for the length of a block: over actors, or in this process."""
    if options.in_process:
        from hsee_ray.evaluation.exits import ExitsHere

        return nullcontext(ExitsHere(run, options.set))
    from actors.inference.trained import trained_actors

    return trained_actors(run, options.set, lambda event: print(event, flush=True))


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every job that asks a trained run's exits."""
    kinds = ("entropy", "max_prob", "margin")
    parser.add_argument("--confidence", choices=kinds, help="default: the config's; evaluate: the calibrated")
    text = "where the run computes and where its data lies, such as data.root=DIR or cluster.address=auto"
    add_overrides(parser, text)
    add_in_process(parser)


if __name__ == "__main__":
    sys.exit(main())
