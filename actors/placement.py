"""The one place that turns plain classes into Ray actors with resources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from actors.aggregator import Aggregator
from actors.client import ClientActor
from actors.server import ServerActor
from hsee_ray.config import Config, ResourcesConfig
from hsee_ray.fleet import ClientSpec, Fleet
from hsee_ray.setup import Setup


@dataclass(frozen=True)
class Request:
    """What one actor asks of the cluster."""

    who: str
    config_key: str
    """Where the configuration asks for it."""
    resources: Mapping[str, float]


def requests(config: Config, fleet: Fleet) -> list[Request]:
    """Every actor of a run and what it asks for, in the order in which they start: pairs that compute first, first."""
    asked: list[Request] = []
    keys = {tier.name: f"tiers.{index}.resources" for index, tier in enumerate(config.tiers)}
    central = config.training.strategy == "centralized"
    shared = config.training.strategy == "sequential"
    server = _logical(config.server.resources)
    for spec in fleet.clients:
        who = f"client {spec.label} of tier {spec.tier}"
        asked.append(Request(who, "server.resources" if central else keys[spec.tier], _logical(spec.resources)))
        if spec.has_server and not shared:
            asked.append(Request(f"the server of client {spec.label}", "server.resources", server))
    if shared and any(spec.has_server for spec in fleet.clients):
        asked.insert(0, Request("the shared server", "server.resources", server))
    return asked


class Team:
    """The actors of a run: one per client, one per server model (one for Sequential), one aggregator."""

    def __init__(self, setup: Setup, setup_ref: ObjectRef[Setup], rows: RowRefs | None) -> None:
        self.setup = setup
        self.clients: dict[int, ActorHandle[Any]] = {}
        self.servers: dict[int, ActorHandle[Any]] = {}
        config, fleet = setup.config, setup.fleet
        with_server = tuple(spec.number for spec in fleet.clients if spec.has_server)
        self.shared_server = config.training.strategy == "sequential"
        if self.shared_server and with_server:
            self.servers[0] = _actor(ServerActor, config.server.resources, setup_ref, with_server)
        for spec in fleet.clients:
            train, test = (None, None) if rows is None else (rows.train[spec.number], rows.test)
            self.clients[spec.number] = _actor(ClientActor, spec.resources, setup_ref, spec.number, train, test)
            if spec.has_server and not self.shared_server:
                self.servers[spec.number] = _actor(ServerActor, config.server.resources, setup_ref, (spec.number,))
        self.aggregator = _actor(Aggregator, ResourcesConfig(num_cpus=0), config.training)

    def server_of(self, spec: ClientSpec) -> int | None:
        """Which server takes up a client's features; None at cut L."""
        if not spec.has_server:
            return None
        return 0 if self.shared_server else spec.number


@dataclass(frozen=True)
class RowRefs:
    """Images by reference, for clients on nodes that do not have the image files."""

    train: Mapping[int, ObjectRef[Any]]
    test: ObjectRef[Any]


def _actor(actor_class: type[Any], resources: ResourcesConfig, *args: Any) -> ActorHandle[Any]:
    # Ray restarts nothing and repeats nothing: at most once is what training needs.
    remote_class: Any = ray.remote(actor_class)
    handle: ActorHandle[Any] = remote_class.options(
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus,
        memory=resources.memory,
        resources=dict(resources.custom),
        max_restarts=0,
        max_task_retries=0,
    ).remote(*args)
    return handle


def _logical(resources: ResourcesConfig) -> dict[str, float]:
    asked = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}
    if resources.memory is not None:
        asked["memory"] = float(resources.memory)
    return asked
