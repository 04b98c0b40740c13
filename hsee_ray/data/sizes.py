"""Sizes that a plan needs: the shape of an image, the classes, and each client's number of training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hsee_ray.config.schema import Config, DataConfig
from hsee_ray.data.cache import prepare
from hsee_ray.data.images import open_images
from hsee_ray.data.known import known_classes, known_shape, known_train_images
from hsee_ray.data.partition import partition, select
from hsee_ray.data.sources import is_there
from hsee_ray.errors import ConfigError, DataError


@dataclass(frozen=True)
class LocalSamples:
    """Training samples of every client, and where the numbers come from."""

    counts: Sequence[int]
    origin: str


def image_sizes(config: DataConfig) -> tuple[tuple[int, int, int], int]:
    """Shape (H, W, C) of the images and number of classes; reads the data set only where nothing else tells.

    Raises DataError when it would have to be read and is not there.
    """
    shape, classes = known_shape(config), known_classes(config)
    if shape is not None and classes is not None:
        return shape, classes
    if not is_there(config):
        raise DataError(
            f"the data directory {config.root} does not exist, so the size of its images is not known: name another "
            "with --set data.root=DIR, or set data.image_size, data.channels and data.classes"
        )
    files = prepare(config)
    return files.image_shape, len(files.class_names)


def local_samples(config: Config, n_images: int | None = None) -> LocalSamples:
    """Training samples as a run would deal them out, or dealt out evenly where that cannot be known.

    Even, in this order: `n_images` if given; else the data are read if they are there; else `data.train_samples`, or
    what the data set is known to have. Raises ConfigError for a number that cannot be dealt out, DataError when there
    is none.
    """
    data = config.data
    if n_images is None and is_there(data):
        files = prepare(data)
        labels_N = open_images(files.train).labels_N
        chosen = select(labels_N, data.train_samples, config.seed, "train")
        parts = partition(labels_N, chosen, config.n_clients, len(files.class_names), data, config.seed)
        local = [len(part.train) for part in parts]
        aside = len(chosen) - sum(local)
        origin = f"{sum(local):,} training images of {data.name}"
        return LocalSamples(local, f"{origin}, and {aside:,} set aside" if aside else origin)
    if n_images is not None:
        origin = "as --samples says"
    elif data.train_samples is not None:
        n_images, origin = data.train_samples, "as data.train_samples says"
    elif (n_images := known_train_images(data)) is not None:
        origin = f"as {data.name} has"
    else:
        raise DataError(
            f"the data directory {data.root} does not exist, so the number of training images is not known: give it "
            "with --samples N"
        )
    counts = even_samples(config, n_images)
    if min(counts) < 2:
        raise ConfigError(
            f"{n_images} training images, {origin}, are too few for {config.n_clients} clients: each needs 2 at least"
        )
    return LocalSamples(counts, f"{n_images:,} training images, {origin}: the data were not read, equal shares assumed")


def even_samples(config: Config, n_images: int) -> list[int]:
    """Training samples of every client when so many images are dealt out evenly, less those set aside."""
    share, more = divmod(n_images, config.n_clients)
    parts = [share + (number < more) for number in range(config.n_clients)]
    fractions = config.data.calibration_fraction, config.data.validation_fraction
    return [part - sum(round(fraction * part) for fraction in fractions) for part in parts]
