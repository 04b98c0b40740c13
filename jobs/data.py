"""Look at the images of a configuration before training: `python -m jobs.data --config FILE`, or `hsee data`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.options import add_config, add_overrides, check_writable, job_parser, user_path
from jobs.outcome import exit_code

if TYPE_CHECKING:
    from hsee_ray.method.setup import Setup

DESCRIPTION = """\
Look at the images that a configuration trains on, without training: images per class and client, what was converted
and how, what was ignored and why, classes without images, images that occur twice. A run says the same when it starts,
without the table.
"""
EPILOG = """\
exit codes:
  0 the images can be trained on    2 they cannot, or the configuration is wrong (one line on stderr)"""
MOST_CLIENTS = 12
"""Clients with a column each; with more of them, the table has a column for each tier."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _look_and_print(options))


def _look_and_print(options: argparse.Namespace) -> int:
    from hsee_ray.config.files import load_config

    config = load_config(options.config, options.set)
    check_writable(sheet=options.sheet)

    from hsee_ray.method.look import look
    from hsee_ray.method.setup import prepare_run
    from hsee_ray.planning.planner import planned
    from hsee_ray.rundir.tables import align

    setup = prepare_run(planned(config))
    print("\n".join(look(setup)))
    print(f"\n{align(_table(setup))}")
    if options.sheet is not None:
        from hsee_ray.evaluation.contact_sheet import MOST_CLASSES, write_contact_sheet

        write_contact_sheet(setup, options.sheet)
        first = f", the first {MOST_CLASSES} classes" if setup.n_classes > MOST_CLASSES else ""
        print(f"\ncontact sheet: {options.sheet}{first}")
    return 0


def _table(setup: Setup) -> list[list[str]]:
    """Images of each class: of training, of test, and of each client or tier."""
    from hsee_ray.method.look import test_counts

    clients = setup.fleet.clients
    if setup.strategy.on_server:
        columns = {"the server": [0]}
    elif len(clients) <= MOST_CLIENTS:
        columns = {f"{client.tier} {client.client_id}": [client.client_id] for client in clients}
    else:
        columns = {tier: [c.client_id for c in clients if c.tier == tier] for tier in setup.fleet.tiers}
    counts = [setup.class_counts.sum(axis=0), test_counts(setup)]
    counts += [setup.class_counts[numbers].sum(axis=0) for numbers in columns.values()]
    rows = [[name, *(f"{count[k]:,}" for count in counts)] for k, name in enumerate(setup.files.class_names)]
    total = ["all", *(f"{count.sum():,}" for count in counts)]
    return [["class", "training", "test", *columns], *rows, total]


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("data", DESCRIPTION, EPILOG)
    add_config(parser, required=True)
    parser.add_argument(
        "--sheet", type=user_path, metavar="FILE", help="a PNG with images of each class, as read and as augmented"
    )
    add_overrides(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
