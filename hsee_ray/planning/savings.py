"""Savings of exits at a cut: a million inferences gated and split, against all of them in the cloud or on the device.

Every figure carries the formula that it comes from and the inputs of that formula. Nothing here is measured: shares and
bytes come from a run's evaluation, seconds and watts from device profiles. Needs no torch.

One inference is one image, alone: a device computes its part, and sends what it is not sure of in a message of its own.
Answers that come back are a few bytes; they cost their latency and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hsee_ray.errors import ConfigError

INFERENCES = 1_000_000
JOULES_PER_KWH = 3.6e6

Way = Literal["split", "cloud", "device"]
WAYS: tuple[Way, ...] = ("split", "cloud", "device")
"""Gated at the cut; all images sent raw; the whole network on the device."""


@dataclass(frozen=True)
class Figure:
    """A number with its derivation: arithmetic on figures writes the formula down as it goes."""

    value: float
    formula: str
    """In the names of `inputs`."""
    inputs: Mapping[str, float]
    is_sum: bool = False

    def __add__(self, other: Figure) -> Figure:
        inputs = {**self.inputs, **other.inputs}
        return Figure(self.value + other.value, f"{self.formula} + {other.formula}", inputs, is_sum=True)

    def __mul__(self, other: Figure) -> Figure:
        return self._with("*", other, self.value * other.value)

    def __truediv__(self, other: Figure) -> Figure:
        return self._with("/", other, self.value / other.value)

    def _with(self, sign: str, other: Figure, value: float) -> Figure:
        """Divisors are single names or numbers here, so only sums need brackets."""
        left, right = (f"({each.formula})" if each.is_sum else each.formula for each in (self, other))
        return Figure(value, f"{left} {sign} {right}", {**self.inputs, **other.inputs})


def _named(name: str, value: float) -> Figure:
    return Figure(value, name, {name: value})


def _number(value: float) -> Figure:
    return Figure(value, f"{value:.15g}", {})


@dataclass(frozen=True)
class TierInputs:
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
    active_w: float
    radio_w: float
    uplink_bytes_s: float
    """Of the device, which is on the air so long as its own uplink takes."""
    link_bytes_s: float
    """The slower of the device's uplink and the server's downlink."""
    latency_s: float
    """One way, for each message."""
    server_active_w: float
    server_cores: int
    whole_memory_bytes: float
    """Parameters of the whole network, and its largest unit at work on one image."""
    memory_bytes: float
    """Of the device."""


@dataclass(frozen=True)
class Prices:
    """Money for what is used; None: no price is known, and none is reckoned with."""

    per_kwh: float | None = None
    per_gib: float | None = None
    per_server_hour: float | None = None

    def __post_init__(self) -> None:
        for name, price in vars(self).items():
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise ConfigError(f"--price-{name.replace('_', '-')} {price:g}: a price is 0 or more")

    @property
    def any(self) -> bool:
        return any(price is not None for price in vars(self).values())


@dataclass(frozen=True)
class WayFigures:
    """One way to answer a million images."""

    way: Way
    figures: Mapping[str, Figure]
    """By a name that says the unit: bytes, device_joules, server_joules, joules, milliseconds, server_seconds (of
    one core), and money where priced."""
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


def savings_values(found: Sequence[TierSavings]) -> list[dict[str, Any]]:
    """The figures as plain values, for JSON."""
    return [
        {
            "tier": tier.tier,
            "ways": {
                way: {
                    "obstacle": each.obstacle,
                    "figures": {
                        name: {"value": figure.value, "formula": figure.formula, "inputs": dict(figure.inputs)}
                        for name, figure in each.figures.items()
                    },
                }
                for way, each in tier.ways.items()
            },
        }
        for tier in found
    ]


def savings(tiers: Sequence[TierInputs], prices: Prices) -> list[TierSavings]:
    """Figures of every tier, and of all together: every client is asked equally often."""
    found = [TierSavings(tier.tier, {way: _way(tier, way, prices) for way in WAYS}) for tier in tiers]
    return [*found, _overall(tiers, found)]


def _way(tier: TierInputs, way: Way, prices: Prices) -> WayFigures:
    figures = {"split": _split, "cloud": _cloud, "device": _device}[way](tier)
    parts = (_named(name, figures[name].value) for name in ("device_joules", "server_joules"))
    figures["joules"] = next(parts) + next(parts)
    if prices.any:
        figures["money"] = _money(figures, tier.server_cores, prices)
    obstacle = None
    if way == "device" and tier.whole_memory_bytes > tier.memory_bytes:
        need, have = tier.whole_memory_bytes / 2**20, tier.memory_bytes / 2**20
        obstacle = f"does not fit: needs {need:,.2f} MiB, the device has {have:,.2f} MiB"
    return WayFigures(way, figures, obstacle)


def _split(tier: TierInputs) -> dict[str, Figure]:
    of, n, thousand, two = _inputs(tier), _named("n", INFERENCES), _number(1000), _number(2)
    asked = of["sent_bytes"] / of["link_bytes_s"] + of["offload_ratio"] * (two * of["latency_s"] + of["server_s"])
    on_air_s = of["sent_bytes"] / of["uplink_bytes_s"]
    return {
        "bytes": n * of["sent_bytes"],
        "device_joules": n * (of["active_w"] * of["client_s"] + of["radio_w"] * on_air_s),
        "server_joules": n * of["offload_ratio"] * of["server_s"] * of["server_active_w"],
        "server_seconds": n * of["offload_ratio"] * of["server_s"],
        "milliseconds": n * thousand * (of["client_s"] + asked),
    }


def _cloud(tier: TierInputs) -> dict[str, Figure]:
    of, n, thousand, two = _inputs(tier), _named("n", INFERENCES), _number(1000), _number(2)
    on_link_s = of["image_bytes"] / of["link_bytes_s"]
    return {
        "bytes": n * of["image_bytes"],
        "device_joules": n * of["radio_w"] * of["image_bytes"] / of["uplink_bytes_s"],
        "server_joules": n * of["whole_server_s"] * of["server_active_w"],
        "server_seconds": n * of["whole_server_s"],
        "milliseconds": n * thousand * (on_link_s + two * of["latency_s"] + of["whole_server_s"]),
    }


def _device(tier: TierInputs) -> dict[str, Figure]:
    of, n, thousand = _inputs(tier), _named("n", INFERENCES), _number(1000)
    return {
        "bytes": _number(0),
        "device_joules": n * of["active_w"] * of["whole_device_s"],
        "server_joules": _number(0),
        "server_seconds": _number(0),
        "milliseconds": n * thousand * of["whole_device_s"],
    }


def _inputs(tier: TierInputs) -> dict[str, Figure]:
    return {name: _named(name, value) for name, value in vars(tier).items() if not isinstance(value, str)}


def _money(figures: Mapping[str, Figure], server_cores: int, prices: Prices) -> Figure:
    """Priced quantities: energy, traffic and server time. A server uses all its cores in parallel."""
    priced: list[Figure] = []
    if prices.per_kwh is not None:
        joules = _named("joules", figures["joules"].value)
        priced.append(_named("price_per_kwh", prices.per_kwh) * joules / _number(JOULES_PER_KWH))
    if prices.per_gib is not None:
        sent = _named("bytes", figures["bytes"].value)
        priced.append(_named("price_per_gib", prices.per_gib) * sent / _number(2**30))
    if prices.per_server_hour is not None:
        seconds = _named("server_seconds", figures["server_seconds"].value)
        hours = seconds / _number(3600) / _named("server_cores", server_cores)
        priced.append(_named("price_per_server_hour", prices.per_server_hour) * hours)
    total = priced[0]
    for each in priced[1:]:
        total = total + each
    return total


def _overall(tiers: Sequence[TierInputs], found: Sequence[TierSavings]) -> TierSavings:
    """Means over the clients: a tier counts as often as it has some."""
    clients = sum(tier.clients for tier in tiers)
    formula = f"({' + '.join(f'{tier.clients} * {tier.tier}' for tier in tiers)}) / {clients}"
    ways: dict[Way, WayFigures] = {}
    for way in WAYS:
        figures = {}
        for name in found[0].ways[way].figures:
            values = {each.tier: each.ways[way].figures[name].value for each in found}
            mean = sum(tier.clients * values[tier.tier] for tier in tiers) / clients
            figures[name] = Figure(mean, formula, values)
        wanting = [each.tier for each in found if each.ways[way].obstacle is not None]
        obstacle = f"does not fit on the devices of {', '.join(wanting)}" if wanting else None
        ways[way] = WayFigures(way, figures, obstacle)
    return TierSavings("overall", ways)
