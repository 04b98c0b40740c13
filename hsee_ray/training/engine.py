"""What a run needs of whatever computes it: this process (`in_process.py`), or actors (actors/run/engine.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup
from hsee_ray.rundir.checkpoint import Manifest, Progress
from hsee_ray.rundir.failures import Failure, History
from hsee_ray.rundir.location import RunLocation
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Listener

Resumed = tuple[Manifest, Progress] | None
"""A checkpoint that a run is taken up from; None is its beginning."""
Tell = Callable[[str, str], None]
"""Takes who something is about, and what."""


class StateLost(Exception):
    """A state that is needed went with a node: the run goes back to the newest one that still exists."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(frozen=True)
class RunContext:
    """What an engine is made for."""

    setup: Setup
    location: RunLocation
    listener: Listener
    stop: StopRequest
    history: History
    """Failures that counted, over all sessions of the run."""
    worked: Callable[[str, str, str, int, float, float], None]
    """Takes what was computed: its row in the timeline, the model, stage, round, begin and end in seconds of
    `time.monotonic`."""


class Engine(Protocol):
    """Computes the rounds of one run, and writes and reads what has tensors in it."""

    @property
    def whole_round(self) -> int:
        """The last whole round."""

    def run_round(self, round_number: int) -> RoundReport:
        """Trains one round. Raises RunError, StateLost, and GraceOver."""

    def take_up(self, found: Resumed, again: bool) -> None:
        """Goes to the state of a checkpoint, or to the beginning. `again`: the models have left their first state."""

    def save_checkpoint(self, progress: Progress, spread: bool = True, after_failure: bool = False) -> None:
        """Writes the last whole round down, if it is not. `spread`: by all actors; else by the one that depends on
        nothing, which is replaced `after_failure`."""

    def save_models(self) -> list[str]:
        """Writes the final model files; their digest lines."""

    def close(self) -> None:
        """Gives back what outlives the run."""


class Backend(Protocol):
    """Where engines compute."""

    def check(self, setup: Setup, location: RunLocation, tell: Tell) -> None:
        """Raises UserError, before anything is written, where the run cannot be computed."""

    def engine(self, context: RunContext) -> Engine:
        """The engine of a run."""


Opened = Callable[[Setup, Tell], AbstractContextManager[Backend]]
"""Opens a backend for a run, for the length of a block. Raises ResourceError where it can never hold it."""
