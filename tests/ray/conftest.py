"""One local Ray for all tests of this folder; it is gone before those of the next."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import state

from actors.run.team import create_actor
from actors.workers.contract import ActorFactory
from tests.tiny_config import tiny_config

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_KEPT_PER_CLASS = 3


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


class WarmActors:
    """Actor processes that live on between tests: most of a short run would be twelve imports of torch.

    A warm actor is the real Ray actor of its class; its `__init__` runs again for every run.
    """

    def __init__(self, create: Callable[..., Any]) -> None:
        self.create = create
        self.idle: dict[type, list[Any]] = {}
        self.busy: list[tuple[type, Any]] = []

    def hand_out(self, actor_class: type, place: Any, *args: Any, **kwargs: Any) -> Any:
        idle = self.idle.setdefault(actor_class, [])
        if idle:
            handle = idle.pop()
            handle.__ray_call__.remote(_initialise, *args, **kwargs)
        else:
            handle = self.create(actor_class, place, *args, **kwargs)
        self.busy.append((actor_class, handle))
        return handle

    def take_back(self) -> None:
        """Keep actors that a test has not killed: as many as most runs need, for each has its memory."""
        for actor_class, handle in self.busy:
            if len(self.idle[actor_class]) >= _KEPT_PER_CLASS:
                ray.kill(handle)
            elif state.actors(handle._actor_id.hex()).get("State") == "ALIVE":
                self.idle[actor_class].append(handle)
        self.busy.clear()


def _initialise(actor: Any, *args: Any, **kwargs: Any) -> None:
    actor.__init__(*args, **kwargs)


@pytest.fixture(scope="package")
def warm_pool(local_ray: None) -> WarmActors:
    return WarmActors(create_actor)


@pytest.fixture
def warm_actors(warm_pool: WarmActors) -> Iterator[ActorFactory]:
    """Runs that are given it use actors of earlier tests, with all their state made again."""
    yield warm_pool.hand_out
    warm_pool.take_back()


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """Three clients with three cuts, one of them the whole network, on synthetic images."""
    return tiny_config(tmp_path / "cache")
