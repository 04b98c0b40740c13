"""A contact sheet: some images of each class as the network gets them, and as augmentation changes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hsee_ray.data import open_images
from hsee_ray.data.augment import Augment
from hsee_ray.method.setup import Setup
from hsee_ray.pictures import drawing, new_figure
from hsee_ray.rng import generator

COLUMNS = 6
MOST_CLASSES = 50
_TILE_INCHES = 0.7
_GAP = 1
"""Pixels of white between images."""


@drawing()
def write_contact_sheet(setup: Setup, path: Path) -> None:
    """A PNG with one row for each class, of the first 50; black where a class has fewer images."""
    shown = min(setup.n_classes, MOST_CLASSES)
    train = open_images(setup.files.train)
    rows_N = np.sort(np.concatenate([part.train for part in setup.parts]))
    labels_N = train.labels_N[rows_N]
    rng = generator(setup.config.seed, "contact sheet")
    height, width, channels = setup.files.image_shape
    columns = COLUMNS * (2 if setup.config.data.augment.on else 1)
    augment = Augment(setup.config.data.augment, setup.mean_C)
    sheet = np.full((shown * (height + _GAP), columns * (width + _GAP), channels), 255, np.uint8)
    for k in range(shown):
        of_class = rows_N[labels_N == k]
        chosen = np.sort(rng.permutation(of_class)[:COLUMNS])
        images_BHWC = _padded(train.images_NHWC[chosen], (COLUMNS, height, width, channels))
        if setup.config.data.augment.on:
            images_BHWC = np.concatenate([images_BHWC, augment(images_BHWC, rng)])
        for column, image in enumerate(images_BHWC):
            top, left = k * (height + _GAP), column * (width + _GAP)
            sheet[top : top + height, left : left + width] = image
    tall = _TILE_INCHES * (height + _GAP) / (width + _GAP)
    figure = new_figure(2 + columns * _TILE_INCHES, 0.8 + shown * tall)
    axes = figure.subplots()
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="equal")
    names = setup.files.class_names[:shown]
    axes.set_yticks([(k + 0.5) * (height + _GAP) for k in range(shown)], names)
    halves = ["as read", "as augmented"][: columns // COLUMNS]
    axes.set_xticks([(half + 0.5) * COLUMNS * (width + _GAP) for half in range(len(halves))], halves)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    figure.savefig(path, format="png", dpi=120)


def _padded(images_BHWC: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    padded = np.zeros(shape, np.uint8)
    padded[: len(images_BHWC)] = images_BHWC
    return padded
