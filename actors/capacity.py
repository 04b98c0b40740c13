"""What a run asks of a cluster, what the cluster has and could add, and what follows. Pure: no Ray is asked here."""

from __future__ import annotations

import math
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
    """Its tier's name; of servers `servers`."""
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
    head: Node | None = None
    """The node that is there from the beginning, as far as the file says."""
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
    places = [_Place.of(node.free, node.labels) for node in nodes]
    room = _room_to_grow(nodes, growth)
    without: list[list[Request]] = []
    bundles = sorted(_bundles(requests), key=_pickiness, reverse=True)
    for bundle in bundles:
        place = _best(bundle, places)
        if place is None and (added := _add_node(bundle, growth, room)) is not None:
            place = _Place.of(added.resources, added.labels, added)
            places.append(place)
        if place is None:
            without.append(bundle)
            continue
        place.take(bundle)
        if place.type is not None:
            for tier in {request.tier for request in bundle}:
                found[tier].nodes[id(place)] = place.type.name
    empty = [_Place.of(node.total, node.labels) for node in nodes]
    possible = [*empty, *(_Place.of(t.resources, t.labels, t) for t in growth.types if t.most > 0)]
    for bundle in without:
        short = _short_of(bundle, bundles, possible, growth)
        for tier in {request.tier for request in bundle}:
            mine, count = found[tier], sum(request.tier == tier for request in bundle)
            if any(place.has_room(bundle) for place in possible) and not short:
                mine.busy += count
            elif not growth.known:
                mine.unknown += count
            elif mine.never is None:
                mine.never = _why_never(bundle, requests, nodes, growth, possible, short)
    return [_verdict(tier, findings, requests) for tier, findings in found.items()]


def _verdict(tier: str, findings: _Findings, requests: Sequence[Request]) -> Verdict:
    mine = [request for request in requests if request.tier == tier]
    nodes = Counter(findings.nodes.values())
    return Verdict(
        tier, len(mine), text(mine[0]), dict(sorted(nodes.items())), findings.busy, findings.unknown, findings.never
    )


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
    nodes: dict[int, str] = field(default_factory=dict)
    """Types of nodes that must come, by a number for each node: tiers may share one."""
    busy: int = 0
    unknown: int = 0
    never: str | None = None


@dataclass
class _Place:
    """A node, as far as it is free."""

    free: dict[str, float]
    gpus: list[float]
    """What is free of each GPU: a fraction is of one."""
    labels: Labels
    type: NodeType | None
    """Of a node that is not there yet; how much memory it has is not known."""

    @classmethod
    def of(cls, resources: Resources, labels: Labels, node_type: NodeType | None = None) -> _Place:
        free = dict(resources)
        amount = free.pop("GPU", 0.0)
        gpus = [1.0] * int(amount + TOLERANCE)
        rest = amount - len(gpus)
        return cls(free, [*gpus, rest] if rest > TOLERANCE else gpus, labels, node_type)

    def has_room(self, bundle: Sequence[Request]) -> bool:
        enough = all(
            self.free.get(name, 0.0) + TOLERANCE > amount
            for name, amount in _sum(bundle).items()
            if amount > 0 and name != "GPU" and not (name == "memory" and self.type and name not in self.free)
        )
        return enough and self._gpus_after(bundle) is not None and self.bears(bundle)

    def bears(self, bundle: Sequence[Request]) -> bool:
        """Whether it has the labels that are asked for."""
        return all(matches(request.label_selector, self.labels) for request in bundle)

    def take(self, bundle: Sequence[Request]) -> None:
        for name, amount in _sum(bundle).items():
            if name in self.free:
                self.free[name] -= amount
        gpus = self._gpus_after(bundle)
        assert gpus is not None
        self.gpus = gpus

    def spare(self, bundle: Sequence[Request]) -> tuple[int, int, float]:
        """What a bundle would leave unused here: kinds of resources, labels, amounts."""
        wanted = _sum(bundle)
        left = {name: amount for name, amount in self.free.items() if _is_counted(name) and amount > 0}
        if self.gpus:
            left["GPU"] = sum(self.gpus)
        labels = {key for request in bundle for key in request.label_selector}
        kinds = sum(wanted.get(name, 0.0) == 0 for name in left)
        return kinds, len(self.labels.keys() - labels), sum(left.values())

    def _gpus_after(self, bundle: Sequence[Request]) -> list[float] | None:
        gpus: list[float] | None = list(self.gpus)
        for amount in sorted((request.resources.get("GPU", 0.0) for request in bundle), reverse=True):
            gpus = None if gpus is None else take_gpus(gpus, amount)
        return gpus


def take_gpus(gpus: Sequence[float], amount: float) -> list[float] | None:
    """What is left of GPUs when one actor has taken its amount: whole ones, or a fraction of one. None: no room."""
    left = sorted(gpus)
    if amount <= 0:
        return left
    if amount >= 1:
        whole = [free for free in left if free + TOLERANCE > 1]
        count = round(amount)
        return [free for free in left if free + TOLERANCE <= 1] + whole[count:] if len(whole) >= count else None
    index = next((i for i, free in enumerate(left) if free + TOLERANCE > amount), None)
    if index is None:
        return None
    left[index] -= amount
    return left


