"""Savings as plain text: what is counted, every way's figures, comparisons in words, and formulas where asked for."""

from __future__ import annotations

from collections.abc import Sequence

from hsee_ray.devices.profiles import DeviceProfile
from hsee_ray.planning.cost import Figure, Prices
from hsee_ray.planning.savings import INFERENCES, TierSavings, Way
from hsee_ray.rundir.tables import Rows, align, percent

FIGURES = {
    "bytes": "bytes sent",
    "device_joules": "J on the device",
    "server_joules": "J at the server",
    "joules": "J together",
    "milliseconds": "ms per image",
    "server_seconds": "server core s",
    "money": "money",
}
WAY_NAMES: dict[Way, str] = {
    "split": "gated",
    "exit": "exits alone",
    "cloud": "all to the cloud",
    "device": "all on the device",
}


def render_savings(
    found: Sequence[TierSavings],
    prices: Prices,
    server: tuple[str, DeviceProfile],
    a_month: float | None = None,
    explain: bool = False,
) -> str:
    """What is counted, the figures of every way, what the gated split saves or costs, and each figure's formula.

    `server` by its name; `a_month` images are what the whole fleet is asked in a month.
    """
    names = [name for name in FIGURES if name in found[0].ways["split"].figures]
    headings = {**FIGURES, "money": prices.currency}
    rows: Rows = [["tier", "way", "accuracy", *(headings[name] for name in names), "remark"]]
    for tier in found:
        for way, each in tier.ways.items():
            cells = [_number(each.figures[name].value) for name in names]
            rows.append([tier.tier, WAY_NAMES[way], percent(each.accuracy), *cells, each.obstacle or ""])
    blocks = ["\n".join(_legend(prices, server, a_month)), align(rows)]
    for against in ("cloud", "device", "exit"):
        words: Rows = [[f"gated beside {WAY_NAMES[against]}", *(tier.tier for tier in found)]]
        words.append(["accuracy", *(_points(tier, against) for tier in found)])
        words += [[headings[name], *(tier.words(name, against) for tier in found)] for name in names]
        blocks.append(align(words))
    if explain:
        blocks.append(_formulas(found, names, headings))
    return "\n\n".join([*blocks, _in_short(found[-1], prices, a_month)])


def _in_short(overall: TierSavings, prices: Prices, a_month: float | None) -> str:
    """One sentence: money, or joules without prices, of the gated split beside every other way that is possible."""
    name, unit = ("money", prices.currency) if prices.any else ("joules", "J")
    own = overall.ways["split"].figures[name].value
    beside = []
    for way, each in overall.ways.items():
        if way != "split" and each.obstacle is None:
            other = each.figures[name].value
            apart = (
                "as much as"
                if own == other
                else f"{_number(abs(own - other))} {'more' if own > other else 'less'} than"
            )
            beside.append(f"{apart} {WAY_NAMES[way]} ({_number(other)} at {percent(each.accuracy)})")
    when = "in a million images" if a_month is None else "a month"
    return (
        f"In short, overall: gated takes {_number(own)} {unit} {when} at an accuracy of "
        f"{percent(overall.ways['split'].accuracy)}, {', '.join(beside)}."
    )


def _legend(prices: Prices, server: tuple[str, DeviceProfile], a_month: float | None) -> list[str]:
    name, profile = server
    if a_month is None:
        count = f"Figures of {INFERENCES:,} images of each tier, one at a time; overall: the mean over all clients."
    else:
        count = (
            f"Figures of a month in which all clients together answer {a_month:,.0f} images, each client equally many; "
            "overall is the sum of the tiers."
        )
    lines = [
        count,
        "  gated              the exit answers what it is sure of, features of the rest go to the server",
        "  exits alone        client part and exit on the device, nothing is sent",
        "  all to the cloud   every image is sent raw, the whole network is at the server",
        "  all on the device  the whole network is on the device, nothing is sent",
        "Accuracy is the evaluation's; the whole network's is that with all features sent, in the tier's codec.",
        f"Server {name}: {profile.active_w:g} W for {profile.cores} core{'s' * (profile.cores > 1)}, so "
        f"{profile.core_w:.3g} W for each core at work, at {profile.compute_gflops:g} GFLOP/s: "
        f"{profile.compute_gflops / profile.core_w:.3g} GFLOP per joule."
        if profile.core_w
        else f"Server {name}: draws nothing, by its profile.",
    ]
    if prices.any:
        lines.append(f"{prices.currency}: {'; '.join(_priced(prices))}.")
    return lines


def _priced(prices: Prices) -> list[str]:
    said: list[str] = []
    if prices.per_kwh is not None:
        whose = "devices and server" if prices.per_server_hour is None else "devices"
        said.append(f"{prices.per_kwh:g} per kWh of {whose}")
    if prices.per_gib is not None:
        said.append(f"{prices.per_gib:g} per GiB sent")
    if prices.per_server_hour is not None:
        said.append(f"{prices.per_server_hour:g} per hour of the whole server, electricity included")
    return said


def _points(tier: TierSavings, against: Way) -> str:
    """Percentage points of accuracy that the gated split gains or loses."""
    points = 100 * (tier.ways["split"].accuracy - tier.ways[against].accuracy)
    return f"{abs(points):.1f} points {'more' if points > 0 else 'less'}" if abs(points) >= 0.05 else "the same"


def _formulas(found: Sequence[TierSavings], names: Sequence[str], headings: dict[str, str]) -> str:
    """Each formula once, with every tier's inputs below it, and how overall comes of the lines above."""
    lines: list[str] = []
    for way in found[0].ways:
        for name in names:
            *figures, overall = (tier.ways[way].figures[name] for tier in found)
            shown = figures[0]
            lines.append(f"{WAY_NAMES[way]}: {headings[name]} = {shown.formula}")
            if not shown.inputs:
                continue
            for tier, figure in zip(found, figures, strict=False):
                lines.append(f"    {tier.tier}: {_inputs(figure)} -> {figure.value:.6g}")
            lines.append(f"    overall: {overall.formula} -> {overall.value:.6g}")
    return "\n".join(lines)


def _inputs(figure: Figure) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in figure.inputs.items())


def _number(value: float) -> str:
    """Whole, but for what is below 1,000: that has three digits."""
    return f"{value:,.0f}" if value >= 1000 or value == 0 else f"{value:.3g}"
