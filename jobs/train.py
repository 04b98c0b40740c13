"""Train one configuration: `python -m jobs.train --config FILE`, or `hsee train --config FILE`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.outcome import exit_code

# Heavy packages are imported where they are needed: --help and a wrong key answer at once.
if TYPE_CHECKING:
    from types import FrameType

    from actors.interrupt import StopRequest
    from hsee_ray.config import Config
    from hsee_ray.run import Run

DESCRIPTION = """\
Train a network over clients of unequal power (Hetero-SplitEE), on Ray.

Every client holds the units below its own cut and an exit head; a server holds the rest. The config file says who
the clients are, what they train on, and how. Every key is explained in jobs/configs/reference.yaml.
"""
EXAMPLES = """\
examples:
  python -m jobs.train --config jobs/configs/quickstart.yaml
  python -m jobs.train --config jobs/configs/cifar10_cpu.yaml --set data.root=/data/cifar10 training.rounds=5
  python -m jobs.train --config my.yaml --set tiers.0.cut=layer1 --set 'data.partition={kind: dirichlet, alpha: 0.3}'

  python -m jobs.train --resume runs/my-20260101-120000 --set training.rounds=20

Ctrl-C or SIGTERM: the run ends with the round, at the latest after checkpoint.grace_s, and leaves a checkpoint from
which --resume goes on; a second Ctrl-C ends it at once.

exit codes:
  0 done    1 the run failed (who, round and stage on stderr, traceback in the run directory's error.log)
  2 bad input (one line on stderr, nothing written)    130, 143 interrupted by SIGINT, SIGTERM
"""


def train(config: str | Path | Mapping[str, Any] | Config, run_dir: str | Path | None = None) -> Run:
    """Trains a configuration (a file, a mapping or a Config) and returns the finished run.

    `run_dir` is `runs/<config name>-<date>-<time>` unless given. Raises UserError or RunError.
    """
    from actors.driver import run
    from hsee_ray.config import Config
    from hsee_ray.config_files import load_config

    name = Path(config).stem if isinstance(config, str | Path) else "run"
    resolved = config if isinstance(config, Config) else load_config(config)
    return run(resolved, Path(run_dir) if run_dir is not None else default_run_dir(name))


def default_run_dir(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.resume is not None and options.run_dir is not None:
        parser.error("--run-dir goes with --config: a resumed run stays in its directory")
    # Until the run can follow a request to stop, SIGTERM ends it through the same clean-up as an error does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return exit_code(lambda: _train_and_print(options))


def _train_and_print(options: argparse.Namespace) -> int:
    from hsee_ray.config_files import load_config
    from hsee_ray.run import load_begun

    if options.resume is None:
        config = load_config(options.config, options.set)
        run_dir = options.run_dir or default_run_dir(Path(options.config).stem)
    else:
        run_dir = options.resume
        config = load_begun(run_dir, options.set)

    from actors.driver import resume, run
    from hsee_ray.tables import render_summary
    from jobs.progress import show_progress

    stop = _stop_on_signals()
    with show_progress(config, run_dir) as listener:
        if options.resume is None:
            finished = run(config, run_dir, listener, stop)
        else:
            finished = resume(run_dir, options.set, listener, stop)
    print()
    print(render_summary(finished.summary))
    print(f"weights_sha256 {finished.summary['weights_sha256']}")
    print(f"\nwatch the curves:  {_tensorboard_command()} --logdir {run_dir}")
    return 0


def _stop_on_signals() -> StopRequest:
    """A request that the first SIGINT or SIGTERM makes; where the run cannot follow it, it ends at once."""
    from actors.interrupt import StopRequest

    stop = StopRequest()

    def on_signal(number: int, _: FrameType | None) -> None:
        if stop.ask(number):
            print("stopping when the round is over; once more stops at once", file=sys.stderr, flush=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


def _tensorboard_command() -> str:
    """`tensorboard` beside this Python where it is there (a virtual environment need not be active)."""
    beside = Path(sys.executable).with_name("tensorboard")
    if not beside.exists():
        return "tensorboard"
    working = Path.cwd()
    return str(beside.relative_to(working) if beside.is_relative_to(working) else beside)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hsee train",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, metavar="FILE", help="YAML file; see jobs/configs/")
    source.add_argument(
        "--resume", type=Path, metavar="RUN_DIR", help="continue a run that ended before its time, or make it longer"
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="a.b.c=value",
        help="override a key of the config; the value is YAML, lists go by index (tiers.0.clients=4)",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="where the run is written (default: runs/<config name>-<date>-<time>)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
