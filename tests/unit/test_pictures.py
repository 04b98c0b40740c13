"""Names of users are text in every picture, whatever is in them."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from hsee_ray.config.files import load_config
from hsee_ray.method.strategies import build_fleet
from hsee_ray.pictures import MOST_LETTERS, drawing, shortened, tier_colors
from hsee_ray.rundir.tensorboard import class_counts_figure

NAMES = ["$x$", r"$\frac{$", "a_b^c", r"\alpha", "$$", "100 $", "$ and $"]


def drawn(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def test_dollars_are_no_mathtext() -> None:
    counts = np.ones((2, len(NAMES)), np.int64)
    clients = build_fleet(load_config({"tiers": [{"name": "$x$", "clients": 2, "cut": "a"}]}), ("a", "b")).clients
    figure = class_counts_figure(counts, NAMES, clients)
    with drawing():
        assert len(drawn(figure)) > 1000
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$x$ 000", "$x$ 001"]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == NAMES


@drawing()
def title(text: str) -> Figure:
    figure = Figure((2, 1))
    figure.suptitle(text)
    drawn(figure)
    return figure


@pytest.mark.parametrize("name", NAMES)
def test_a_title_shows_what_the_name_is(name: str) -> None:
    assert not title(name)._suptitle.get_parse_math()  # type: ignore[attr-defined]


def test_no_font_is_asked_for_that_is_not_there() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="findfont")
        title("cat")


def test_ten_tiers_have_ten_colours_that_do_not_change_with_the_number_of_tiers() -> None:
    tiers = [f"tier {number}" for number in range(12)]
    colors = tier_colors(tiers)
    assert len({colors[tier] for tier in tiers[:10]}) == 10
    assert colors["tier 10"] == colors["tier 0"]
    assert tier_colors(tiers[:3]) == {tier: colors[tier] for tier in tiers[:3]}


def test_long_names_lose_their_middle() -> None:
    assert shortened("a" * MOST_LETTERS) == "a" * MOST_LETTERS
    assert shortened("microcontroller-in-the-cellar") == "microcon…e-cellar"
