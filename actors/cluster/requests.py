"""Resource requests of a run's actors."""

from __future__ import annotations

from actors.cluster.resources import Request
from actors.cluster.slots import SERVERS, Slot, SlotPlan, slots_of
from hsee_ray.config.fleet import Fleet
from hsee_ray.config.schema import Config, ResourcesConfig
from hsee_ray.method.strategies import strategy_of


def requests(config: Config, fleet: Fleet, slot_plan: SlotPlan) -> list[Request]:
    """Every actor of a run and what it asks for, in the order in which they start: pairs that compute first, first.

    The aggregator asks for nothing.
    """
    return [request_of(config, fleet, slot) for slot in slots_of(config, fleet, slot_plan)]


def request_of(config: Config, fleet: Fleet, slot: Slot) -> Request:
    """Request of the actor of one slot."""
    spec = fleet.clients[slot.client_id]
    pair = spec.client_id if config.cluster.placement == "colocate" and spec.has_server else None
    if slot.side == "server":
        shared = strategy_of(config).shared_server
        who = "the shared server" if shared else f"the server of client {spec.label}"
        server = config.server.resources
        return Request(who, SERVERS, "server.resources", _logical(server), server.label_selector, pair)
    index = next((i for i, tier in enumerate(config.tiers) if tier.name == spec.tier), None)
    key = "server.resources" if index is None else f"tiers.{index}.resources"
    who = f"client {spec.label} of tier {spec.tier}"
    return Request(who, spec.tier, key, _logical(spec.resources), spec.resources.label_selector, pair)


def _logical(resources: ResourcesConfig) -> dict[str, float]:
    asked = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, **resources.custom}
    if resources.memory is not None:
        asked["memory"] = float(resources.memory)
    if resources.accelerator_type is not None:
        # How Ray itself marks nodes that have one; the amount only says that it is wanted.
        asked[f"accelerator_type:{resources.accelerator_type}"] = 0.001
    return asked
