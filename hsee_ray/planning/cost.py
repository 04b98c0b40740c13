"""The cost of answering one image: bytes, joules, milliseconds and money, each in one function, with its formula.

Arithmetic on `Figure` writes the formula down as it goes, so that what is shown is what was reckoned. Needs no torch.

Nothing is counted twice: a device's joules are its own, a server's are those of the cores in use, and electricity is
paid for where no rented hour pays for it already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hsee_ray.errors import ConfigError

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Figure:
    """A number with its derivation."""

    value: float
    formula: str
    """In the names of `inputs`."""
    inputs: Mapping[str, float]
    is_sum: bool = False

    def __add__(self, other: Figure) -> Figure:
        if ZERO in (self, other):
            return self if other == ZERO else other
        inputs = {**self.inputs, **other.inputs}
        return Figure(self.value + other.value, f"{self.formula} + {other.formula}", inputs, is_sum=True)

    def __mul__(self, other: Figure) -> Figure:
        if ZERO in (self, other):
            return ZERO
        if ONE in (self, other):
            return self if other == ONE else other
        return self._with("*", other, self.value * other.value)

    def __truediv__(self, other: Figure) -> Figure:
        return self if self == ZERO else self._with("/", other, self.value / other.value)

    def _with(self, sign: str, other: Figure, value: float) -> Figure:
        """Divisors are single names or numbers here, so only sums need brackets."""
        left, right = (f"({each.formula})" if each.is_sum else each.formula for each in (self, other))
        return Figure(value, f"{left} {sign} {right}", {**self.inputs, **other.inputs})


def named(name: str, value: float) -> Figure:
    return Figure(value, name, {name: value})


def number(value: float) -> Figure:
    return Figure(value, f"{value:.15g}", {})


ZERO, ONE = number(0), number(1)


@dataclass(frozen=True)
class Rates:
    """What a device, its link and the server cost for each second or byte."""

    active_w: float
    """Of the device, all of it: it serves nobody else."""
    radio_w: float
    uplink_bytes_s: float
    """Of the device, which is on the air so long as its own uplink takes."""
    link_bytes_s: float
    """The slower of the device's uplink and the server's downlink."""
    latency_s: float
    """One way, for each message."""
    server_active_w: float
    """Of the whole machine."""
    server_cores: int


@dataclass(frozen=True)
class Use:
    """What one image takes in one way to answer it; seconds are of computing."""

    device_s: Figure
    sent_bytes: Figure
    """In the mean over all images."""
    asked: Figure
    """Share of the images that the server is asked about."""
    server_s: Figure
    """On one core, for each image that it is asked about."""


@dataclass(frozen=True)
class Prices:
    """Money for what is used; None: no price is known, and none is reckoned with."""

    per_kwh: float | None = None
    """Of electricity."""
    per_gib: float | None = None
    """Of traffic from devices."""
    per_server_hour: float | None = None
    """Of the whole server with its electricity."""
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name, price in self._given().items():
            if not (math.isfinite(price) and price >= 0):
                raise ConfigError(f"--price-{name.replace('_', '-')} {price:g}: a price is 0 or more")

    @property
    def any(self) -> bool:
        return bool(self._given())

    def _given(self) -> dict[str, float]:
        given = {"per_kwh": self.per_kwh, "per_gib": self.per_gib, "per_server_hour": self.per_server_hour}
        return {name: price for name, price in given.items() if price is not None}


def device_joules(n: Figure, use: Use, rates: Rates) -> Figure:
    """Joules of a device over n images:

    n * (active_w * device_s + radio_w * sent_bytes / uplink_bytes_s)
    """
    radio = named("radio_w", rates.radio_w) * use.sent_bytes / named("uplink_bytes_s", rates.uplink_bytes_s)
    return n * (named("active_w", rates.active_w) * use.device_s + radio)


def server_seconds(n: Figure, use: Use) -> Figure:
    """Seconds of one core of the server over n images: n * asked * server_s."""
    return n * use.asked * use.server_s


def server_joules(n: Figure, use: Use, rates: Rates) -> Figure:
    """Joules of the server over n images, each core in use charged its share of the whole machine:

    n * asked * server_s * server_active_w / server_cores
    """
    watts, cores = named("server_active_w", rates.server_active_w), named("server_cores", rates.server_cores)
    return server_seconds(n, use) * watts / cores


def milliseconds(use: Use, rates: Rates) -> Figure:
    """Milliseconds from an image to its answer, in the mean:

    1000 * (device_s + sent_bytes / link_bytes_s + asked * (2 * latency_s + server_s))
    """
    there_and_back = number(2) * named("latency_s", rates.latency_s)
    on_link = use.sent_bytes / named("link_bytes_s", rates.link_bytes_s)
    return number(1000) * (use.device_s + on_link + use.asked * (there_and_back + use.server_s))


def money(device_j: Figure, server_j: Figure, sent: Figure, server_s: Figure, cores: int, prices: Prices) -> Figure:
    """Money for device and server joules, bytes, and seconds of a server's core:

        price_per_kwh * (device_joules + server_joules) / 3.6e6 + price_per_gib * bytes / 2**30
            + price_per_server_hour * server_seconds / 3600 / server_cores

    A rented hour contains its electricity: with its price, the server's joules are not paid for again. It buys all
    cores of the server, of which one is used.
    """
    total = ZERO
    if prices.per_kwh is not None:
        joules = _renamed("device_joules", device_j)
        if prices.per_server_hour is None:
            joules = joules + _renamed("server_joules", server_j)
        total = named("price_per_kwh", prices.per_kwh) * joules / number(JOULES_PER_KWH)
    if prices.per_gib is not None:
        total = total + named("price_per_gib", prices.per_gib) * _renamed("bytes", sent) / number(2**30)
    if prices.per_server_hour is not None:
        hours = _renamed("server_seconds", server_s) / number(3600) / named("server_cores", cores)
        total = total + named("price_per_server_hour", prices.per_server_hour) * hours
    return total


def _renamed(name: str, figure: Figure) -> Figure:
    """A figure as an input of another, by its own name."""
    return ZERO if figure == ZERO else named(name, figure.value)
