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

from actors.workers.contract import AverageRefs, LoadAverages, Objects, Restore, RunLeg, WorkerRequest, select
from hsee_ray.config.fleet import EXIT
from hsee_ray.method.reports import TrainReport
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import UnitState
from jobs.benches.common import NEVER
from jobs.benches.idle_actors import IdleActor, idle_factory
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


class SmallModel(IdleActor):
    """Models with next to no parameters. numpy only: it starts at once, as Flower's clients do."""

    def __init__(self, units: tuple[str, ...], work: str) -> None:
        parameters = {"weight": np.zeros(PARAMETERS, np.float32)}
        self.initial = self.snapshot = Snapshot({unit: UnitState(parameters, {}, {}, {}) for unit in units})
        self.work = work

    def restore(self, state: Restore, objects: Objects) -> None:
        self.snapshot = self.initial if state.snapshot is None else objects[state.snapshot].payload
        self.load(state.averages, objects)

    def load(self, averages: AverageRefs, objects: Objects) -> None:
        self.snapshot = Snapshot({**self.snapshot.units, **select(averages, objects)})

    def answer(self, request: WorkerRequest, objects: Objects) -> tuple[Any, ...]:
        if isinstance(request, LoadAverages):
            self.load(request.averages, objects)
        return super().answer(request, objects)

    def state(self) -> Snapshot:
        return self.snapshot

    def leg(self, request: RunLeg, payload: Any) -> tuple[Any, TrainReport]:
        if request.leg.side == "server":
            return None, TrainReport(samples=IMAGES, losses=(0.0,))
        # Seconds of work take the place of the loss: reports have no other number that is added up.
        return (), TrainReport(samples=IMAGES, losses=(worked_s(self.work),))


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
    run_rounds(config, options.run_dir, finished, idle_factory(SmallModel, SmallModel, client_args, server_args))


def finished(report: RoundReport, first_done_s: float) -> None:
    """Tells of a round. Work is done a little later than the call that Flower's side notes."""
    tell(
        number=report.round_number,
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
