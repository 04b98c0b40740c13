"""Names of users are text in every picture, whatever is in them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from hsee_ray.pictures import drawing
from hsee_ray.rundir.tensorboard import class_counts_figure, save_class_counts

NAMES = ["$x$", r"$\frac{$", "a_b^c", r"\alpha", "$$", "100 $", "$ and $"]


def drawn(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file)
    return file.getvalue()


def test_dollars_are_no_mathtext(tmp_path: Path) -> None:
    counts = np.ones((2, len(NAMES)), np.int64)
    save_class_counts(tmp_path / "counts.png", counts, NAMES)
    assert (tmp_path / "counts.png").stat().st_size > 1000
    labels = [label.get_text() for label in class_counts_figure(counts, NAMES).axes[0].get_xticklabels()]
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
