"""`python -m jobs.train` that says `started` and `trained` on lines of their own; the arguments are the job's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from jobs.train import main

if TYPE_CHECKING:
    from hsee_ray.training.listener import Listener


@contextmanager
def first_lines(place: str) -> Iterator[Listener]:
    """A listener in the place of the job's progress: says when the driver is ready, and when the first work is done."""
    from hsee_ray.training.listener import Listener

    said = False

    def trained(samples: int) -> None:
        nonlocal said
        if not said:
            said = True
            print("trained", flush=True)

    yield Listener(started=lambda setup, done_rounds: print("started", flush=True), trained=trained)


if __name__ == "__main__":
    with patch("jobs.progress.show_progress", first_lines):
        sys.exit(main())
