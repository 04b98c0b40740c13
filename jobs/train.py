"""Train one configuration: `python -m jobs.train --config FILE`, or `hsee train --config FILE`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.options import add_config, add_in_process, add_overrides, job_parser
from jobs.outcome import exit_code

# Heavy packages are imported where they are needed: --help and a wrong key answer at once.
if TYPE_CHECKING:
    from types import FrameType

    from hsee_ray.config.schema import Config
    from hsee_ray.rundir.run import Run
    from hsee_ray.training.engine import Opened
    from hsee_ray.training.interrupt import StopRequest

DESCRIPTION = """\
Train a network over clients of unequal power (Hetero-SplitEE), on Ray.

Every client holds the units below its own cut and an exit head; a server holds the rest. The config file says who
the clients are, what they train on, and how. Every key is explained in jobs/configs/reference.yaml.
"""
EXAMPLES = """\
examples:
  python -m jobs.train --config jobs/configs/quickstart.yaml
  python -m jobs.train --config jobs/configs/quickstart.yaml --in-process
  python -m jobs.train --config jobs/configs/cifar10_cpu.yaml --set data.root=/data/cifar10 training.rounds=5
  python -m jobs.train --config my.yaml --set tiers.0.cut=layer1 --set 'data.partition={kind: dirichlet, alpha: 0.3}'

  python -m jobs.train --resume runs/my-20260101-120000 --set training.rounds=20

  ray job submit --working-dir . --submission-id NAME -- \\
    python -m jobs.train --config jobs/configs/cluster_cifar10.yaml

Ctrl-C, SIGTERM or a closed terminal: the run ends with the round, at the latest after checkpoint.grace_s, and leaves a
checkpoint from which --resume goes on; a second Ctrl-C ends it at once.

exit codes:
  0 done    1 the run failed (who, round and stage on stderr, traceback in the run directory's error.log)
  2 bad input (one line on stderr, nothing written)    129, 130, 143 interrupted by SIGHUP, SIGINT, SIGTERM
"""


def train(
    config: str | Path | Mapping[str, Any] | Config, run_dir: str | Path | None = None, in_process: bool = False
) -> Run:
    """Trains a configuration (a file, a mapping or a Config) over actors or `in_process`; returns the finished run.

    `run_dir`, a directory or a URI, is `<config name>-<date>-<time>` in the configuration's storage unless given.
    Raises UserError or RunError.
    """
    from hsee_ray.config.files import load_config
    from hsee_ray.config.schema import Config
    from hsee_ray.training.begin import run

    name = Path(config).stem if isinstance(config, str | Path) else "run"
    resolved = config if isinstance(config, Config) else load_config(config)
    return run(resolved, run_dir if run_dir is not None else new_place(resolved, name), _backend(in_process))


def _backend(in_process: bool) -> Opened:
    """Where a run is computed."""
    if in_process:
        from hsee_ray.training.in_process import in_process as opened

        return opened
    from actors.run.engine import over_actors

    return over_actors()


def new_place(config: Config, config_name: str) -> str:
    """Location of an unnamed run: a submitted job's bears its submission id."""
    from hsee_ray.process import submission_id
    from hsee_ray.rundir.location import run_place

    job = submission_id()
    return run_place(config, job or f"{config_name}-{datetime.now():%Y%m%d-%H%M%S}", submitted=job is not None)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.resume is not None and options.run_dir is not None:
        parser.error("--run-dir goes with --config: a resumed run stays in its directory")
    if options.resume is not None and options.dry_run:
        parser.error("--dry-run goes with --config; hsee show RUN says how a run stands")
    # Until the run can follow a request to stop, SIGTERM ends it through the same clean-up as an error does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return exit_code(lambda: _train_and_print(options))


def _train_and_print(options: argparse.Namespace) -> int:
    from hsee_ray.config.files import load_config

    # A wrong key is told before anything heavy is loaded.
    config = None if options.config is None else load_config(options.config, options.set)

    from hsee_ray.evaluation.advice import of_training, warnings
    from hsee_ray.rundir.tables import render_summary
    from hsee_ray.training.begin import resume, run
    from jobs.progress import show_progress

    place = options.resume
    if config is not None:
        place = new_place(config, options.config.stem) if options.run_dir is None else options.run_dir
        if options.dry_run:
            return _dry_run(config, place, options.in_process)
    stop, backend = _stop_on_signals(), _backend(options.in_process)
    with show_progress(place) as listener:
        if config is not None:
            finished = run(config, place, backend, listener, stop)
        else:
            finished = resume(place, backend, options.set, listener, stop)
    print()
    print(render_summary(finished.summary))
    print(f"weights_sha256 {finished.summary['weights_sha256']}{warnings(of_training(finished))}")
    print(f"\nwatch the curves:  {_tensorboard_command()} --logdir {place}")
    return 0


def _dry_run(config: Config, place: str, in_process: bool) -> int:
    """Says what would be trained, on what and where, after all that is checked before anything is written."""
    from hsee_ray.method.setup import prepare_run
    from hsee_ray.planning.planner import planned
    from hsee_ray.rundir.location import RunLocation
    from hsee_ray.training.begin import check_free
    from jobs.progress import IN_PROCESS, opening_lines

    check_free(RunLocation(place))
    setup = prepare_run(planned(config))
    print(opening_lines(setup, 0, place))
    if in_process:
        print(IN_PROCESS)
    else:
        from actors.cluster.connection import address_of, local_context

        address = address_of(config.cluster)
        local = "" if address else str(local_context(setup.config, setup.fleet).slot_plan)
        print(local or f"on the Ray cluster at {address}; hsee doctor --config FILE asks it for its places")
    print("dry run: nothing was trained or written")
    return 0


def _stop_on_signals() -> StopRequest:
    """A request that the first SIGINT, SIGTERM or SIGHUP makes; where the run cannot follow it, it ends at once."""
    from hsee_ray.process import stop_wait_s, submission_id
    from hsee_ray.training.interrupt import StopRequest

    # A job is killed soon after it has been asked: half of that time for the round, half for the checkpoint.
    stop = StopRequest() if submission_id() is None else StopRequest(stop_wait_s() / 2)

    def on_signal(number: int, _: FrameType | None) -> None:
        if stop.ask(number):
            print("stopping when the round is over; once more stops at once", file=sys.stderr, flush=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, on_signal)
    return stop


def _tensorboard_command() -> str:
    """`tensorboard` beside this Python where it is there (a virtual environment need not be active).

    Who reads the log of a submitted job is on another machine.
    """
    from hsee_ray.process import submission_id

    beside = Path(sys.executable).with_name("tensorboard")
    if submission_id() is not None or not beside.exists():
        return "tensorboard"
    working = Path.cwd()
    return str(beside.relative_to(working) if beside.is_relative_to(working) else beside)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("train", DESCRIPTION, EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    add_config(source)
    source.add_argument(
        "--resume",
        metavar="RUN",
        help="directory or URI of a run that ended before its time, or is to become longer",
    )
    text = "override a key of the config; the value is YAML, lists go by index (tiers.0.clients=4)"
    add_overrides(parser, text)
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="directory or URI where the run is written (default: below storage.uri, else in runs/; by the name of "
        "the job or of the config)",
    )
    add_in_process(parser)
    text = "check everything, say what would be trained and where, and end"
    parser.add_argument("--dry-run", action="store_true", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
