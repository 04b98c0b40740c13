"""Facts about known data sets, before any image is read: shape, classes, number of images.

H height, W width, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

from hsee_ray.config.schema import DataConfig


class KnownSet(NamedTuple):
    """A data set as its authors describe it, or as it is made here."""

    size: int
    """Pixels per side."""
    channels: int
    classes: int
    train_images: int


KNOWN = {
    "digits": KnownSet(8, 1, 10, 1_437),
    "cifar10": KnownSet(32, 3, 10, 50_000),
    "cifar100": KnownSet(32, 3, 100, 50_000),
    "stl10": KnownSet(96, 3, 10, 5_000),
    "synthetic": KnownSet(16, 3, 4, 256),
}
"""digits: what is left of scikit-learn's 1,797 beside the test images. stl10: the labelled images."""


def known_shape(config: DataConfig) -> tuple[int, int, int] | None:
    """(H, W, C) of the images, or None where only they can tell."""
    known = KNOWN.get(config.name)
    size = config.image_size or (known.size if known else None)
    channels = config.channels or (known.channels if known else None)
    return None if size is None or channels is None else (size, size, channels)


def known_classes(config: DataConfig) -> int | None:
    """Number of classes, or None where only the data can tell."""
    known = KNOWN.get(config.name)
    return config.classes or (known.classes if known else None)


def known_train_images(config: DataConfig) -> int | None:
    """Training images that a run takes, or None where only the data can tell."""
    known = KNOWN.get(config.name)
    return config.train_samples or (known.train_images if known else None)
