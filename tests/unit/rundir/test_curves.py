"""The picture of a run's curves, from rows written by hand."""

from __future__ import annotations

import io

import pytest

from hsee_ray.pictures import tier_colors
from hsee_ray.rundir.curves import draw_curves
from hsee_ray.rundir.metrics import MetricRow


def test_all_tiers_stand_in_one_panel_in_their_colours() -> None:
    rows = [
        MetricRow(number, client, tier, metric, tau, value)
        for client, tier, value in ((0, "sensor", 0.2), (1, "sensor", 0.4), (2, "phone", 0.9))
        for metric, tau in (("client_accuracy", None), ("gated_accuracy", 0.5), ("gated_accuracy", 0.9))
        for number in (2, 4)
    ]
    figure = draw_curves([*rows, MetricRow(1, None, None, "wall_s", None, 1.0)], ("sensor", "phone"), 0.5)
    accuracy, server = figure.axes[:2]
    curves = {line.get_label(): line for line in accuracy.lines}
    assert list(curves) == ["sensor", "phone", "overall"]
    assert curves["sensor"].get_xydata().tolist() == [[2, pytest.approx(30)], [4, pytest.approx(30)]]
    assert curves["overall"].get_ydata().tolist() == pytest.approx([50, 50])
    assert [line.get_color() for line in accuracy.lines] == [*tier_colors(["sensor", "phone"]).values(), "black"]
    assert figure.axes[2].get_title() == "accuracy behind the gate, tau 0.5 (%)"
    assert all(not len(line.get_xdata()) for line in server.lines), "nothing is known of servers"
    assert len(figure.legends) == 1
    figure.savefig(io.BytesIO())
