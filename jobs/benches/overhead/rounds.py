"""Rounds of the real driver over idle actors, several runs side by side on one Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.cluster.connection import connected, local_context
from actors.run.engine import ActorEngine
from actors.run.rounds import Rounds
from actors.run.team import create_actor
from actors.workers.contract import ActorFactory
from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config
from hsee_ray.errors import RunError
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.rundir.failures import History
from hsee_ray.rundir.location import RunLocation
from hsee_ray.training.engine import RunContext
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import Listener
from jobs.benches.common import NEVER, tell
from jobs.benches.idle_actors import IdleClient, IdleServer, idle_factory

BATCH_SIZE = 2


def wall_times_s(
    clients: Sequence[int], kib: Sequence[int], batches: int, rounds: int, overrides: Sequence[str]
) -> dict[tuple[int, int], list[float]]:
    """Seconds of every round by (KiB of a batch's features, clients)."""
    times_s: dict[tuple[int, int], list[float]] = {(size, n): [] for size in kib for n in clients}
    with TemporaryDirectory() as directory, ExitStack() as stack:
        place = Path(directory)
        setups = {n: prepare_run(_config(n, batches, place / "cache", overrides)) for n in clients}
        stack.enter_context(connected(setups[clients[0]].config.cluster, [], _trouble))
        sizes = tuple(size * 1024 for size in kib)
        create = idle_factory(IdleClient, IdleServer, (sizes,))
        runs = {n: begin(setup, place / f"run-{n}", stack, create) for n, setup in setups.items()}
        for turn in range(rounds):
            tell(f"round {turn + 1} of {rounds}")
            for index, size in enumerate(kib):
                for n, run in runs.items():
                    run.setup = _with_features(setups[n], size * 1024)
                    # Idle clients know the size of a round's features by its number.
                    report = run.run_round((turn + 1) * len(kib) + index)
                    times_s[size, n].append(report.wall_s)
    return times_s


def _config(clients: int, batches: int, cache: Path, overrides: Sequence[str]) -> Config:
    nothing = {"num_cpus": 0}  # Ray starts workers ahead, as many as there are logical CPUs
    return load_config(
        {
            "model": {"width": 1},
            "data": {
                "name": "synthetic",
                "cache": str(cache),
                "train_samples": BATCH_SIZE * clients,
                "test_samples": 2,
                "image_size": 8,
                "classes": 2,
                "calibration_fraction": 0.0,
            },
            # A slot for every model: as real actors, most of them would not fit in memory.
            "tiers": [{"name": "idle", "clients": clients, "slots": clients, "cut": "layer1", "resources": nothing}],
            "server": {"slots": clients, "resources": nothing},
            "training": {
                "strategy": "distributed",
                "rounds": NEVER,
                "local_steps": batches,
                "batch_size": BATCH_SIZE,
            },
            "evaluation": {"every": NEVER},
            "failures": {"max_per_actor": 0},
        },
        overrides,
    )


def begin(setup: Setup, place: Path, stack: ExitStack, create: ActorFactory = create_actor) -> Rounds:
    """A run's rounds, its actors asked for."""
    listener = Listener(happened=lambda event: tell(f"  {event}"))
    context = local_context(setup.config, setup.fleet)
    run = RunContext(setup, RunLocation(place), listener, StopRequest(), History(), lambda *worked: None)
    engine = ActorEngine(run, context, create)
    stack.callback(engine.close)
    return engine.rounds


def _with_features(setup: Setup, batch_bytes: int) -> Setup:
    """The setup with features of this size at every cut, in float32."""
    shape = (batch_bytes // BATCH_SIZE // 4,)
    return dataclasses.replace(setup, feature_shapes=(shape,) * len(setup.feature_shapes))


def _trouble(who: str, text: str) -> None:
    raise RunError(f"{who}: {text}")
