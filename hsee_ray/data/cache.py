"""The cache of decoded images: built once per data set, whole or not there, and mapped by every later run."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hsee_ray.config.schema import DataConfig
from hsee_ray.data.decode import Contents, Source, Split, decode_split
from hsee_ray.data.images import ImageMetadata, ImageSet, read_metadata, write_images
from hsee_ray.data.sources import find_source
from hsee_ray.errors import DataError

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class DatasetFiles:
    """A data set that is ready to be mapped."""

    name: str
    train: Path
    test: Path
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """H, W, C."""


def prepare(config: DataConfig) -> DatasetFiles:
    """Find the data set in the cache, or build it there: one Arrow file of uint8 images for each split.

    The directory is `data.cache`, else `$XDG_CACHE_HOME/hsee-ray`, else `~/.cache/hsee-ray`.
    Raises DataError when the data set is missing or damaged, or when the cache cannot be written.
    """
    try:
        source = find_source(config)
        fingerprint = _fingerprint(config, source)
    except OSError as error:
        raise DataError(f"cannot read the files of data set {config.name}: {error}") from error
    directory = _cache_directory(config)
    train, test = (directory / f"{config.name}-{split}-{fingerprint}.arrow" for split in ("train", "test"))
    with _cache_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        complete = train.exists() and test.exists()
    if not complete:
        _build(config, source, train, test)
    metadata = read_metadata(train)
    return DatasetFiles(config.name, train, test, metadata.class_names, metadata.image_shape)


def _cache_directory(config: DataConfig) -> Path:
    if config.cache is not None:
        directory = Path(config.cache)
    elif os.environ.get("XDG_CACHE_HOME"):
        directory = Path(os.environ["XDG_CACHE_HOME"]) / "hsee-ray"
    else:
        directory = Path("~/.cache/hsee-ray")
    return directory.expanduser().absolute()


def _fingerprint(config: DataConfig, source: Source) -> str:
    """Digest of everything that decides the pixels and the labels."""
    names = {"name", "image_column", "label_column", "image_size", "channels", "classes"}
    if config.name == "synthetic":
        names |= {"train_samples", "test_samples"}
    files = []
    for path in source.files:
        status = path.stat()
        files.append((str(path.absolute()), status.st_size, status.st_mtime_ns))
    text = json.dumps([_FORMAT_VERSION, config.model_dump(include=names), files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _build(config: DataConfig, source: Source, train: Path, test: Path) -> None:
    """Decode both splits, one after the other: only one is in memory at a time."""
    contents = source.read()
    class_names = _class_names(config, contents)
    for split in (contents.train, contents.test):
        _check_labels(split, len(class_names))
    shape: tuple[int, int, int] | None = None
    for split, path in ((contents.train, train), (contents.test, test)):
        images_NHWC = decode_split(split, config, shape)
        height, width, channels = images_NHWC.shape[1:]
        shape = (height, width, channels)
        _write(path, ImageSet(images_NHWC, split.labels_N), ImageMetadata(class_names, shape))


def _class_names(config: DataConfig, contents: Contents) -> tuple[str, ...]:
    """Names of the classes, as many as `data.classes`, the source's names, or the largest label says."""
    for what, split in (("training", contents.train), ("test", contents.test)):
        if not len(split.labels_N):
            raise DataError(f"data set {config.name} has no {what} images: name another data.root")
    largest = max(int(split.labels_N.max()) for split in (contents.train, contents.test))
    n_classes = config.classes or len(contents.class_names or ()) or largest + 1
    n_training = len(contents.train.labels_N)
    if config.classes is None and n_classes > n_training:
        raise DataError(
            f"data set {config.name} has {n_classes} classes and {n_training} training images: is "
            "data.label_column the right column? If so, set data.classes"
        )
    if n_classes < 2:
        raise DataError(f"data set {config.name} has a single class: name one with two or more")
    names = (contents.class_names or ())[:n_classes]
    return (*names, *(str(k) for k in range(len(names), n_classes)))


def _check_labels(split: Split, n_classes: int) -> None:
    wrong = (split.labels_N < 0) | (split.labels_N >= n_classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{split.name_row(row)} has label {split.labels_N[row]}, outside 0..{n_classes - 1}: "
            "correct the label, or set data.classes or data.label_column"
        )


def _write(path: Path, images: ImageSet, metadata: ImageMetadata) -> None:
    """Write under a name of its own and rename: two builders do not meet, and no reader sees half a file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _cache_errors(path.parent):
        try:
            with temporary.open("xb") as file:
                write_images(file, images, metadata)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _cache_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot use the cache directory {directory} ({error.strerror or error}): "
            "free space there, or name another one with --set data.cache=DIR"
        ) from error
