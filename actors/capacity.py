"""What a run asks of a cluster, what the cluster has and could add, and what follows. Pure: no Ray is asked here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Resources = Mapping[str, float]
Labels = Mapping[str, str]

TOLERANCE = 1e-4
"""Ray counts resources in steps of 0.0001."""


@dataclass(frozen=True)
class Request:
    """What one actor asks of the cluster."""

    who: str
    tier: str
    """Its tier's name; of servers `server`."""
    config_key: str
    """Where the configuration asks for it."""
    resources: Resources
    label_selector: Labels = field(default_factory=dict)
    pair: int | None = None
    """Requests with the same number go to one node."""


@dataclass(frozen=True)
class Node:
    """A node that is there."""

    total: Resources
    free: Resources
    """What nobody uses now."""
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True)
class NodeType:
    """Nodes that an autoscaler can add."""

    name: str
    resources: Resources
    """`memory` is unknown where it is missing."""
    labels: Labels
    most: int
    """How many there can be at once."""


@dataclass(frozen=True)
class Growth:
    """What an autoscaler can add."""

    types: tuple[NodeType, ...] = ()
    most_nodes: int = 0
    """Nodes of all types together, beside the head."""
    known: bool = True
    """False when there is an autoscaler and nobody has said what it can add."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of one tier's actors."""

    tier: str
    actors: int
    asks: str
    """What each of them asks for."""
    nodes: Mapping[str, int] = field(default_factory=dict)
    """Nodes that must come for them, by type."""
    busy: int = 0
    """Actors that find room when what others use now is free again."""
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
            reasons.append(f"what others use now ({self.busy} of {self.actors})")
        if self.unknown:
            reasons.append(f"nodes that the autoscaler may add, of types that are not known ({self.unknown})")
        return f"waits for {', '.join(reasons)}" if reasons else "fits"


def assess(requests: Sequence[Request], nodes: Sequence[Node], growth: Growth) -> list[Verdict]:
    """A verdict for each tier, in the order of the requests.

    The pickiest first, each on the node with room that has the fewest kinds of resources: a CPU client does not take
    the place of a GPU client. First on what is free, then on nodes that could come, then on what others use now.
    """
    found = {request.tier: _Findings() for request in requests}
    free = [_Place(dict(node.free), node.labels) for node in nodes]
    total = [_Place(dict(node.total), node.labels) for node in nodes]
    room = _room_to_grow(nodes, growth)
    for bundle in sorted(_bundles(requests), key=_pickiness, reverse=True):
        # What an empty cluster would hold is reckoned beside what the cluster of now holds.
        fits_empty = _take(bundle, total)
        if _take(bundle, free):
            continue
        added = _add_node(bundle, growth, room)
        for tier in {request.tier for request in bundle}:
            mine = found[tier]
            if added is not None:
                mine.nodes[added.name] += 1
            elif fits_empty:
                mine.busy += sum(request.tier == tier for request in bundle)
            elif not growth.known:
                mine.unknown += sum(request.tier == tier for request in bundle)
            elif mine.never is None:
                mine.never = _why_never(bundle, requests, nodes, growth)
        if added is not None:
            place = _Place(dict(added.resources), added.labels, grows=True)
            free.append(place)
            _take(bundle, [place])
    return [
        Verdict(
            tier,
            sum(request.tier == tier for request in requests),
            text(next(request for request in requests if request.tier == tier)),
            dict(sorted(findings.nodes.items())),
            findings.busy,
            findings.unknown,
            findings.never,
        )
        for tier, findings in found.items()
    ]


def matches(selector: Labels, labels: Labels) -> bool:
    """Whether a node's labels are what a selector asks for: `value`, `!value`, `in(a,b)` or `!in(a,b)`."""
    for key, wanted in selector.items():
        negated, body = wanted.startswith("!"), wanted.removeprefix("!")
        among = re.fullmatch(r"in\((.*)\)", body)
        values = [value.strip() for value in among[1].split(",")] if among else [body]
        if (labels.get(key) in values) == negated:
            return False
    return True


def text(request: Request) -> str:
    """What a request asks for: `1 CPU, 0.5 GPU, 1 sensor, label zone=a`."""
    amounts = _amounts(request.resources)
    return (
        ", ".join([*amounts, *(f"label {key}={value}" for key, value in request.label_selector.items())]) or "nothing"
    )


@dataclass
class _Findings:
    nodes: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    unknown: int = 0
    never: str | None = None


@dataclass
class _Place:
    """A node, as far as it is free."""

    free: dict[str, float]
    labels: Labels
    grows: bool = False
    """It is not there yet: how much memory it has is not known."""

    def has_room(self, bundle: Sequence[Request]) -> bool:
        wanted = _sum(bundle)
        enough = all(
            self.free.get(name, 0.0) + TOLERANCE > amount
            for name, amount in wanted.items()
            if amount > 0 and not (name == "memory" and self.grows and name not in self.free)
        )
        return enough and all(matches(request.label_selector, self.labels) for request in bundle)


