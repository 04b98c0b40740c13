"""Pictures of any kind become one uint8 array of equal shape, decoded by threads.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hsee_ray.config.schema import DataConfig
from hsee_ray.edge.images import pixels
from hsee_ray.errors import DataError

Picture = bytes | Path | npt.NDArray[np.uint8] | None
"""An encoded image, its file, or its pixels (H, W) or (H, W, 3); None where a table has no image in a row."""

_PICTURES_PER_TASK = 64


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


@dataclass(frozen=True)
class Source:
    """A data set that was found, but not read."""

    files: tuple[Path, ...]
    """Files that decide the contents."""
    read: Callable[[], Contents]


def decode_split(
    split: Split,
    config: DataConfig,
    shape: tuple[int, int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Images (N, H, W, C) of a split with at least one image.

    All of them have `shape` (H, W, C), or that of the first image where no shape is given.
    Raises DataError for an image that does not decode or has another shape; the message says where it lies.
    """
    if shape is None:
        first = next(split.picture_batches())[0]
        height, width, channels = _decode(first, split.name_row(0), config).shape
        shape = (height, width, channels)
    images_NHWC = np.empty((len(split.labels_N), *shape), np.uint8)
    first_row = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for pictures in split.picture_batches():
            tasks = [
                pool.submit(_decode_into, images_NHWC, first_row + first, chunk, split, config)
                for first, chunk in _chunks(pictures)
            ]
            for task in tasks:
                task.result()
            first_row += len(pictures)
    return images_NHWC


def _chunks(pictures: Sequence[Picture]) -> Iterator[tuple[int, Sequence[Picture]]]:
    for first in range(0, len(pictures), _PICTURES_PER_TASK):
        yield first, pictures[first : first + _PICTURES_PER_TASK]


def _decode_into(
    images_NHWC: npt.NDArray[np.uint8],
    first_row: int,
    pictures: Sequence[Picture],
    split: Split,
    config: DataConfig,
) -> None:
    for row, picture in enumerate(pictures, start=first_row):
        where = split.name_row(row)
        image_HWC = _decode(picture, where, config)
        _check_shape(image_HWC.shape, images_NHWC.shape[1:], where)
        images_NHWC[row] = image_HWC


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


def _decode(picture: Picture, where: str, config: DataConfig) -> npt.NDArray[np.uint8]:
    """One image (H, W, C) with the configured channels and size, or its own."""
    if picture is None:
        raise DataError(f"{where} has no image: remove the row or fill it in")
    size = None if config.image_size is None else (config.image_size, config.image_size)
    return pixels(picture, where, config.channels, size)
