"""Callbacks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup
from hsee_ray.simulation.prediction import RoundCost


@dataclass(frozen=True)
class Event:
    """Something that a person who watches the run wants to know."""

    round_number: int
    stage: str
    who: str
    text: str
    is_back: bool = False
    """Whether a replaced actor has given its first answer."""

    def __str__(self) -> str:
        return f"[round {self.round_number}] {self.who} ({self.stage}): {self.text}"


@dataclass(frozen=True)
class Listener:
    """Callbacks of a run; each does nothing by default."""

    assembled: Callable[[Any], None] = lambda team: None
    """Called with the Team of a run over actors when they have been requested."""
    started: Callable[[Setup, int], None] = lambda setup, done_rounds: None
    """Called with the setup and the number of finished rounds when training starts."""
    trained: Callable[[int], None] = lambda samples: None
    """Called with the samples of every finished piece of training."""
    finished_round: Callable[[RoundReport, RoundCost | None], None] = lambda report, cost: None
    """Called with every finished round, and its simulated cost where devices are known."""
    entered: Callable[[int, str], None] = lambda round_number, stage: None
    """Called with the round number and the stage at every stage."""
    happened: Callable[[Event], None] = lambda event: None
    """Called with failures and what was done about them."""


SILENT = Listener()
