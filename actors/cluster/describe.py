"""Requests, nodes and shortages in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from actors.cluster.resources import (
    TOLERANCE,
    Growth,
    Labels,
    Node,
    Place,
    Request,
    Resources,
    matches,
    total_of,
)


def request_text(request: Request) -> str:
    """A request as text: `1 CPU, 0.5 GPU, 1 sensor, label zone=a`."""
    amounts = _amounts(request.resources)
    return (
        ", ".join([*amounts, *(f"label {key}={value}" for key, value in request.label_selector.items())]) or "nothing"
    )


def why_never(
    bundle: Sequence[Request],
    requests: Sequence[Request],
    nodes: Sequence[Node],
    growth: Growth,
    places: Sequence[Place],
    short: Mapping[str, float],
) -> str:
    """One line: what is missing where, and what to change."""
    who, keys = " with ".join(r.who for r in bundle), " or ".join(dict.fromkeys(r.config_key for r in bundle))
    asked = "; ".join(request_text(request) for request in bundle)
    together = " together on one node" if len(bundle) > 1 else ""
    if not any(place.has_room(bundle) for place in places):
        return f"{who} asks for {asked}{together}, and {_nearest(bundle, places)}; change {keys}, or add such a node"
    return (
        f"{who} ({asked}) finds no room beside the others of {len(requests)} actors, which ask for "
        f"{', '.join(_amount(name, amount) for name, amount in short.items())} where it could be "
        f"({cluster_text(nodes, growth)}); lower {keys} or the number of clients{_turns(keys)}, or add nodes"
    )


def _turns(keys: str) -> str:
    """The keys by which models of these tiers share actors."""
    return f", set {keys.replace('.resources', '.slots')}" if ".resources" in keys else ""


def cluster_text(nodes: Sequence[Node], growth: Growth) -> str:
    """Existing and possible nodes in one line: `nodes: 2 with 4 CPU, could come: 3 of type gpu (1 GPU)`."""
    kinds = Counter(", ".join([*_amounts(node.total), *_labels(node.labels)]) or "nothing" for node in nodes)
    there = "; ".join(f"{count} with {kind}" for kind, count in kinds.items()) or "none"
    types = "; ".join(f"{t.most} of type {t.name} ({', '.join(_amounts(t.resources))})" for t in growth.types)
    if not growth.known:
        types = "what the autoscaler knows"
    return f"nodes: {there}{f', could come: {types}' if types else ''}"


def _labels(labels: Labels) -> list[str]:
    """Labels that a person has given."""
    return [f"label {key}={value}" for key, value in sorted(labels.items()) if not key.startswith("ray.io/")]


def _nearest(bundle: Sequence[Request], places: Sequence[Place]) -> str:
    """Requested resources that no node has."""
    for name, amount in total_of(bundle).items():
        most = max((sum(p.gpus) if name == "GPU" else p.free.get(name, 0.0) for p in places), default=0.0)
        unknown = name == "memory" and any(place.type is not None for place in places)
        if amount > 0 and most + TOLERANCE <= amount and not unknown:
            if not most:
                return f"no node has any {name}"
            return f"no node has {_amount(name, amount)} (the most is {_amount(name, most)})"
    for key, value in [pair for request in bundle for pair in request.label_selector.items()]:
        if not any(matches({key: value}, place.labels) for place in places):
            found = sorted({place.labels[key] for place in places if key in place.labels})
            return f"no node has the label {key}={value} ({key} is {' or '.join(found) if found else 'on none'})"
    return "no node has all of that at once"


def _amounts(resources: Resources) -> list[str]:
    return [_amount(name, amount) for name, amount in sorted(resources.items()) if amount > 0 and _is_shown(name)]


def _is_shown(name: str) -> bool:
    return name != "object_store_memory" and not name.startswith("node:")


def _amount(name: str, amount: float) -> str:
    if name.startswith("accelerator_type:"):
        return name
    return f"{amount / (1 << 30):.3g} GiB memory" if name == "memory" else f"{amount:g} {name}"
