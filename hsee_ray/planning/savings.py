"""Savings of exits at a cut: images gated and split, against exits alone, all in the cloud, and all on the device.

Shares, bytes and accuracies come from a run's evaluation, seconds and watts from device profiles. What an image costs
is said in `planning.cost`. Needs no torch.

One inference is one image, alone: a device computes its part, and sends what it is not sure of in a message of its own.
Answers that come back are a few bytes; they cost their latency and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hsee_ray.planning.cost import (
    ONE,
    ZERO,
    Figure,
    Prices,
    Rates,
    Use,
    device_joules,
    milliseconds,
    money,
    named,
    server_joules,
    server_seconds,
)

INFERENCES = 1_000_000

Way = Literal["split", "exit", "cloud", "device"]
WAYS: tuple[Way, ...] = ("split", "exit", "cloud", "device")
"""Gated at the cut; the exits alone, nothing sent; all images sent raw; the whole network on the device."""
MEANS = ("milliseconds",)
"""Figures of one image; all others are sums over images."""


@dataclass(frozen=True)
class TierInputs(Rates):
    """Figures of one tier's exits, its device, and the server. Seconds are per image."""

    tier: str
    clients: int
    cut: str
    offload_ratio: float
    """Share of the samples that the calibrated gate sends on."""
    sent_bytes: float
    """Features that are sent, spread over all samples that the device is asked about."""
    image_bytes: float
    """One raw image."""
    client_s: float
    """Client part and exit on the device."""
    server_s: float
    """Server part on a core of the server."""
    whole_device_s: float
    whole_server_s: float
    whole_memory_bytes: float
    """Parameters of the whole network, and its largest unit at work on one image."""
    memory_bytes: float
    """Of the device."""
    gated_accuracy: float
    exit_accuracy: float
    """Of the exits alone."""
    whole_accuracy: float
    """Of the whole network, with all features sent in the tier's codec."""


@dataclass(frozen=True)
class WayFigures:
    """One way to answer images."""

    way: Way
    accuracy: float
    figures: Mapping[str, Figure]
    """By a name that says the unit: bytes, device_joules, server_joules, joules, milliseconds (of one image),
    server_seconds (of one core), and money where priced."""
    obstacle: str | None = None
    """Why it cannot be done; its figures are what it would cost otherwise."""


@dataclass(frozen=True)
class TierSavings:
    """All ways of one tier, or of all together."""

    tier: str
    ways: Mapping[Way, WayFigures]

    def saved(self, figure: str, against: Way) -> float | None:
        """Share of another way's figure that the split saves; below 0 it costs more, None where the other has 0."""
        other = self.ways[against].figures[figure].value
        return 1 - self.ways["split"].figures[figure].value / other if other else None

    def words(self, figure: str, against: Way) -> str:
        """The same in words: `saves 86.0 %`, `costs 13.2 % more`, `costs 28.8 times as much`."""
        return comparison(self.ways["split"].figures[figure].value, self.ways[against].figures[figure].value)


def comparison(own: float, other: float) -> str:
    """What the first costs beside the second, in words."""
    if own == other:
        return "the same"
    if other == 0:
        return "more than 0"
    ratio = own / other
    if ratio < 1:
        return f"saves {100 * (1 - ratio):.1f} %"
    return f"costs {100 * (ratio - 1):.1f} % more" if ratio < 2 else f"costs {ratio:,.1f} times as much"


def savings_values(found: Sequence[TierSavings]) -> list[dict[str, Any]]:
    """The figures as plain values, for JSON."""
    return [
        {
            "tier": tier.tier,
            "ways": {
                way: {
                    "accuracy": each.accuracy,
                    "obstacle": each.obstacle,
                    "figures": {
                        name: {"value": figure.value, "formula": figure.formula, "inputs": dict(figure.inputs)}
                        for name, figure in each.figures.items()
                    },
                }
                for way, each in tier.ways.items()
            },
            "saved": {way: {name: tier.saved(name, way) for name in tier.ways[way].figures} for way in WAYS[1:]},
        }
        for tier in found
    ]


