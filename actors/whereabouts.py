"""Where an actor's process is. The only use of Ray's private state."""

from __future__ import annotations

from typing import Any

import ray._private.state
from ray.actor import ActorHandle


def process_of(actor: ActorHandle[Any]) -> int | None:
    """Process id of an actor on its node, also while it starts; None before it has a place."""
    entry = ray._private.state.actors(actor._actor_id.hex())
    return entry.get("Pid") or None
