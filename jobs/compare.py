"""`python -m jobs.compare RUN...`: finished runs side by side, also as `hsee compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.options import user_path
from jobs.outcome import exit_code


def main(argv: list[str] | None = None) -> int:
    """Prints the comparison table; returns 0, or 2 when a directory is no finished run."""
    parser = argparse.ArgumentParser(
        prog="hsee compare",
        description="Print accuracies, speed and weights of finished runs side by side. "
        "Runs of equal weights show the same digits under `weights`.",
    )
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="directory of a finished run")
    arguments = parser.parse_args(argv)

    return exit_code(lambda: _compare(arguments.runs))


def _compare(paths: list[Path]) -> int:
    # After the arguments are known to be right, so that --help does not wait for these imports.
    from hsee_ray.rundir.run import load_run
    from hsee_ray.rundir.tables import render_comparison

    print(render_comparison([load_run(path) for path in paths]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