def _bundles(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests that go to one node together."""
    bundles: dict[object, list[Request]] = {}
    for index, request in enumerate(requests):
        key = ("alone", index) if request.pair is None else ("pair", request.pair)
        bundles.setdefault(key, []).append(request)
    return list(bundles.values())


def _pickiness(bundle: Sequence[Request]) -> tuple[int, int, float]:
    wanted = _sum(bundle)
    return _kinds(wanted), sum(len(request.label_selector) for request in bundle), sum(wanted.values())


def _sum(requests: Iterable[Request]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for request in requests:
        for name, amount in request.resources.items():
            totals[name] = totals.get(name, 0.0) + amount
    return totals


def _kinds(resources: Resources) -> int:
    return sum(amount > 0 for name, amount in resources.items() if not name.startswith("node:"))


def _take(bundle: Sequence[Request], places: list[_Place]) -> bool:
    """Takes room for a bundle where it fits best; False when there is none."""
    fitting = [place for place in places if place.has_room(bundle)]
    if not fitting:
        return False
    place = min(fitting, key=lambda place: _kinds(place.free))
    for name, amount in _sum(bundle).items():
        if name in place.free:
            place.free[name] -= amount
    return True


@dataclass
class _Room:
    """How many nodes can still come."""

    nodes: int
    by_type: dict[str, int]


def _room_to_grow(nodes: Sequence[Node], growth: Growth) -> _Room:
    """What is left of the limits; a node that is there counts for the type of which it has the resources."""
    there = Counter(next((t.name for t in growth.types if _is_of(node, t)), "") for node in nodes)
    grown = sum(count for name, count in there.items() if name)
    return _Room(growth.most_nodes - grown, {t.name: t.most - there[t.name] for t in growth.types})


def _is_of(node: Node, node_type: NodeType) -> bool:
    def own(resources: Resources) -> dict[str, float]:
        return {
            name: amount
            for name, amount in resources.items()
            if amount and name not in ("memory", "object_store_memory") and ":" not in name
        }

    return own(node.total) == own(node_type.resources)


def _add_node(bundle: Sequence[Request], growth: Growth, room: _Room) -> NodeType | None:
    """The leanest type of node that would hold a bundle and of which one more can come; it is counted."""
    fitting = [
        t
        for t in growth.types
        if room.by_type[t.name] > 0 and _Place(dict(t.resources), t.labels, True).has_room(bundle)
    ]
    if not fitting or room.nodes <= 0:
        return None
    leanest = min(fitting, key=lambda t: (_kinds(t.resources), sum(t.resources.values())))
    room.by_type[leanest.name] -= 1
    room.nodes -= 1
    return leanest


def _why_never(bundle: Sequence[Request], requests: Sequence[Request], nodes: Sequence[Node], growth: Growth) -> str:
    """One line: what is missing where, and what to change."""
    places = [_Place(dict(node.total), node.labels) for node in nodes]
    places += [_Place(dict(t.resources), t.labels, True) for t in growth.types if t.most > 0]
    who, keys = " with ".join(r.who for r in bundle), " or ".join(dict.fromkeys(r.config_key for r in bundle))
    asked = "; ".join(text(request) for request in bundle)
    together = " together on one node" if len(bundle) > 1 else ""
    if not any(place.has_room(bundle) for place in places):
        return f"{who} asks for {asked}{together}, and {_nearest(bundle, places)}; lower {keys}, or add such a node"
    has = "; ".join(", ".join(_amounts(node.total)) or "nothing" for node in nodes) or "none"
    grows = "".join(f", and up to {t.most} of type {t.name}" for t in growth.types if t.most > 0)
    return (
        f"the run asks for {', '.join(_amounts(_sum(requests)))} in {len(requests)} actors, and {who} ({asked}) finds "
        f"no room beside the others (nodes: {has}{grows}); lower {keys} or the number of clients, or add nodes"
    )


def _nearest(bundle: Sequence[Request], places: Sequence[_Place]) -> str:
    """What no node has of what is asked for."""
    for name, amount in _sum(bundle).items():
        most = max((place.free.get(name, 0.0) for place in places), default=0.0)
        unknown = name == "memory" and any(place.grows for place in places)
        if amount > 0 and most + TOLERANCE <= amount and not unknown:
            if not most:
                return f"no node has any {name}"
            return f"no node has {_amount(name, amount)} (the most is {_amount(name, most)})"
    selectors = [(key, value) for request in bundle for key, value in request.label_selector.items()]
    for key, value in selectors:
        if not any(matches({key: value}, place.labels) for place in places):
            found = sorted({place.labels[key] for place in places if key in place.labels})
            return f"no node has the label {key}={value} ({key} is {' or '.join(found) if found else 'on none'})"
    return "no node has all of that at once"


def _amounts(resources: Resources) -> list[str]:
    return [
        _amount(name, amount)
        for name, amount in sorted(resources.items())
        if amount > 0 and name != "object_store_memory" and not name.startswith("node:")
    ]


def _amount(name: str, amount: float) -> str:
    return f"{amount / (1 << 30):.3g} GiB memory" if name == "memory" else f"{amount:g} {name}"
