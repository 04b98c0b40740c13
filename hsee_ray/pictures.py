"""Settings under which every picture is drawn and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import matplotlib
from matplotlib import font_manager

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
    with matplotlib.rc_context({"text.parse_math": False, "font.family": _families()}):
        yield


@cache
def _families() -> list[str]:
    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _WITH_MORE_LETTERS if name in there)]
