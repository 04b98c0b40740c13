"""A run over actors from its first actor to its last file, and taken up again from its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from actors.run.engine import over_actors
from actors.run.team import create_actor
from actors.workers.contract import ActorFactory
from hsee_ray.config.schema import Config
from hsee_ray.rundir.run import Run
from hsee_ray.training import begin
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import SILENT, Listener


def run(
    config: Config,
    place: Path | str,
    listener: Listener = SILENT,
    stop: StopRequest | None = None,
    create: ActorFactory = create_actor,
) -> Run:
    """Trains a configuration over actors, which `create` makes; as `hsee_ray.training.begin.run`."""
    return begin.run(config, place, over_actors(create), listener, stop)


def resume(
    place: Path | str,
    overrides: Iterable[str] = (),
    listener: Listener = SILENT,
    stop: StopRequest | None = None,
    create: ActorFactory = create_actor,
) -> Run:
    """Continues a run over actors, which `create` makes; as `hsee_ray.training.begin.resume`."""
    return begin.resume(place, over_actors(create), overrides, listener, stop)
