"""Pictures of any kind become one uint8 array of equal shape, decoded by threads.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hsee_ray.config.schema import DataConfig
from hsee_ray.edge.images import pixels
from hsee_ray.errors import DataError, on_one_line

Picture = bytes | Path | npt.NDArray[np.uint8] | None
"""An encoded image, its file, or its pixels (H, W) or (H, W, 3); None where a table has no image in a row."""

_PICTURES_PER_TASK = 64


@dataclass(frozen=True)
class Note:
    """One kind of thing that was converted, ignored or noticed while a data set was read."""

    text: str
    count: int
    first: str
    """Where it was met first."""

    def __str__(self) -> str:
        return on_one_line(f"{self.count:,} {self.text} (first: {self.first})")


class Notes:
    """Notes by their texts, in the order in which they are met."""

    def __init__(self) -> None:
        self.by_text: dict[str, Note] = {}

    def add(self, text: str, where: str, count: int = 1) -> None:
        known = self.by_text.get(text)
        self.by_text[text] = Note(text, count, where) if known is None else replace(known, count=known.count + count)

    def merge(self, others: Iterable[Note]) -> None:
        for note in others:
            self.add(note.text, note.first, note.count)

    def all(self) -> tuple[Note, ...]:
        return tuple(self.by_text.values())


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test part of a source."""

    labels_N: npt.NDArray[np.int64]
    picture_batches: Callable[[], Iterator[Sequence[Picture]]]
    """Pictures in the order of the labels, a bounded number at a time."""
    name_row: Callable[[int], str]
    """Origin of a sample, for messages."""


@dataclass(frozen=True)
class Contents:
    """Content of a source."""

    train: Split
    test: Split
    class_names: tuple[str, ...] | None
    """None where the source does not name its classes."""
    notes: tuple[Note, ...] = ()
    """What the source ignored, or guessed."""


@dataclass(frozen=True)
class Source:
    """A data set that was found, but not read."""

    files: tuple[Path, ...]
    """Files that decide the contents."""
    read: Callable[[], Contents]
    names: tuple[str, ...] = ()
    """Names that decide the contents beside the files."""


def decode_split(
    split: Split,
    config: DataConfig,
    shape: tuple[int, int, int] | None = None,
    allocate: Callable[[tuple[int, ...]], npt.NDArray[np.uint8]] = lambda shape: np.empty(shape, np.uint8),
) -> tuple[npt.NDArray[np.uint8], tuple[Note, ...]]:
    """Images (N, H, W, C) of a split with at least one image, in an array that `allocate` makes; what was converted.

    All of them have `shape` (H, W, C), or that of the first image where no shape is given.
    Raises DataError for an image that does not decode or has another shape; the message says where it lies.
    """
    notes = Notes()
    if shape is None:
        first = next(split.picture_batches())[0]
        height, width, channels = _decode(first, split.name_row(0), config, Notes()).shape
        shape = (height, width, channels)
    images_NHWC = allocate((len(split.labels_N), *shape))
    first_row = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for pictures in split.picture_batches():
            tasks = [
                pool.submit(_decode_into, images_NHWC, first_row + first, chunk, split, config)
                for first, chunk in _chunks(pictures)
            ]
            for task in tasks:
                notes.merge(task.result())
            first_row += len(pictures)
    return images_NHWC, notes.all()


def _chunks(pictures: Sequence[Picture]) -> Iterator[tuple[int, Sequence[Picture]]]:
    for first in range(0, len(pictures), _PICTURES_PER_TASK):
        yield first, pictures[first : first + _PICTURES_PER_TASK]


def _decode_into(
    images_NHWC: npt.NDArray[np.uint8],
    first_row: int,
    pictures: Sequence[Picture],
    split: Split,
    config: DataConfig,
) -> tuple[Note, ...]:
    notes = Notes()
    for row, picture in enumerate(pictures, start=first_row):
        where = split.name_row(row)
        image_HWC = _decode(picture, where, config, notes)
        _check_shape(image_HWC.shape, images_NHWC.shape[1:], where)
        images_NHWC[row] = image_HWC
    return notes.all()


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if shape[2] != expected[2]:
        raise DataError(
            f"{where} has {shape[2]} channel(s) and the images before it have {expected[2]}: "
            "give all of them the same with --set data.channels=3"
        )
    if shape != expected:
        raise DataError(
            f"{where} has {shape[1]}x{shape[0]} pixels and the images before it {expected[1]}x{expected[0]}: "
            f"give all of them the same size with --set data.image_size={max(4, expected[0])}"
        )


def _decode(picture: Picture, where: str, config: DataConfig, notes: Notes) -> npt.NDArray[np.uint8]:
    """One image (H, W, C) with the configured channels and size, or its own."""
    if picture is None:
        raise DataError(f"{where} has no image: remove the row or fill it in")
    size = None if config.image_size is None else (config.image_size, config.image_size)
    return pixels(picture, where, config.channels, size, config.bits, lambda text: notes.add(f"images {text}", where))
