"""Node and device of an actor, as it reports them."""

from __future__ import annotations

from dataclasses import dataclass

import ray


@dataclass(frozen=True)
class ActorLocation:
    node_id: str
    node: str
    """Address of the node."""
    device: str
    """`cpu`, `cuda`."""


def location_here(device: str) -> ActorLocation:
    """This process's place on the cluster."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return ActorLocation(ray.get_runtime_context().get_node_id(), address, device)
