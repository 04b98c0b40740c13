"""Resources of nodes and requests for them: the value types of the capacity check. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Resources = Mapping[str, float]
Labels = Mapping[str, str]

TOLERANCE = 1e-4
"""Ray counts resources in steps of 0.0001."""


@dataclass(frozen=True)
class Request:
    """Resource request of one actor."""

    who: str
    tier: str
    """Its tier's name; of servers `servers`."""
    config_key: str
    """Key of the request in the configuration."""
    resources: Resources
    label_selector: Labels = field(default_factory=dict)
    pair: int | None = None
    """Requests with the same number go to one node."""


@dataclass(frozen=True)
class Node:
    """A node that is there."""

    total: Resources
    free: Resources
    """Free resources."""
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
    """Nodes that an autoscaler can add."""

    types: tuple[NodeType, ...] = ()
    most_nodes: int = 0
    """Nodes of all types together, beside the head."""
    head: Node | None = None
    """The node that is there from the beginning, as far as the file says."""
    known: bool = True
    """False when there is an autoscaler and nobody has said what it can add."""


def matches(selector: Labels, labels: Labels) -> bool:
    """Whether a node's labels are what a selector asks for: `value`, `!value`, `in(a,b)` or `!in(a,b)`."""
    for key, wanted in selector.items():
        negated, body = wanted.startswith("!"), wanted.removeprefix("!")
        among = re.fullmatch(r"in\((.*)\)", body)
        values = [value.strip() for value in among[1].split(",")] if among else [body]
        if (labels.get(key) in values) == negated:
            return False
    return True


@dataclass
class Place:
    """A node, as far as it is free."""

    free: dict[str, float]
    gpus: list[float]
    """Free share of each GPU."""
    labels: Labels
    type: NodeType | None
    """Of a node that is not there yet; how much memory it has is not known."""

    @classmethod
    def of(cls, resources: Resources, labels: Labels, node_type: NodeType | None = None) -> Place:
        """A node with so much free."""
        free = dict(resources)
        amount = free.pop("GPU", 0.0)
        gpus = [1.0] * int(amount + TOLERANCE)
        rest = amount - len(gpus)
        return cls(free, [*gpus, rest] if rest > TOLERANCE else gpus, labels, node_type)

    def has_room(self, bundle: Sequence[Request]) -> bool:
        """Whether requests that belong together fit here, with the labels that they ask for."""
        enough = all(
            self.free.get(name, 0.0) + TOLERANCE > amount
            for name, amount in total_of(bundle).items()
            if amount > 0 and name != "GPU" and not (name == "memory" and self.type and name not in self.free)
        )
        labelled = all(matches(request.label_selector, self.labels) for request in bundle)
        return enough and self._gpus_after(bundle) is not None and labelled

    def take(self, bundle: Sequence[Request]) -> None:
        """Gives away what they ask for; there must be room."""
        for name, amount in total_of(bundle).items():
            if name in self.free:
                self.free[name] -= amount
        gpus = self._gpus_after(bundle)
        assert gpus is not None
        self.gpus = gpus

    def spare(self, bundle: Sequence[Request]) -> tuple[int, int, float]:
        """Rank of this node for a bundle by what it would leave unused: kinds of resources, labels, amounts."""
        wanted = total_of(bundle)
        left = {name: amount for name, amount in self.free.items() if is_counted(name) and amount > 0}
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
    """GPUs left when one actor has taken its amount: whole ones, or a fraction of one. None: no room."""
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


def total_of(requests: Iterable[Request]) -> dict[str, float]:
    """Sums of what is asked for."""
    totals: dict[str, float] = {}
    for request in requests:
        for name, amount in request.resources.items():
            totals[name] = totals.get(name, 0.0) + amount
    return totals


def is_counted(name: str) -> bool:
    """Whether a resource tells nodes apart: memory, which all have, does not."""
    return name not in ("memory", "object_store_memory") and not name.startswith("node:")
