"""A look at the data of a run: how many images of which class each client has, and what was done to read them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hsee_ray.data import class_counts, open_images
from hsee_ray.method.setup import Setup

_NAMED = 5
"""Classes that a line names before it says how many more there are."""


def look(setup: Setup) -> list[str]:
    """Lines about a run's images, without tables: their numbers, what was converted, what is missing."""
    per_class_K = setup.class_counts.sum(axis=0)
    n_aside = {
        "calibrate": sum(setup.samples_of("calibration").values()),
        "validate": sum(setup.samples_of("validation").values()),
    }
    height, width, channels = setup.files.image_shape
    lines = [
        f"{per_class_K.sum():,} training and {len(setup.test_indices):,} test images, {width}x{height}x{channels}"
        f"{''.join(f', {count:,} set aside to {what}' for what, count in n_aside.items() if count)}; "
        f"training images per class {_range(per_class_K)}, per client {_range(setup.class_counts.sum(axis=1))}"
    ]
    lines.extend(str(note) for note in setup.files.notes)
    names = setup.files.class_names
    for what, counts_K in (("training", per_class_K), ("test", test_counts(setup))):
        empty = [names[k] for k in np.flatnonzero(counts_K == 0)]
        if empty:
            more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
            lines.append(f"no {what} images in this run for class {', '.join(empty[:_NAMED])}{more}")
    if setup.untouched_weights:
        lines.append(
            f"model.weights is for another number of classes: {', '.join(setup.untouched_weights)} begin at random"
        )
    return lines


def test_counts(setup: Setup) -> npt.NDArray[np.int64]:
    """Test samples (K,) of each class."""
    labels_N = open_images(setup.files.test).labels_N
    counts: npt.NDArray[np.int64] = class_counts(labels_N, [setup.test_indices], setup.n_classes)[0]
    return counts


def _range(counts: npt.NDArray[np.int64]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
