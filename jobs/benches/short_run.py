"""A run that ends after some rounds of its own accord, before the last one, which evaluates and saves models."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.workers.contract import ActorFactory
    from hsee_ray.config.schema import Config
    from hsee_ray.method.reports import RoundReport


class Measured(Exception):
    """The rounds that were asked for are over; nobody wants the models."""


def run_rounds(
    config: Config, run_dir: Path, finished: Callable[[RoundReport, float], None], create: ActorFactory | None = None
) -> None:
    """Trains all rounds of a configuration but its last one.

    `finished` is told of every round, and when its first piece of work was done, on the clock of `time.monotonic`.
    """
    from actors.run.driver import run
    from actors.run.team import create_actor
    from hsee_ray.errors import RunError
    from hsee_ray.training.listener import Listener

    first_done_s: float | None = None

    def trained(samples: int) -> None:
        nonlocal first_done_s
        first_done_s = first_done_s or time.monotonic()

    def finished_round(report: RoundReport, cost: object) -> None:
        nonlocal first_done_s
        finished(report, first_done_s or time.monotonic())
        first_done_s = None
        if report.round_number == config.training.rounds - 1:
            raise Measured

    try:
        listener = Listener(trained=trained, finished_round=finished_round)
        run(config, run_dir, listener, create=create or create_actor)
    except RunError as error:
        if not isinstance(error.__cause__, Measured):
            raise
