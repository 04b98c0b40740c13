"""The one place that turns plain classes into Ray actors with resources."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.cluster.describe import request_text
from actors.cluster.requests import request_of
from actors.cluster.resources import Request
from actors.cluster.slots import Slot, SlotPlan, Slots, pool_of, slots_of
from actors.run.run_state import Lineage
from actors.workers.aggregator import Aggregator
from actors.workers.contract import ActorFactory, ObjectList, WorkerRequest
from actors.workers.model_actor import ClientActor, ServerActor, own_rows
from actors.workers.origin import Origin
from hsee_ray.config.fleet import ModelId
from hsee_ray.method.setup import Setup, mapped_client_data
from hsee_ray.method.strategies import label_of, models_of

Member = ModelId | Literal["aggregator"]
"""Party that answers a call: a model in its slot, or the aggregator. An actor bears the name of its slot."""
AGGREGATOR: Literal["aggregator"] = "aggregator"


@dataclass(frozen=True)
class RowRefs:
    """Images by reference, for clients on nodes that do not have the image files."""

    train: Mapping[int, ObjectRef[Any]]
    test: ObjectRef[Any]
    calibration: Mapping[int, ObjectRef[Any]]
    validation: Mapping[int, ObjectRef[Any]]

    @classmethod
    def put(cls, setup: Setup) -> RowRefs:
        """Every client's images in the object store."""
        data = {spec.client_id: mapped_client_data(setup, spec.client_id) for spec in setup.fleet.clients}
        return cls(
            train={client_id: ray.put(own_rows(each.train)) for client_id, each in data.items()},
            test=ray.put(own_rows(data[0].test)),
            calibration={client_id: ray.put(own_rows(each.calibration)) for client_id, each in data.items()},
            validation={client_id: ray.put(own_rows(each.validation)) for client_id, each in data.items()},
        )

    def of(self, model: ModelId) -> dict[str, ObjectRef[Any]]:
        """A client's images by reference, as its actor takes them. A server has none."""
        if model.side == "server":
            return {}
        client_id = model.client_id
        return {
            "train": self.train[client_id],
            "test": self.test,
            "calibration": self.calibration[client_id],
            "validation": self.validation[client_id],
        }


def create_actor(actor_class: type[Any], place: Mapping[str, Any], *args: Any, **kwargs: Any) -> ActorHandle[Any]:
    """A Ray actor. Ray restarts nothing and repeats nothing: at most once is what training needs."""
    remote_class: Any = ray.remote(actor_class)
    handle: ActorHandle[Any] = remote_class.options(**place, max_restarts=0, max_task_retries=0).remote(*args, **kwargs)
    return handle


