"""The one place that turns plain classes into Ray actors with resources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from actors.aggregator import Aggregator
from actors.client import ClientActor, own_rows
from actors.recipe import Recipe
from actors.server import ServerActor
from hsee_ray.aggregation import ModelId
from hsee_ray.config import Config, ResourcesConfig
from hsee_ray.fleet import ClientSpec, Fleet
from hsee_ray.setup import Setup, mapped_client_data

Member = ModelId | Literal["aggregator"]
"""An actor of a run: that of a model, or the aggregator."""
AGGREGATOR: Literal["aggregator"] = "aggregator"


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


@dataclass(frozen=True)
class RowRefs:
    """Images by reference, for clients on nodes that do not have the image files."""

    train: Mapping[int, ObjectRef[Any]]
    test: ObjectRef[Any]
    calibration: Mapping[int, ObjectRef[Any]]

    @classmethod
    def put(cls, setup: Setup) -> RowRefs:
        """Every client's images in the object store."""
        data = {spec.number: mapped_client_data(setup, spec.number) for spec in setup.fleet.clients}
        return cls(
            train={number: ray.put(own_rows(each.train)) for number, each in data.items()},
            test=ray.put(own_rows(data[0].test)),
            calibration={number: ray.put(own_rows(each.calibration)) for number, each in data.items()},
        )

    def of(self, number: int) -> tuple[ObjectRef[Any], ...]:
        """What a client actor takes: its training images, the test images, and those set aside."""
        return self.train[number], self.test, self.calibration[number]


class Team:
    """The actors of a run: one per client, one per server model (one for Sequential), one aggregator.

    An actor that has failed is replaced under the same name.
    """

    def __init__(self, setup: Setup, setup_ref: ObjectRef[Setup], rows: RowRefs | None) -> None:
        self.setup = setup
        self.setup_ref = setup_ref
        self.rows = rows
        self.shared_server = setup.config.training.strategy == "sequential"
        self.served = tuple(spec.number for spec in setup.fleet.clients if spec.has_server)
        self.started: set[Member] = set()
        """Actors that have answered a call; the others may still wait for a place."""
        self.restored: dict[ModelId, ObjectRef[Any]] = {}
        """Results of the last restores, on which later calls depend."""
        self.actors: dict[Member, ActorHandle[Any]] = {}
        for member in self.members():
            self.actors[member] = self._create(member)

    def members(self) -> list[Member]:
        """All actors in the order in which they start: pairs that compute first, first."""
        members: list[Member] = []
        if self.shared_server and self.served:
            members.append(ModelId("server", 0))
        for spec in self.setup.fleet.clients:
            members.append(ModelId("client", spec.number))
            if spec.has_server and not self.shared_server:
                members.append(ModelId("server", spec.number))
        return [*members, AGGREGATOR]

    @property
    def models(self) -> list[ModelId]:
        return [member for member in self.actors if not isinstance(member, str)]

    def server_of(self, spec: ClientSpec) -> int | None:
        """Which server takes up a client's features; None at cut L."""
        if not spec.has_server:
            return None
        return 0 if self.shared_server else spec.number

    def submit(self, model: ModelId, method: str, *args: Any, num_returns: int = 1) -> Any:
        """Calls a model's actor; the call fails if the model's last restore has failed."""
        call = getattr(self.actors[model], method).options(num_returns=num_returns)
        return call.remote(*args, after=self.restored.get(model))

    def restore(self, model: ModelId, recipe: Recipe) -> None:
        """Has a model go back to a state before whatever is submitted next."""
        units, averages = tuple(recipe.loads), recipe.loads.values()
        self.restored[model] = self.actors[model].restore.remote(units, recipe.snapshot, *averages)

    def replace(self, member: Member) -> None:
        """Ends what is left of an actor and creates it anew, in its first state."""
        ray.kill(self.actors[member], no_restart=True)
        self.started.discard(member)
        if not isinstance(member, str):
            self.restored.pop(member, None)
        self.actors[member] = self._create(member)

    def patience_s(self, member: Member) -> float:
        """How long an actor may take for one call; the first one also waits for its place and its start."""
        config = self.setup.config
        starting = 0.0 if member in self.started else config.cluster.placement_timeout_s
        return config.failures.step_timeout_s + starting

    def label(self, member: Member) -> str:
        """`client 003`, `server 003`, `shared server`, `aggregator`."""
        if isinstance(member, str):
            return member
        if member.side == "server" and self.shared_server:
            return "shared server"
        return f"{member.side} {self.setup.fleet.clients[member.number].label}"

    def asked(self, member: Member) -> str:
        """What an actor asks of Ray, as text."""
        return ", ".join(f"{amount:g} {name}" for name, amount in _logical(self._resources(member)).items() if amount)

    def _create(self, member: Member) -> ActorHandle[Any]:
        resources = self._resources(member)
        if isinstance(member, str):
            return _actor(Aggregator, resources, self.setup.config.training)
        if member.side == "server":
            served = self.served if self.shared_server else (member.number,)
            return _actor(ServerActor, resources, self.setup_ref, served)
        rows = () if self.rows is None else self.rows.of(member.number)
        return _actor(ClientActor, resources, self.setup_ref, member.number, *rows)

    def _resources(self, member: Member) -> ResourcesConfig:
        if isinstance(member, str):
            return ResourcesConfig(num_cpus=0)
        if member.side == "server":
            return self.setup.config.server.resources
        return self.setup.fleet.clients[member.number].resources


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
