"""Who is told how a run goes, and of what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from actors.run.team import Team
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
    """Who wants to know how a run goes."""

    assembled: Callable[[Team], None] = lambda team: None
    """Told of the actors when their creation has been asked for."""
    started: Callable[[Setup, int], None] = lambda setup, done_rounds: None
    """Told of the run, and how many of its rounds are done already."""
    trained: Callable[[int], None] = lambda samples: None
    """Told how many more samples have been trained on."""
    finished_round: Callable[[RoundReport, RoundCost | None], None] = lambda report, cost: None
    """Told of every whole round, and what it cost in simulated time where devices are known."""
    entered: Callable[[int, str], None] = lambda round_number, stage: None
    """Told of every stage that a round comes to."""
    happened: Callable[[Event], None] = lambda event: None
    """Told of failures and of what was done about them."""


SILENT = Listener()
