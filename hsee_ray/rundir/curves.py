"""The picture of a run's curves: every figure with all tiers in one panel, in the tiers' colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from hsee_ray.pictures import OVERALL_COLOR, drawing, new_figure, shortened, tier_colors
from hsee_ray.rundir.metrics import MetricRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERALL = "overall"
_FEW_POINTS = 30
"""Up to which points are marked."""


@drawing()
def draw_curves(rows: Iterable[MetricRow], tiers: Sequence[str], tau: float) -> Figure:
    """Six panels against the round: accuracies of exits, servers and the gate at `tau`, share sent, both losses.

    Curves are means over the clients of a tier, and over all clients (dashed).
    """
    panels = {
        ("client_accuracy", None): ("accuracy of exits (%)", 100),
        ("server_accuracy", None): ("accuracy of servers (%)", 100),
        ("gated_accuracy", tau): (f"accuracy behind the gate, tau {tau:g} (%)", 100),
        ("client_loss", None): ("loss of exits (nats)", 1),
        ("server_loss", None): ("loss of servers (nats)", 1),
        ("offload_ratio", tau): (f"samples sent to the server, tau {tau:g} (%)", 100),
    }
    figure = new_figure(12.5, 7.2)
    colors = {**tier_colors(tiers), OVERALL: OVERALL_COLOR}
    curves = _curves(rows, panels.keys())
    for axes, (key, (title, factor)) in zip(figure.subplots(2, 3, sharex=True).flat, panels.items(), strict=True):
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.25)
        for group, color in colors.items():
            points = curves.get((*key, group), {})
            values = [factor * fmean(points[number]) for number in sorted(points)]
            mark, line = ("." if len(values) <= _FEW_POINTS else ""), ("--" if group == OVERALL else "-")
            axes.plot(sorted(points), values, color=color, marker=mark, linestyle=line, label=shortened(group))
        axes.xaxis.get_major_locator().set_params(integer=True)
        if factor == 100:
            axes.set_ylim(-2, 102)
    for axes in figure.axes[3:]:
        axes.set_xlabel("round")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=10)
    return figure


def _curves(
    rows: Iterable[MetricRow], wanted: Iterable[tuple[str, float | None]]
) -> Mapping[tuple[str, float | None, str], dict[int, list[float]]]:
    """Values of clients by metric, tau and tier (or overall), then by round."""
    keys = set(wanted)
    found: dict[tuple[str, float | None, str], dict[int, list[float]]] = {}
    for row in rows:
        if row.client is not None and (row.metric, row.tau) in keys:
            for group in (str(row.tier), OVERALL):
                found.setdefault((row.metric, row.tau, group), {}).setdefault(row.round, []).append(row.value)
    return found
