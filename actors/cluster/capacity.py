"""Fits a run's requests to a cluster's nodes and to those it could add. Pure: no call to Ray."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.cluster.describe import request_text, why_never
from actors.cluster.resources import (
    TOLERANCE,
    Growth,
    Node,
    NodeType,
    Place,
    Request,
    Resources,
    is_counted,
    total_of,
)


@dataclass(frozen=True)
class Verdict:
    """Verdict on one tier's actors."""

    tier: str
    actors: int
    asks: str
    """Request of each of them."""
    nodes: Mapping[str, int] = field(default_factory=dict)
    """Nodes that must come for them, by type."""
    busy: int = 0
    """Actors that find no room beside others, of this run or another one, and would alone."""
    unknown: int = 0
    """Actors for which some node must come of which nobody knows what it has."""
    never: str | None = None
    """Why not all of them can ever have a place, and the remedy."""

    @property
    def waits(self) -> bool:
        return bool(self.nodes or self.busy or self.unknown)

    def __str__(self) -> str:
        if self.never is not None:
            return f"can never fit: {self.never}"
        reasons = [f"{n} more node{'s' * (n > 1)} of type {name}" for name, n in self.nodes.items()]
        if self.busy:
            reasons.append(f"room that others take now ({self.busy} of {self.actors})")
        if self.unknown:
            reasons.append(f"nodes that the autoscaler may add, of types that are not known ({self.unknown})")
        return f"waits for {', '.join(reasons)}" if reasons else "fits"


def assess(requests: Sequence[Request], nodes: Sequence[Node], growth: Growth) -> list[Verdict]:
    """A verdict for each tier, in the order of the requests.

    The pickiest first, each on the node with room that has least to spare of what it does not ask for: a CPU client
    does not take the place of a GPU client. First on what is free, then on nodes that could come, then on what others
    use now. Packing is hard, and this is a rule of thumb: `never` is said only where no order could help.
    """
    found = {request.tier: _Findings() for request in requests}
    places = [Place.of(node.free, node.labels) for node in nodes]
    room = _room_to_grow(nodes, growth)
    without: list[list[Request]] = []
    bundles = sorted(_bundles(requests), key=_pickiness, reverse=True)
    for bundle in bundles:
        place = _best(bundle, places)
        if place is None and (added := _add_node(bundle, growth, room)) is not None:
            place = Place.of(added.resources, added.labels, added)
            places.append(place)
        if place is None:
            without.append(bundle)
            continue
        place.take(bundle)
        if place.type is not None:
            for tier in {request.tier for request in bundle}:
                found[tier].nodes[id(place)] = place.type.name
    empty = [Place.of(node.total, node.labels) for node in nodes]
    possible = [*empty, *(Place.of(t.resources, t.labels, t) for t in growth.types if t.most > 0)]
    for bundle in without:
        short = _short_of(bundle, bundles, possible, growth)
        for tier in {request.tier for request in bundle}:
            mine, count = found[tier], sum(request.tier == tier for request in bundle)
            if any(place.has_room(bundle) for place in possible) and not short:
                mine.busy += count
            elif not growth.known:
                mine.unknown += count
            elif mine.never is None:
                mine.never = why_never(bundle, requests, nodes, growth, possible, short)
    return [_verdict(tier, findings, requests) for tier, findings in found.items()]


def most_actors(requests: Sequence[Request], node: Node) -> int:
    """How many of the actors one node could get at most: the modest ones first, on all that it has."""
    place, count = Place.of(node.total, node.labels), 0
    for request in sorted(requests, key=lambda request: _pickiness([request])[1:]):
        if place.has_room([request]):
            place.take([request])
            count += 1
    return count


def _verdict(tier: str, findings: _Findings, requests: Sequence[Request]) -> Verdict:
    mine = [request for request in requests if request.tier == tier]
    nodes = Counter(findings.nodes.values())
    return Verdict(
        tier,
        len(mine),
        request_text(mine[0]),
        dict(sorted(nodes.items())),
        findings.busy,
        findings.unknown,
        findings.never,
    )


