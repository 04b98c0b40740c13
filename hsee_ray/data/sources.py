"""Sources of images: one function for each `data.name`, from its files to labels and pictures.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hsee_ray.config.schema import DataConfig
from hsee_ray.data.decode import Contents, Notes, Picture, Source, Split
from hsee_ray.data.lock import waiting_lock
from hsee_ray.data.parquet import parquet_source
from hsee_ray.edge.images import first_line, image_suffixes
from hsee_ray.errors import DataError
from hsee_ray.rng import generator

_OF_SYSTEMS = re.compile(
    r"[.@]|(__MACOSX|lost\+found|\$RECYCLE\.BIN|System Volume Information|thumbs\.db|desktop\.ini)$", re.IGNORECASE
)
_PICTURES_PER_BATCH = 1024
_DIGITS_TEST_SAMPLES = 360


def find_source(config: DataConfig) -> Source:
    """The data set of the configuration, found but not read. Raises DataError when it is missing."""
    match config.name:
        case "digits":
            return Source((), _read_digits)
        case "synthetic":
            return Source((), lambda: _make_synthetic(config))
        case "parquet":
            return parquet_source(_existing_root(config), config)
        case "folder":
            return _folder_source(_existing_root(config))
        case "cifar10" | "cifar100" | "stl10":
            return _torchvision_source(config)


def is_there(config: DataConfig) -> bool:
    """Whether the images can be read without fetching anything."""
    match config.name:
        case "digits" | "synthetic":
            return True
        case "parquet" | "folder":
            return config.root is not None and Path(config.root).is_dir()
        case "cifar10" | "cifar100" | "stl10":
            _, _, files = _torchvision_files(config)
            return all(path.is_file() for path in files)


def _existing_root(config: DataConfig) -> Path:
    assert config.root is not None, "DataConfig sees to it"
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(f"the data directory {root} does not exist: name another with --set data.root=DIR")
    return root


def _pixel_split(images: npt.NDArray[np.uint8], labels_N: npt.NDArray[np.int64], name: str) -> Split:
    """A split of images (N, H, W) or (N, H, W, 3) that are in memory."""

    def picture_batches() -> Iterator[Sequence[Picture]]:
        for first in range(0, len(images), _PICTURES_PER_BATCH):
            yield list(images[first : first + _PICTURES_PER_BATCH])

    return Split(labels_N, picture_batches, lambda row: f"{name} image {row}")


def _read_digits() -> Contents:
    """scikit-learn's 1,797 handwritten digits (8x8, gray); a fixed random choice of 360 is the test set.

    Not every fifth: the writers repeat 0..9 in order, so some digits would be in it twice as often as others.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images_NHW = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels_N = digits.target.astype(np.int64)
    order = generator(0, "digits").permutation(len(labels_N))
    test, train = np.sort(order[:_DIGITS_TEST_SAMPLES]), np.sort(order[_DIGITS_TEST_SAMPLES:])
    return Contents(
        train=_pixel_split(images_NHW[train], labels_N[train], "digits train"),
        test=_pixel_split(images_NHW[test], labels_N[test], "digits test"),
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _make_synthetic(config: DataConfig) -> Contents:
    """A smooth pattern for every class, under uniform noise; the same images for every seed of a run."""
    classes, size, channels = config.classes or 4, config.image_size or 16, config.channels or 3
    rngs = [generator(0, "pattern", k) for k in range(classes)]
    patterns = np.stack([_smooth_pattern(rng, size, channels) for rng in rngs])

    def make(split: str, n_samples: int) -> Split:
        labels_N = np.arange(n_samples, dtype=np.int64) % classes
        noise = generator(0, "noise", split).integers(0, 96, (n_samples, size, size, channels), np.uint8)
        images_NHWC = patterns[labels_N] + noise
        images = images_NHWC[..., 0] if channels == 1 else images_NHWC
        return _pixel_split(images, labels_N, f"synthetic {split}")

    return Contents(
        make("train", config.train_samples or 256),
        make("test", config.test_samples or 64),
        tuple(str(k) for k in range(classes)),
    )


def _smooth_pattern(rng: np.random.Generator, size: int, channels: int) -> npt.NDArray[np.uint8]:
    """A random sum of low cosines (size, size, channels), from 0 to 159, so that noise below 96 fits."""
    cosines = np.cos(np.pi * np.outer(np.arange(3), np.arange(size) + 0.5) / size)
    pattern_HWC = np.einsum("uh,uvc,vw->hwc", cosines, rng.normal(size=(3, 3, channels)), cosines)
    scaled = (pattern_HWC - pattern_HWC.min()) / (pattern_HWC.max() - pattern_HWC.min())
    pattern: npt.NDArray[np.uint8] = np.round(scaled * 159).astype(np.uint8)
    return pattern


def _folder_source(root: Path) -> Source:
    """`root/train/<class>/**/*.png` and `root/test/<class>/**/*.png`; classes are sorted by name."""
    notes = Notes()
    directories = _class_directories(root / "train", notes)
    names = tuple(directory.name for directory in directories)
    train = _labelled_files(directories, names, notes)
    empty = set(range(len(names))) - {label for _, label in train}
    if empty:
        raise DataError(f"{root / 'train' / names[min(empty)]} has no images: add some, or remove the directory")
    test = _labelled_files(_class_directories(root / "test", notes), names, notes)
    if not test:
        raise DataError(f"{root / 'test'} has no images: expected {root / 'test'}/<class>/*.png (or jpg, webp, ...)")
    files = tuple(path for path, _ in (*train, *test))
    return Source(files, lambda: Contents(_file_split(train), _file_split(test), names, notes.all()), names)


def _class_directories(directory: Path, notes: Notes) -> list[Path]:
    entries = _entries(directory, notes) if directory.is_dir() else []
    found = [path for path in entries if path.is_dir()]
    if not found:
        if not directory.is_dir() and (classes := [path.name for path in _folders(directory.parent)]):
            raise DataError(
                f"{directory.parent} has {', '.join(classes[:3])}{', ...' * (len(classes) > 3)} and no directory "
                f"{directory.name}: if these are classes, move most images of each to "
                f"{directory.parent}/train/<class>/, and the others, to test on, to {directory.parent}/test/<class>/"
            )
        raise DataError(
            f"{directory} has no directories of images: a folder data set has "
            f"{directory}/<class>/*.png; name the directory above it with --set data.root=DIR"
        )
    for path in entries:
        if path not in found:
            notes.add("files beside the directories of classes ignored", str(path))
    return found


def _folders(directory: Path) -> list[Path]:
    """Directories in a directory that may be classes, by name; none where it is not there."""
    if not directory.is_dir():
        return []
    found = sorted(path for path in directory.iterdir() if path.is_dir() and path.name not in ("train", "test"))
    return [path for path in found if not _OF_SYSTEMS.match(path.name)]


def _entries(directory: Path, notes: Notes) -> list[Path]:
    """What a directory holds, by name, without what systems leave there."""
    entries = sorted(directory.iterdir())
    left_out = [path for path in entries if _OF_SYSTEMS.match(path.name)]
    for path in left_out:
        notes.add("hidden files and files of systems ignored", str(path))
    return [path for path in entries if path not in left_out]


def _labelled_files(directories: Sequence[Path], names: Sequence[str], notes: Notes) -> list[tuple[Path, int]]:
    labelled = []
    suffixes = image_suffixes()
    for class_directory in directories:
        if class_directory.name not in names:
            raise DataError(f"{class_directory} is a class without training images: add some or remove it")
        label = names.index(class_directory.name)
        for path in _files_below(class_directory, notes):
            if path.exists() and not path.is_file():
                notes.add("pipes, sockets and devices ignored", str(path))
            elif path.suffix.lower() in suffixes:
                labelled.append((path, label))
            else:
                notes.add("files ignored, which by their names are no images", str(path))
    return labelled


def _files_below(directory: Path, notes: Notes) -> Iterator[Path]:
    for path in _entries(directory, notes):
        if not path.is_dir():
            yield path
        elif path.resolve() in (directory.resolve(), *directory.resolve().parents):
            notes.add("links to a directory above them ignored", str(path))
        else:
            yield from _files_below(path, notes)


def _file_split(labelled: list[tuple[Path, int]]) -> Split:
    def picture_batches() -> Iterator[Sequence[Picture]]:
        for first in range(0, len(labelled), _PICTURES_PER_BATCH):
            yield [path for path, _ in labelled[first : first + _PICTURES_PER_BATCH]]

    labels_N = np.array([label for _, label in labelled], np.int64)
    return Split(labels_N, picture_batches, lambda row: str(labelled[row][0]))


def _torchvision_source(config: DataConfig) -> Source:
    """CIFAR or the labelled part of STL-10, read by torchvision, which also checks the files' digests."""
    dataset, root, files = _torchvision_files(config)
    with waiting_lock(root / f".{config.name}.lock", f"{config.name} in {root}"):  # another run may be fetching it
        if not all(path.is_file() for path in files):
            _download(dataset, root, config.name, files)
    return Source(files, lambda: _read_torchvision(dataset, root, config.name))


def _torchvision_files(config: DataConfig) -> tuple[Any, Path, tuple[Path, ...]]:
    """The data set's class, its root, and the files that it is read from."""
    dataset = _torchvision_class(config.name)
    root = Path(config.root or "data")
    names = [name for name, _ in dataset.train_list + dataset.test_list]
    names.append(dataset.class_names_file if config.name == "stl10" else dataset.meta["filename"])
    return dataset, root, tuple(root / dataset.base_folder / name for name in names)


def _torchvision_class(name: str) -> Any:
    from torchvision.datasets import CIFAR10, CIFAR100, STL10

    if name == "stl10":
        # Without the unlabelled images, 2.8 GB that would only be there to be checked.
        return type("LabelledSTL10", (STL10,), {"train_list": STL10.train_list[:2]})
    return CIFAR10 if name == "cifar10" else CIFAR100


def _download(dataset: Any, root: Path, name: str, files: tuple[Path, ...]) -> None:
    try:
        dataset(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(
            f"{name} is not in {root} and cannot be downloaded ({first_line(error)}): "
            f"put {dataset.filename} there, or {', '.join(path.name for path in files)} in {files[0].parent}"
        ) from error


def _read_torchvision(dataset: Any, root: Path, name: str) -> Contents:
    stl10 = ({"split": "train"}, {"split": "test"})
    cifar = ({"train": True}, {"train": False})
    try:
        train, test = (dataset(root, **which) for which in (stl10 if name == "stl10" else cifar))
    except RuntimeError as error:
        folder = root / dataset.base_folder
        raise DataError(f"{name} in {folder} is damaged: delete it to fetch it again") from error
    return Contents(
        _torchvision_split(train, f"{name} train"),
        _torchvision_split(test, f"{name} test"),
        tuple(train.classes),
    )


def _torchvision_split(dataset: Any, name: str) -> Split:
    if hasattr(dataset, "targets"):
        return _pixel_split(dataset.data, np.asarray(dataset.targets, np.int64), name)
    images_NHWC = np.ascontiguousarray(dataset.data.transpose(0, 2, 3, 1))
    return _pixel_split(images_NHWC, dataset.labels.astype(np.int64), name)
