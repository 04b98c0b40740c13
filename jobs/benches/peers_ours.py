"""Our side of `peers`: a run of Averaging over actors that compute nothing, as a command of its own.

The driver, the aggregator and all that moves between actors are the real ones. The clients and servers are put in the
place of the real classes; their models have as few parameters as those of Flower's side.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from actors.presence import Presence, presence_here
from actors.recipe import Takes
from actors.sealed import Sealed, seal
from actors.shards import picked
from hsee_ray.fleet import EXIT
from hsee_ray.reports import TrainReport
from hsee_ray.snapshot import Snapshot
from hsee_ray.state import ModelState, UnitState
from jobs.benches.flower_app import PARAMETERS, tell, worked_s

if TYPE_CHECKING:
    from torch import nn

    from hsee_ray.config import Config
    from hsee_ray.reports import RoundReport

IMAGES = 2
"""Of each client: one batch a round, as small as it may be."""
NEVER = 1_000_000
BELOW, ABOVE = "below", "above"
"""The units of the network, on either side of the cut."""


class Measured(Exception):
    """The rounds that were asked for are over; nobody wants the models."""


class IdleActor:
    """Models with next to no parameters take turns here. numpy only: it starts at once, as Flower's clients do."""

    def __init__(self, units: tuple[str, ...], work: str) -> None:
        parameters = {"weight": np.zeros(PARAMETERS, np.float32)}
        self.initial = self.state = Snapshot({unit: UnitState(parameters, {}, {}, {}) for unit in units})
        self.work = work

    def presence(self) -> Presence:
        return presence_here("cpu")

    def recorded(self, wanted: bool) -> Sealed[Snapshot] | None:
        return seal(self.state) if wanted else None

    def load(self, takes: Takes, *averages: Sealed[ModelState], after: object = None) -> None:
        self.state = Snapshot({**self.state.units, **picked(takes, averages)})

    def restore(
        self, number: int, snapshot: Sealed[Snapshot] | None, takes: Takes, *averages: Sealed[ModelState]
    ) -> None:
        self.state = self.initial if snapshot is None else snapshot.payload
        self.load(takes, *averages)


class IdleClient(IdleActor):
    def train(
        self, round_number: int, first: int, last: int, record: bool, after: object = None
    ) -> tuple[Sealed[tuple[()]], Sealed[Snapshot] | None, TrainReport]:
        # Seconds of work take the place of the loss: reports have no other number that is added up.
        return seal(()), self.recorded(record), TrainReport(samples=IMAGES, losses=(worked_s(self.work),))


class IdleServer(IdleActor):
    def train(
        self, client: int, round_number: int, packet: Sealed[Any], record: bool, after: object = None
    ) -> tuple[Sealed[Snapshot] | None, TrainReport]:
        return self.recorded(record), TrainReport(samples=IMAGES, losses=(0.0,))


@contextmanager
def idle_actors(work: str) -> Iterator[None]:
    """In the block, Ray gets idle actors where a run wants clients and servers."""
    from actors import placement
    from actors.aggregator import Aggregator
    from actors.client import ClientActor

    create = placement._actor

    def idle(actor_class: type[Any], place: Mapping[str, Any], *args: Any, **samples: Any) -> Any:
        if actor_class is Aggregator:
            return create(actor_class, place, *args)
        # They are not given the setup: to read it, they would load torch.
        if actor_class is ClientActor:
            return create(IdleClient, place, (BELOW, EXIT), work)
        return create(IdleServer, place, (ABOVE,), work)

    with patch("actors.placement._actor", idle):
        yield


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="clients at once, and as many servers")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    options = parser.parse_args()
    from actors.driver import run
    from actors.session import Listener
    from hsee_ray.errors import RunError

    tell(versions={"python": platform.python_version(), **{name: version(name) for name in ("ray", "numpy")}})
    rounds = Rounds(options.rounds)
    listener = Listener(trained=rounds.trained, finished_round=rounds.finished)
    config = configuration(options.clients, options.slots, options.rounds)
    with idle_actors(options.work):
        try:
            run(config, options.run_dir, listener)
        except RunError as error:
            if not isinstance(error.__cause__, Measured):
                raise


class Rounds:
    """Tells of every round, and ends the run after the last one."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.first_call_s: float | None = None

    def trained(self, samples: int) -> None:
        """Told when a piece of work is done, which is a little later than the call that Flower's side notes."""
        if self.first_call_s is None:
            self.first_call_s = time.monotonic()

    def finished(self, report: RoundReport) -> None:
        end_s = time.monotonic()
        tell(
            number=report.round_number,
            first_call_s=self.first_call_s or end_s,
            end_s=end_s,
            clients=len(report.client_training),
            work_s=sum(sum(each.losses) for each in report.client_training.values()),
        )
        self.first_call_s = None
        if report.round_number == self.last:
            raise Measured


def configuration(clients: int, slots: int, rounds: int) -> Config:
    """One tier of clients with one small batch each; no test images in any round that is measured."""
    from hsee_ray.config import Config

    return Config.model_validate(
        {
            "model": {"name": f"{__name__}:two_units"},
            "data": {
                "name": "synthetic",
                "train_samples": IMAGES * clients,
                "test_samples": IMAGES,
                "image_size": 4,
                "channels": 1,
                "calibration_fraction": 0,
            },
            "tiers": [{"name": "client", "clients": clients, "cut": 1, "seats": slots}],
            "server": {"seats": slots},
            # The last round has an evaluation, so it is one that the run does not come to.
            "training": {"strategy": "averaging", "rounds": rounds + 1, "batch_size": IMAGES},
            "evaluation": {"every": NEVER},
            "checkpoint": {"every": NEVER},
            "cluster": {"concurrent": slots},
        }
    )


def two_units(image_shape: tuple[int, int, int], n_classes: int) -> list[tuple[str, nn.Module]]:
    """The smallest network that can be cut; only its names and shapes are used."""
    from torch import nn

    height, width, channels = image_shape
    below = nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, PARAMETERS))
    return [(BELOW, below), (ABOVE, nn.Linear(PARAMETERS, n_classes))]


if __name__ == "__main__":
    # Not this module's own classes: what lives in `__main__` is pickled by value.
    from jobs.benches.peers_ours import main as run_ours

    run_ours()
