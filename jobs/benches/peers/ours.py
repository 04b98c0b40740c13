"""Our side of `peers`: a run of Averaging over actors that compute nothing, as a command of its own.

The driver, the aggregator and all that moves between actors are the real ones. The clients and servers are put in the
place of the real classes; their models have as few parameters as those of Flower's side.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.workers.actor_location import ActorLocation, location_here
from actors.workers.contract import Takes
from actors.workers.shards import picked
from actors.workers.store_resident import StoreResident, store_resident
from actors.workers.turns import TakesTurns
from hsee_ray.config.fleet import EXIT
from hsee_ray.method.reports import TrainReport
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import ModelState, UnitState
from jobs.benches.common import NEVER
from jobs.benches.idle_actors import idle_actors
from jobs.benches.peers.flower_app import PARAMETERS, tell, worked_s
from jobs.benches.short_run import run_rounds

if TYPE_CHECKING:
    from torch import nn

    from hsee_ray.config.schema import Config
    from hsee_ray.method.reports import RoundReport

IMAGES = 2
"""Of each client: one batch a round, as small as it may be."""
BELOW, ABOVE = "below", "above"
"""The units of the network, on either side of the cut."""


class IdleActor(TakesTurns):
    """Models with next to no parameters take turns here. numpy only: it starts at once, as Flower's clients do."""

    def __init__(self, units: tuple[str, ...], work: str) -> None:
        parameters = {"weight": np.zeros(PARAMETERS, np.float32)}
        self.initial = self.state = Snapshot({unit: UnitState(parameters, {}, {}, {}) for unit in units})
        self.work = work

    def location(self) -> ActorLocation:
        return location_here("cpu")

    def recorded(self, wanted: bool) -> StoreResident[Snapshot] | None:
        return store_resident(self.state) if wanted else None

    def load(self, takes: Takes, *averages: StoreResident[ModelState], after: object = None) -> None:
        self.state = Snapshot({**self.state.units, **picked(takes, averages)})

    def restore(
        self,
        client_id: int,
        snapshot: StoreResident[Snapshot] | None,
        takes: Takes,
        *averages: StoreResident[ModelState],
        **data: Any,
    ) -> None:
        self.state = self.initial if snapshot is None else snapshot.payload
        self.load(takes, *averages)


class IdleClient(IdleActor):
    def train(
        self, round_number: int, first: int, last: int, record: bool, after: object = None
    ) -> tuple[StoreResident[tuple[()]], StoreResident[Snapshot] | None, TrainReport]:
        # Seconds of work take the place of the loss: reports have no other number that is added up.
        return store_resident(()), self.recorded(record), TrainReport(samples=IMAGES, losses=(worked_s(self.work),))


class IdleServer(IdleActor):
    def train(
        self, client: int, round_number: int, packet: StoreResident[Any], record: bool, after: object = None
    ) -> tuple[StoreResident[Snapshot] | None, TrainReport]:
        return self.recorded(record), TrainReport(samples=IMAGES, losses=(0.0,))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="clients at once, and as many servers")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    options = parser.parse_args()
    tell(versions={"python": platform.python_version(), **{name: version(name) for name in ("ray", "numpy")}})
    config = configuration(options.clients, options.slots, options.rounds)
    client_args, server_args = ((BELOW, EXIT), options.work), ((ABOVE,), options.work)
    with idle_actors(IdleClient, IdleServer, client_args, server_args):
        run_rounds(config, options.run_dir, finished)


def finished(report: RoundReport, first_done_s: float) -> None:
    """Tells of a round. Work is done a little later than the call that Flower's side notes."""
    tell(
        client_id=report.round_number,
        first_call_s=first_done_s,
        end_s=time.monotonic(),
        clients=len(report.client_training),
        work_s=sum(sum(each.losses) for each in report.client_training.values()),
    )


def configuration(clients: int, slots: int, rounds: int) -> Config:
    """One tier of clients with one small batch each; no test images in any round that is measured."""
    from hsee_ray.config.schema import Config

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
            "tiers": [{"name": "client", "clients": clients, "cut": 1, "slots": slots}],
            "server": {"slots": slots},
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
    from jobs.benches.peers.ours import main as run_ours

    run_ours()
