"""How every picture is drawn: settings, the colour of each tier, heat maps that can be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

# matplotlib is imported when the first picture is drawn: training begins before that.
if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, TEAL, RED, GREY = "#0077BB", "#EE7733", "#009988", "#CC3311", "#777777"
"""Of what is no tier: from Paul Tol's vibrant scheme (https://personal.sron.nl/~pault), for the colour-blind too."""
_TIERS = (
    "#332288",
    "#117733",
    "#CC6677",
    "#0088AA",
    "#882255",
    "#888800",
    "#AA4499",
    "#AA6600",
    "#44AA99",
    "#555555",
)
"""Of tiers: after Paul Tol's muted scheme, dark enough for lines and words on white."""
OVERALL_COLOR = "black"
"""Of all tiers together."""
MOST_LETTERS = 18
LETTER_INCHES = 0.08
"""Of a name below a column, at 9 points."""
MOST_NUMBERS = 32
"""Rows and columns up to which a heat map has numbers in its cells."""

_WITH_MORE_LETTERS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Noto Sans JP",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Source Han Sans",
    "IPAexGothic",
    "Droid Sans Fallback",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
)


@contextmanager
def drawing() -> Iterator[None]:
    """A block, or a decorated function, in which names are text and not mathtext, in fonts that have their letters.

    Text takes these settings when it is made, and some is made when a figure is saved: both belong inside.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "font.family": _families()}):
        yield


@cache
def _families() -> list[str]:
    from matplotlib import font_manager

    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _WITH_MORE_LETTERS if name in there)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=120, layout="constrained")


def tier_colors(tiers: Iterable[str]) -> dict[str, str]:
    """The colour of each tier, by its place in the configuration; after ten they begin again."""
    return {tier: _TIERS[index % len(_TIERS)] for index, tier in enumerate(tiers)}


def shortened(name: str) -> str:
    """A name that fits beside an axis: its middle is left out where it is longer than MOST_LETTERS."""
    half = (MOST_LETTERS - 1) // 2
    return name if len(name) <= MOST_LETTERS else f"{name[:half]}…{name[-half:]}"


def heat_map(axes: Axes, values: np.ndarray[Any, Any], cmap: str, form: str, vmax: float) -> None:
    """Draws values (rows, columns), from 0 to `vmax`; numbers stand in the cells where there is room. NaN is a gap."""
    axes.imshow(values, aspect="auto", cmap=cmap, vmin=0, vmax=vmax, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    rows, columns = values.shape
    if max(rows, columns) > MOST_NUMBERS:
        axes.figure.colorbar(axes.images[0], ax=axes)
        return
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            if value == value:  # not NaN
                color = "white" if value > 0.62 * vmax else "black"
                axes.text(column, row, form.format(value), ha="center", va="center", fontsize=8, color=color)


def label_columns(axes: Axes, names: Sequence[str]) -> None:
    """Names below columns; they stand upright only where they are too long to lie."""
    short = [shortened(name) for name in names]
    inches = axes.get_window_extent().width / axes.figure.dpi / max(len(short), 1)
    upright = max(map(len, short), default=0) * LETTER_INCHES > inches
    axes.set_xticks(range(len(short)), short, rotation=90 if upright else 0, fontsize=9)
