"""The picture of a plan: what a round takes of every tier at every cut, split into compute, upload and server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from hsee_ray.evaluation.plots import CLIENT, COLUMNS, RIGHT, SERVER, WRONG
from hsee_ray.pictures import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hsee_ray.planning.report import Plan, TierPlan

PARTS = (("compute_s", "compute", CLIENT), ("upload_s", "upload", SERVER), ("server_s", "server", RIGHT))
"""Parts of a client's round, which overlap: they stand side by side, not on top of each other."""
WIDTH = 0.26
LOGARITHMIC_FROM = 50.0
"""Ratio of the longest bar to the median one from which seconds are shown on a logarithmic scale."""


@drawing()
def draw_plan(plan: Plan) -> Figure:
    """One panel per tier. A star marks the cut of the plan; cuts that the device cannot hold are shaded."""
    columns = min(len(plan.tiers), COLUMNS)
    rows = -(-len(plan.tiers) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.4, 3.8 * rows + 0.6), dpi=120, layout="constrained")
    limit = "" if plan.limit_s is None else f", rounds of at most {plan.limit_s:g} s"
    figure.suptitle(
        f"a round per cut and tier, planned for the least {plan.objective}{limit}; shaded: does not fit", fontsize=11
    )
    seconds = [getattr(cut, name) for tier in plan.tiers for cut in tier.cuts for name, _, _ in PARTS]
    above = [value for value in seconds if value > 0]
    logarithmic = bool(above) and max(above) > LOGARITHMIC_FROM * float(np.median(above))
    shared = None
    for index, tier in enumerate(plan.tiers):
        axes = figure.add_subplot(rows, columns, index + 1, sharey=shared)
        shared = shared or axes
        _draw_tier(axes, tier)
        axes.set_yscale("log" if logarithmic else "linear")
        if index % columns == 0:
            axes.set_ylabel("seconds")
        if plan.limit_s is not None:
            axes.axhline(plan.limit_s, color="black", linewidth=0.8, linestyle=":", label="bound")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    return figure


def _draw_tier(axes: Axes, tier: TierPlan) -> None:
    places = np.arange(len(tier.cuts))
    for offset, (name, label, color) in enumerate(PARTS):
        heights = [getattr(cut, name) for cut in tier.cuts]
        axes.bar(places + (offset - 1) * WIDTH, heights, WIDTH, color=color, label=label)
    rounds = [cut.round_s for cut in tier.cuts]
    axes.plot(places, rounds, "_", color="black", markersize=14, label="round of the fleet")
    for place, cut in zip(places, tier.cuts, strict=True):
        if cut.need_bytes > tier.device_bytes:
            axes.axvspan(place - 0.5, place + 0.5, color=WRONG, alpha=0.12, linewidth=0, zorder=0)
    axes.plot(tier.cut - 1, rounds[tier.cut - 1], "*", color="black", markersize=12, label="the plan's cut")
    axes.set_xticks(places, [cut.name for cut in tier.cuts], rotation=60, ha="right", fontsize=8)
    axes.set_title(f"{tier.tier}: {tier.clients} x {tier.device}", fontsize=10)
    axes.grid(axis="y", alpha=0.25)