def savings(tiers: Sequence[TierInputs], prices: Prices, a_month: float | None = None) -> list[TierSavings]:
    """Figures of every tier, and of all together: every client is asked equally often.

    Of a million images of each tier, and in the mean; or of `a_month` images that the whole fleet is asked in a month:
    each tier's share of them, and the sum.
    """
    clients = sum(tier.clients for tier in tiers)
    found: list[TierSavings] = []
    for tier in tiers:
        n = named("n", INFERENCES if a_month is None else a_month * tier.clients / clients)
        found.append(TierSavings(tier.tier, {way: _way(tier, way, n, prices) for way in WAYS}))
    return [*found, _overall(tiers, found, is_sum=a_month is not None)]


def use_of(tier: TierInputs, way: Way) -> Use:
    """What one image takes in a way."""
    of = {name: named(name, value) for name, value in vars(tier).items() if not isinstance(value, str)}
    if way == "split":
        return Use(of["client_s"], of["sent_bytes"], of["offload_ratio"], of["server_s"])
    if way == "exit":
        return Use(of["client_s"], ZERO, ZERO, ZERO)
    if way == "cloud":
        return Use(ZERO, of["image_bytes"], ONE, of["whole_server_s"])
    return Use(of["whole_device_s"], ZERO, ZERO, ZERO)


def _way(tier: TierInputs, way: Way, n: Figure, prices: Prices) -> WayFigures:
    use = use_of(tier, way)
    on_device, at_server = device_joules(n, use, tier), server_joules(n, use, tier)
    sent, core_s = n * use.sent_bytes, server_seconds(n, use)
    figures = {
        "bytes": sent,
        "device_joules": on_device,
        "server_joules": at_server,
        "joules": named("device_joules", on_device.value) + named("server_joules", at_server.value),
        "milliseconds": milliseconds(use, tier),
        "server_seconds": core_s,
    }
    if prices.any:
        figures["money"] = money(on_device, at_server, sent, core_s, tier.server_cores, prices)
    obstacle = None
    if way == "device" and tier.whole_memory_bytes > tier.memory_bytes:
        need, have = tier.whole_memory_bytes / 2**20, tier.memory_bytes / 2**20
        obstacle = f"does not fit: needs {need:,.2f} MiB, the device has {have:,.2f} MiB"
    accuracies = {"split": tier.gated_accuracy, "exit": tier.exit_accuracy}
    return WayFigures(way, accuracies.get(way, tier.whole_accuracy), figures, obstacle)


def _overall(tiers: Sequence[TierInputs], found: Sequence[TierSavings], is_sum: bool) -> TierSavings:
    """Sums over the tiers, or means over the clients: a tier counts as often as it has some."""
    clients = sum(tier.clients for tier in tiers)

    def mean(values: Mapping[str, float]) -> float:
        return sum(tier.clients * values[tier.tier] for tier in tiers) / clients

    weighted = f"({' + '.join(f'{tier.clients} * {tier.tier}' for tier in tiers)}) / {clients}"
    ways: dict[Way, WayFigures] = {}
    for way in WAYS:
        figures = {}
        for name in found[0].ways[way].figures:
            values = {each.tier: each.ways[way].figures[name].value for each in found}
            if is_sum and name not in MEANS:
                figures[name] = Figure(sum(values.values()), " + ".join(values), values)
            else:
                figures[name] = Figure(mean(values), weighted, values)
        wanting = [each.tier for each in found if each.ways[way].obstacle is not None]
        obstacle = f"does not fit on the devices of {', '.join(wanting)}" if wanting else None
        accuracy = mean({each.tier: each.ways[way].accuracy for each in found})
        ways[way] = WayFigures(way, accuracy, figures, obstacle)
    return TierSavings("overall", ways)
