"""The cache of decoded images: built once per data set, whole or not there, and mapped by every later run."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hsee_ray.config.schema import DataConfig
from hsee_ray.data.decode import Contents, Note, Notes, Source, Split, decode_split
from hsee_ray.data.images import ImageMetadata, ImageSet, read_metadata, write_images
from hsee_ray.data.lock import waiting_lock
from hsee_ray.data.sources import find_source
from hsee_ray.errors import NO_TEXT, ConfigError, DataError, is_text

_FORMAT_VERSION = 2
_STALE_S = 24 * 3600.0
"""Age of a temporary file whose builder is gone."""


@dataclass(frozen=True)
class DatasetFiles:
    """A data set that is ready to be mapped."""

    name: str
    train: Path
    test: Path
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """H, W, C."""
    notes: tuple[Note, ...] = ()
    """What was converted, ignored or noticed when it was read."""
    digests: tuple[str, str] = ("", "")
    """SHA-256 of the pixels and labels of training and test."""


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
    if not (train.exists() and test.exists()):
        with waiting_lock(directory / f".{config.name}-{fingerprint}.lock", f"the cache of {config.name}"):
            if not (train.exists() and test.exists()):
                _build(config, source, train, test)
    found, of_test = read_metadata(train), read_metadata(test)
    return DatasetFiles(
        config.name,
        train,
        test,
        found.class_names,
        found.image_shape,
        (*found.notes, *of_test.notes),
        (found.digest, of_test.digest),
    )


def _cache_directory(config: DataConfig) -> Path:
    if config.cache is not None:
        directory = Path(config.cache)
    elif os.environ.get("XDG_CACHE_HOME"):
        directory = Path(os.environ["XDG_CACHE_HOME"]) / "hsee-ray"
    else:
        directory = Path("~/.cache/hsee-ray")
    try:
        return directory.expanduser().absolute()
    except RuntimeError:
        raise ConfigError("no home directory is known for the cache of images; set data.cache, or HOME") from None


def _fingerprint(config: DataConfig, source: Source) -> str:
    """Digest of everything that decides the pixels and the labels."""
    names = {"name", "image_column", "label_column", "image_size", "channels", "bits", "classes"}
    if config.name == "synthetic":
        names |= {"train_samples", "test_samples"}
    files = []
    for path in source.files:
        status = path.stat()
        files.append((str(path.absolute()), status.st_size, status.st_mtime_ns))
    decisive = [_FORMAT_VERSION, config.model_dump(include=names), files, source.names]
    text = json.dumps(decisive, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _build(config: DataConfig, source: Source, train: Path, test: Path) -> None:
    """Decode both splits, one after the other, into files that are mapped: no split needs to fit into memory."""
    contents = source.read()
    class_names = _class_names(config, contents)
    splits = {"training": (contents.train, train), "test": (contents.test, test)}
    for split, _ in splits.values():
        _check_labels(split, len(class_names))
    notes = Notes()
    notes.merge(contents.notes)
    _check_classes(config, contents, class_names, notes)
    directory, seen = train.parent, _Seen()
    _remove_stale(directory)
    shape: tuple[int, int, int] | None = None
    for which, (split, path) in splits.items():
        with _pixel_file(directory) as allocate:
            images_NHWC, of_decoding = decode_split(split, config, shape, allocate)
            notes.merge(of_decoding)
            digest = seen.look_through(images_NHWC, split, which, notes)
            height, width, channels = images_NHWC.shape[1:]
            shape = (height, width, channels)
            metadata = ImageMetadata(class_names, shape, notes.all(), digest)
            _write(path, ImageSet(images_NHWC, split.labels_N), metadata)
        notes = Notes()


@contextmanager
def _pixel_file(directory: Path) -> Iterator[Callable[[tuple[int, ...]], npt.NDArray[np.uint8]]]:
    """A function that makes an array in a file without a name, which ends with the block or with the process."""
    with _cache_errors(directory), tempfile.TemporaryFile(dir=directory) as file:

        def allocate(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
            with _cache_errors(directory):
                # A write to a mapped page for which the disk has no room would end the process.
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))
                return np.memmap(file, np.uint8, "r+", shape=shape).view(np.ndarray)

        yield allocate


class _Seen:
    """Images seen so far, by digest: the same image with two labels, or in training and in test, is worth a word."""

    def __init__(self) -> None:
        self.training: dict[bytes, int] = {}
        """Labels."""

    def look_through(self, images_NHWC: npt.NDArray[np.uint8], split: Split, which: str, notes: Notes) -> str:
        """SHA-256 of all pixels and labels."""
        whole = hashlib.sha256(split.labels_N.tobytes())
        for row, (image, label) in enumerate(zip(images_NHWC, split.labels_N.tolist(), strict=True)):
            pixels = image.tobytes()
            whole.update(pixels)
            own = hashlib.blake2b(pixels, digest_size=16).digest()
            if which == "training":
                if self.training.setdefault(own, label) != label:
                    notes.add("training images occur with another label too", split.name_row(row))
            elif own in self.training:
                notes.add("test images occur in training too", split.name_row(row))
        return whole.hexdigest()


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
    _check_labels(contents.train, n_classes)
    if n_classes < 2:
        raise DataError(f"data set {config.name} has a single class: name one with two or more")
    names = (contents.class_names or ())[:n_classes]
    more = range(len(names), n_classes)
    names = (*names, *(f"class {k}" if str(k) in names else str(k) for k in more))
    no_text = [name for name in names if not is_text(name)]
    if no_text:
        raise DataError(f"data set {config.name} has a class {no_text[0]!a}: {NO_TEXT}; rename it")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise DataError(f"data set {config.name} has two classes of the name {repeated[0]!r}: give each its own")
    return names


def _check_classes(config: DataConfig, contents: Contents, class_names: tuple[str, ...], notes: Notes) -> None:
    """Notes classes without images. Raises DataError for labels that look like something else."""
    n_classes = len(class_names)
    counts_K = np.bincount(contents.train.labels_N, minlength=n_classes)
    empty = np.flatnonzero(counts_K == 0)
    if config.classes is None and contents.class_names is None:
        if len(contents.train.labels_N) > 2 and counts_K.max() == 1:
            raise DataError(
                f"data set {config.name}: each training image has a label of its own: is data.label_column the right "
                "column? If so, set data.classes"
            )
        if len(empty):
            raise DataError(
                f"data set {config.name}: its labels go up to {n_classes - 1}, and no training image has label "
                f"{empty[0]}: number the classes from 0 without gaps, or set data.classes={n_classes}"
            )
    if len(empty):
        notes.add("classes have no training image", class_names[empty[0]], len(empty))
    without_test = np.flatnonzero(np.bincount(contents.test.labels_N, minlength=n_classes) == 0)
    if len(without_test):
        notes.add("classes have no test image", class_names[without_test[0]], len(without_test))


def _check_labels(split: Split, n_classes: int) -> None:
    wrong = (split.labels_N < 0) | (split.labels_N >= n_classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{split.name_row(row)} has label {split.labels_N[row]}, outside 0..{n_classes - 1}: "
            "correct the label, or set data.classes or data.label_column"
        )


def _write(path: Path, images: ImageSet, metadata: ImageMetadata) -> None:
    """Write under a name of its own and rename: where locks do not work, two builders do not meet."""
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


def _remove_stale(directory: Path) -> None:
    """Temporary files of builders that were killed."""
    for path in directory.glob(".*.arrow.*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()


@contextmanager
def _cache_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot use the cache directory {directory} ({error.strerror or error}): "
            "free space there, or name another one with --set data.cache=DIR"
        ) from error