@dataclass
class _Findings:
    nodes: dict[int, str] = field(default_factory=dict)
    """Types of nodes that must come, by a number for each node: tiers may share one."""
    busy: int = 0
    unknown: int = 0
    never: str | None = None


def _bundles(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests that go to one node together."""
    bundles: dict[object, list[Request]] = {}
    for index, request in enumerate(requests):
        key = ("alone", index) if request.pair is None else ("pair", request.pair)
        bundles.setdefault(key, []).append(request)
    return list(bundles.values())


def _pickiness(bundle: Sequence[Request]) -> tuple[int, int, float]:
    wanted = total_of(bundle)
    kinds = sum(amount > 0 and is_counted(name) for name, amount in wanted.items())
    amounts = sum(amount for name, amount in wanted.items() if is_counted(name))
    return sum(len(request.label_selector) for request in bundle), kinds, amounts


def _best(bundle: Sequence[Request], places: Sequence[Place]) -> Place | None:
    """The place with room where a bundle leaves least unused."""
    return min(
        (place for place in places if place.has_room(bundle)), key=lambda place: place.spare(bundle), default=None
    )


@dataclass
class _Room:
    """How many nodes can still come."""

    nodes: int
    by_type: dict[str, int]


def _room_to_grow(nodes: Sequence[Node], growth: Growth) -> _Room:
    """Remaining limits; an existing node counts for the type whose resources it has."""
    there = Counter(next((t.name for t in growth.types if _is_of(node, t)), "") for node in nodes)
    grown = sum(count for name, count in there.items() if name)
    return _Room(growth.most_nodes - grown, {t.name: t.most - there[t.name] for t in growth.types})


def _is_of(node: Node, node_type: NodeType) -> bool:
    """Whether a node is of a type: by the name that autoscalers put on it, or by what it has."""
    named = node.labels.get("ray.io/node-group")
    if named is not None:
        return named == node_type.name

    def own(resources: Resources) -> dict[str, float]:
        return {name: amount for name, amount in resources.items() if amount and is_counted(name)}

    return own(node.total) == own(node_type.resources) and node_type.labels.items() <= node.labels.items()


def _add_node(bundle: Sequence[Request], growth: Growth, room: _Room) -> NodeType | None:
    """The type of node that would hold a bundle with least to spare and of which one more can come; it is counted."""
    places = [Place.of(t.resources, t.labels, t) for t in growth.types if room.by_type[t.name] > 0]
    best = _best(bundle, places) if room.nodes > 0 else None
    if best is None or best.type is None:
        return None
    room.by_type[best.type.name] -= 1
    room.nodes -= 1
    return best.type


def _short_of(
    bundle: Sequence[Request], bundles: Sequence[Sequence[Request]], places: Sequence[Place], growth: Growth
) -> dict[str, float]:
    """Of what a bundle's rivals ask for more, together with it, than there can ever be where it fits.

    Rivals are all that fit nowhere else. What is short in this way, no order of placing can help.
    """
    mine = {index for index, place in enumerate(places) if place.has_room(bundle)}
    rivals = [
        request
        for other in bundles
        if all(index in mine or not place.has_room(other) for index, place in enumerate(places))
        for request in other
    ]
    has: Counter[str] = Counter()
    for index in mine:
        place = places[index]
        count = 1 if place.type is None else min(place.type.most, growth.most_nodes)
        has.update({name: amount * count for name, amount in place.free.items()})
        has["GPU"] += sum(place.gpus) * count  # type: ignore[assignment]
        if place.type is not None and "memory" not in place.free:
            has["memory"] = math.inf  # type: ignore[assignment]
    return {name: amount for name, amount in total_of(rivals).items() if amount > has[name] + TOLERANCE}
