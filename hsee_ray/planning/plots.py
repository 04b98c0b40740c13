"""The picture of a plan: what a round takes of every tier at every cut, split into compute, upload and server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hsee_ray.pictures import BLUE, ORANGE, RED, TEAL, drawing, new_figure, shortened, tier_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hsee_ray.planning.report import Plan, TierPlan

COLUMNS = 4
PARTS = (("compute_s", "compute", BLUE), ("upload_s", "upload", ORANGE), ("server_s", "server", TEAL))
"""Parts of a client's round, which overlap: they stand side by side, not on top of each other."""
WIDTH = 0.26
LOGARITHMIC_FROM = 50.0
"""Ratio of the longest bar to the median one from which seconds are shown on a logarithmic scale."""
LEAST_SHOWN = 1e-5
"""Of the longest bar: what is shorter is not seen on that scale, and would take the room of what matters."""


@drawing()
def draw_plan(plan: Plan) -> Figure:
    """One panel per tier. A star marks the cut of the plan; cuts that the device cannot hold are shaded."""
    columns = min(len(plan.tiers), COLUMNS)
    rows = -(-len(plan.tiers) // columns)
    cuts = max(len(tier.cuts) for tier in plan.tiers)
    width = max(4.2, 0.42 * cuts)
    figure = new_figure(max(width * columns, 8.8) + 0.4, 4.0 * rows + 1.2)
    limit = "" if plan.limit_s is None else f", rounds of at most {plan.limit_s:g} s"
    figure.suptitle(f"a round at every cut, planned for the least {plan.objective}{limit}", fontsize=13)
    seconds = [getattr(cut, name) for tier in plan.tiers for cut in tier.cuts for name, _, _ in PARTS]
    above = [value for value in seconds if value > 0]
    logarithmic = bool(above) and max(above) > LOGARITHMIC_FROM * float(np.median(above))
    colors = tier_colors(tier.tier for tier in plan.tiers)
    shared = None
    for index, tier in enumerate(plan.tiers):
        axes = figure.add_subplot(rows, columns, index + 1, sharey=shared)
        shared = shared or axes
        _draw_tier(axes, tier, colors[tier.tier])
        axes.set_yscale("log" if logarithmic else "linear")
        if logarithmic:
            axes.set_ylim(bottom=max(min(above), LEAST_SHOWN * max(above)))
            axes.yaxis.set_major_formatter("{x:g}")
        if index % columns == 0:
            axes.set_ylabel("seconds of a round" + (" (logarithmic)" if logarithmic else ""))
        if plan.limit_s is not None:
            axes.axhline(plan.limit_s, color="black", linewidth=1.0, linestyle=":", label="longest round allowed")
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4, fontsize=10)
    return figure


def _draw_tier(axes: Axes, tier: TierPlan, color: str) -> None:
    places = np.arange(len(tier.cuts))
    for offset, (name, label, part_color) in enumerate(PARTS):
        heights = [getattr(cut, name) for cut in tier.cuts]
        axes.bar(places + (offset - 1) * WIDTH, heights, WIDTH, color=part_color, label=label)
    rounds = [cut.round_s for cut in tier.cuts]
    axes.plot(places, rounds, "_", color="black", markersize=14, label="round of the fleet with this cut")
    for place, cut in zip(places, tier.cuts, strict=True):
        if cut.need_bytes > tier.device_bytes:
            axes.axvspan(
                place - 0.5, place + 0.5, color=RED, alpha=0.15, linewidth=0, zorder=0, label="does not fit the device"
            )
    axes.plot(
        tier.cut - 1, rounds[tier.cut - 1], "*", color=color, markeredgecolor="black", markersize=15, zorder=4,
        label="the plan's cut (in its tier's colour)",
    )  # fmt: skip
    axes.set_xticks(places, [shortened(cut.name) for cut in tier.cuts], rotation=90, fontsize=9)
    axes.set_xlabel("last unit on the device")
    axes.set_title(f"{shortened(tier.tier)}: {tier.clients} x {shortened(tier.device)}", fontsize=11, color=color)
    axes.grid(axis="y", alpha=0.25)