class Team:
    """The actors of a run: slots for clients and for servers (one server for Sequential), and one aggregator.

    An actor that has failed is replaced under the same name.
    """

    def __init__(
        self,
        setup: Setup,
        setup_ref: ObjectRef[Setup],
        slot_plan: SlotPlan,
        rows: RowRefs | None,
        origin: Origin | None,
        at_a_time: int | None = None,
        create: ActorFactory = create_actor,
    ) -> None:
        """`origin` is what actors must find on their nodes; None on a Ray of the run's own, without labels.

        So many actors start `at_a_time`, where they share one machine: the first ones are sooner there; None: all.
        `create` makes an actor of a class, where it is to be placed, and what its constructor takes.
        """
        self.setup = setup
        self.create = create
        self.setup_ref = setup_ref
        self.rows = rows
        self.origin = origin
        self.strategy = setup.strategy
        self.slot_plan = slot_plan
        self.models = models_of(setup.strategy, setup.fleet)
        slots = slots_of(setup.config, setup.fleet, slot_plan)
        self.slots = Slots({model: pool_of(setup.fleet, model) for model in self.models}, slots)
        self.requests: dict[Member, Request] = {slot: request_of(setup.config, setup.fleet, slot) for slot in slots}
        self.started: set[Member] = set()
        """Actors that have answered a call; the others may still wait for a place."""
        self._to_restore: dict[Slot, tuple[ModelId, Lineage]] = {}
        """Models that the next call in their slot puts back to a state."""
        self._restored: dict[Slot, ObjectRef[Any]] = {}
        """Of each slot, a result of the last call that has put a model back: later calls depend on it."""
        self.left_out: set[int] = set()
        """Clients that have no place on the cluster, and are left out until they have one."""
        self.actors: dict[Member, ActorHandle[Any]] = {}
        self.locations: dict[Member, ObjectRef[Any]] = {}
        """Location of every actor, available once it has started."""
        self._groups: dict[int, PlacementGroup] = {}
        """Places for a client and its server on one node, by client."""
        self.at_a_time = at_a_time or len(self.requests) + 1
        self._to_start = deque(self.members())
        self.start_more(0)

    def is_left_out(self, member: Member) -> bool:
        """Whether it is a client that is left out."""
        return not isinstance(member, str) and member.side == "client" and member.client_id in self.left_out

    def members(self) -> list[Member]:
        """All actors in the order in which they start: pairs that compute first, first."""
        return [*self.requests, AGGREGATOR]

    def slot_of(self, member: Member) -> Member:
        """The actor of a model's slot; the aggregator's is its own. Raises KeyError for one without a slot."""
        if isinstance(member, str):
            return member
        slot = self.slots.of(member)
        if slot is None:
            raise KeyError(member)
        return slot

    def submit(self, model: ModelId, request: WorkerRequest, objects: ObjectList | None = None) -> list[ObjectRef[Any]]:
        """Has the actor of a model's slot answer a request about `objects`; gives the references of its results.

        A restore that is still to be done travels with it; the call fails if the last restore there has failed.
        """
        slot = self.slot_of(model)
        assert not isinstance(slot, str)
        objects = ObjectList(objects.refs if objects else ())  # a restore adds its own
        if slot not in self._to_restore:
            call: Any = self.actor(slot).perform.options(num_returns=request.results)
            results = call.remote(request, None, *objects.refs, restored=self._restored.get(slot))
            return results if request.results > 1 else [results]
        occupant, lineage = self._to_restore.pop(slot)
        restore = lineage.restore(occupant, objects)
        if self.rows is not None and self.slots.takes_turns(occupant):
            rows = {name: objects.index(ref) for name, ref in self.rows.of(occupant).items()}
            restore = replace(restore, rows=rows)
        call = self.actor(slot).perform.options(num_returns=request.results + 1)
        *results, self._restored[slot] = call.remote(request, restore, *objects.refs)
        return results

    def submit_to_aggregator(self, request: WorkerRequest, objects: ObjectList) -> list[ObjectRef[Any]]:
        """Has the aggregator answer a request about a model whose own actor cannot."""
        call: Any = self.actor(AGGREGATOR).perform.options(num_returns=request.results)
        results = call.remote(request, None, *objects.refs)
        return results if request.results > 1 else [results]

    def actor(self, member: Member) -> ActorHandle[Any]:
        """The actor of a slot, or the aggregator; created now where its start has not been asked for."""
        if member not in self.actors:
            self._to_start.remove(member)
            self._create(member)
        return self.actors[member]

    def start_more(self, present: int) -> None:
        """Creates the next actors, when so many are there."""
        while self._to_start and len(self.actors) - present < self.at_a_time:
            self._create(self._to_start.popleft())

    def slot(self, lineages: Mapping[ModelId, Lineage]) -> bool:
        """Has models hold slots, each in the state of its lineage; False, and nothing done, when one must wait."""
        if not all(self.slots.can_take(model) for model in lineages):
            return False
        for model, lineage in lineages.items():
            if self.slots.take(model, self.started):
                self.restore(model, lineage)
        return True

    def restore(self, model: ModelId, lineage: Lineage) -> None:
        """Has a model in a slot go back to a state before whatever is submitted next; one that does not, does later."""
        slot = self.slots.of(model)
        if slot is not None:
            self._to_restore[slot] = model, lineage

    def replace(self, member: Member, elsewhere: bool = False) -> list[Slot]:
        """Ends what is left of a member's actor and creates it again; gives the slots that are replaced.

        `elsewhere`: its node is about to go. A pair then gets another common place, and the other one moves along.
        """
        moving = [self.slot_of(member)]
        if elsewhere and not isinstance(member, str) and member.client_id in self._groups:
            remove_placement_group(self._groups.pop(member.client_id))
            other = ModelId("client" if member.side == "server" else "server", member.client_id)
            moving.append(other)
        for each in moving:
            ray.kill(self.actor(each), no_restart=True)
            self.started.discard(each)
            if not isinstance(each, str):
                self._restored.pop(each, None)
            self._create(each)
        return [each for each in moving if not isinstance(each, str)]

    def release(self) -> None:
        """Gives places back that outlive their actors."""
        for group in self._groups.values():
            remove_placement_group(group)
        self._groups.clear()

    def tier(self, member: Member) -> str:
        """The tier of an actor or a model, as in what the run asks for."""
        return AGGREGATOR if isinstance(member, str) else self.slots.pool(member)

    def label(self, member: Member) -> str:
        """`client 003`, `server 003`, `shared server`, `aggregator`."""
        if isinstance(member, str):
            return member
        return label_of(self.strategy, self.setup.fleet, member)

    def asked(self, member: Member) -> str:
        """Resource request of an actor, as text."""
        return "nothing" if isinstance(member, str) else request_text(self.requests[member])

    def _create(self, member: Member) -> None:
        place = self._place(member)
        if isinstance(member, str):
            actor = self.create(Aggregator, place, self.setup.config.training, self.origin)
        else:
            actor_class = ServerActor if member.side == "server" else ClientActor
            rows = {} if self.rows is None else self.rows.of(member)
            actor = self.create(actor_class, place, self.setup_ref, member.client_id, self.origin, **rows)
        self.actors[member] = actor
        self.locations[member] = actor.location.remote()

    def _place(self, member: Member) -> dict[str, Any]:
        """Ray options that place an actor."""
        if isinstance(member, str):
            # Beside the driver, on a node that is not lost without the run: it holds copies of what others lose. Of
            # a soft affinity Ray takes no notice where no CPU is asked.
            here = ray.get_runtime_context().get_node_id()
            return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
        request, config = self.requests[member], self.setup.config
        resources = dict(request.resources)
        place: dict[str, Any] = {
            "num_cpus": resources.pop("CPU"),
            "num_gpus": resources.pop("GPU"),
            "memory": resources.pop("memory", None),
            "resources": resources,
        }
        if request.pair is not None:
            index = 0 if member.side == "client" else 1
            place["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group(request.pair), index)
            return place
        if request.label_selector and self.origin is not None:
            place["label_selector"] = dict(request.label_selector)
        if config.cluster.placement == "spread":
            place["scheduling_strategy"] = "SPREAD"
        return place

    def _group(self, client_id: int) -> PlacementGroup:
        """The common place of a client and its server."""
        if client_id not in self._groups:
            pair = [self.requests[ModelId("client", client_id)], self.requests[ModelId("server", client_id)]]
            bundles = [_bundle(request.resources) for request in pair]
            selectors = None if self.origin is None else [dict(request.label_selector) for request in pair]
            self._groups[client_id] = placement_group(bundles, strategy="STRICT_PACK", bundle_label_selector=selectors)
        return self._groups[client_id]


def _bundle(resources: Mapping[str, float]) -> dict[str, float]:
    """Bundle of a placement group for an actor; Ray takes no empty bundle."""
    return {name: amount for name, amount in resources.items() if amount > 0} or {"CPU": 0.001}