def _bundles(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests that go to one node together."""
    bundles: dict[object, list[Request]] = {}
    for index, request in enumerate(requests):
        key = ("alone", index) if request.pair is None else ("pair", request.pair)
        bundles.setdefault(key, []).append(request)
    return list(bundles.values())


def _pickiness(bundle: Sequence[Request]) -> tuple[int, int, float]:
    wanted = _sum(bundle)
    kinds = sum(amount > 0 and _is_counted(name) for name, amount in wanted.items())
    amounts = sum(amount for name, amount in wanted.items() if _is_counted(name))
    return sum(len(request.label_selector) for request in bundle), kinds, amounts


def _sum(requests: Iterable[Request]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for request in requests:
        for name, amount in request.resources.items():
            totals[name] = totals.get(name, 0.0) + amount
    return totals


def _is_counted(name: str) -> bool:
    """Whether a resource tells nodes apart: memory, which all have, does not."""
    return name not in ("memory", "object_store_memory") and not name.startswith("node:")


def _best(bundle: Sequence[Request], places: Sequence[_Place]) -> _Place | None:
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
    """What is left of the limits; a node that is there counts for the type of which it has the resources."""
    there = Counter(next((t.name for t in growth.types if _is_of(node, t)), "") for node in nodes)
    grown = sum(count for name, count in there.items() if name)
    return _Room(growth.most_nodes - grown, {t.name: t.most - there[t.name] for t in growth.types})


def _is_of(node: Node, node_type: NodeType) -> bool:
    """Whether a node is of a type: by the name that autoscalers put on it, or by what it has."""
    named = node.labels.get("ray.io/node-group")
    if named is not None:
        return named == node_type.name

    def own(resources: Resources) -> dict[str, float]:
        return {name: amount for name, amount in resources.items() if amount and _is_counted(name)}

    return own(node.total) == own(node_type.resources) and node_type.labels.items() <= node.labels.items()


def _add_node(bundle: Sequence[Request], growth: Growth, room: _Room) -> NodeType | None:
    """The type of node that would hold a bundle with least to spare and of which one more can come; it is counted."""
    places = [_Place.of(t.resources, t.labels, t) for t in growth.types if room.by_type[t.name] > 0]
    best = _best(bundle, places) if room.nodes > 0 else None
    if best is None or best.type is None:
        return None
    room.by_type[best.type.name] -= 1
    room.nodes -= 1
    return best.type


def _short_of(
    bundle: Sequence[Request], bundles: Sequence[Sequence[Request]], places: Sequence[_Place], growth: Growth
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
    return {name: amount for name, amount in _sum(rivals).items() if amount > has[name] + TOLERANCE}


def _why_never(
    bundle: Sequence[Request],
    requests: Sequence[Request],
    nodes: Sequence[Node],
    growth: Growth,
    places: Sequence[_Place],
    short: Mapping[str, float],
) -> str:
    """One line: what is missing where, and what to change."""
    who, keys = " with ".join(r.who for r in bundle), " or ".join(dict.fromkeys(r.config_key for r in bundle))
    asked = "; ".join(text(request) for request in bundle)
    together = " together on one node" if len(bundle) > 1 else ""
    if not any(place.has_room(bundle) for place in places):
        return f"{who} asks for {asked}{together}, and {_nearest(bundle, places)}; change {keys}, or add such a node"
    return (
        f"{who} ({asked}) finds no room beside the others of {len(requests)} actors, which ask for "
        f"{', '.join(_amount(name, amount) for name, amount in short.items())} where it could be "
        f"({has_text(nodes, growth)}); lower {keys} or the number of clients{_turns(keys)}, or add nodes"
    )


def _turns(keys: str) -> str:
    """The keys by which models of these tiers take turns in fewer actors."""
    return f", set {keys.replace('.resources', '.seats')}" if ".resources" in keys else ""


def has_text(nodes: Sequence[Node], growth: Growth) -> str:
    """What there is and what could come, one line: `nodes: 2 with 4 CPU, could come: 3 of type gpu (1 GPU)`."""
    kinds = Counter(", ".join([*_amounts(node.total), *_labels(node.labels)]) or "nothing" for node in nodes)
    there = "; ".join(f"{count} with {kind}" for kind, count in kinds.items()) or "none"
    types = "; ".join(f"{t.most} of type {t.name} ({', '.join(_amounts(t.resources))})" for t in growth.types)
    if not growth.known:
        types = "what the autoscaler knows"
    return f"nodes: {there}{f', could come: {types}' if types else ''}"


def _labels(labels: Labels) -> list[str]:
    """Labels that a person has given."""
    return [f"label {key}={value}" for key, value in sorted(labels.items()) if not key.startswith("ray.io/")]


def _nearest(bundle: Sequence[Request], places: Sequence[_Place]) -> str:
    """What no node has of what is asked for."""
    for name, amount in _sum(bundle).items():
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
