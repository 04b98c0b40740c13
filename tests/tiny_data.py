"""Tiny data sets in the formats of the real ones.

torchvision checks the digests of the files of CIFAR and STL-10, which no tiny file has:
`accept_any_digest(monkeypatch)` lets every file that exists pass.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def make_images(
    n_samples: int,
    height: int = 8,
    width: int = 8,
    channels: int = 3,
    seed: int = 0,
) -> np.ndarray:
    """Random images (N, H, W, C)."""
    return np.random.default_rng(seed).integers(0, 256, (n_samples, height, width, channels), np.uint8)


def encode_png(image_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC).save(file, "PNG")
    return file.getvalue()


def write_parquet(
    root: Path,
    split: str,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    shards: int = 1,
    image_column: str = "img",
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
    plain_bytes: bool = False,
) -> list[Path]:
    """`split-00000-of-0000N.parquet` files in the layout of the Hugging Face hub; returns their paths."""
    if plain_bytes:
        column = pa.array(list(images), pa.binary())
    else:
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": image, "path": None} for image in images], struct)
    table = pa.table({image_column: column, label_column: pa.array(list(labels), pa.int64())})
    if class_names is not None:
        features = {label_column: {"names": list(class_names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    root.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, len(labels), shards + 1).astype(int)
    paths = [root / f"{split}-{shard:05d}-of-{shards:05d}.parquet" for shard in range(shards)]
    for path, first, last in zip(paths, bounds[:-1], bounds[1:], strict=True):
        pq.write_table(table.slice(first, last - first), path)
    return paths


def write_folder(
    root: Path,
    split: str,
    images_by_class: dict[str, np.ndarray],
    suffix: str = ".png",
) -> None:
    """`root/<split>/<class>/0.png`, `1.png`, ... from images (N, H, W, C) of every class."""
    for name, images_NHWC in images_by_class.items():
        directory = root / split / name
        directory.mkdir(parents=True, exist_ok=True)
        for index, image_HWC in enumerate(images_NHWC):
            pixels = image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC
            Image.fromarray(pixels).save(directory / f"{index}{suffix}")


def write_cifar10(root: Path, train_per_batch: int = 20, n_test: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """The seven files of CIFAR-10's Python version, with labels 0, 1, ..., 9, 0, ... in every file.

    Returns the training images (N, 32, 32, 3) of all five batches, and the test images.
    """
    directory = root / "cifar-10-batches-py"
    directory.mkdir(parents=True)
    train = make_images(5 * train_per_batch, 32, 32, seed=1)
    test = make_images(n_test, 32, 32, seed=2)
    for batch in range(5):
        images = train[batch * train_per_batch : (batch + 1) * train_per_batch]
        _write_cifar_batch(directory / f"data_batch_{batch + 1}", images, "labels", 10)
    _write_cifar_batch(directory / "test_batch", test, "labels", 10)
    (directory / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_NAMES)}))
    return train, test


def write_cifar100(root: Path, n_train: int = 200, n_test: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """The three files of CIFAR-100's Python version; returns training and test images (N, 32, 32, 3)."""
    directory = root / "cifar-100-python"
    directory.mkdir(parents=True)
    train, test = make_images(n_train, 32, 32, seed=3), make_images(n_test, 32, 32, seed=4)
    _write_cifar_batch(directory / "train", train, "fine_labels", 100)
    _write_cifar_batch(directory / "test", test, "fine_labels", 100)
    (directory / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class{k}" for k in range(100)]}))
    return train, test


def _write_cifar_batch(path: Path, images_NHWC: np.ndarray, label_key: str, classes: int) -> None:
    rows = images_NHWC.transpose(0, 3, 1, 2).reshape(len(images_NHWC), -1)
    labels = [index % classes for index in range(len(images_NHWC))]
    path.write_bytes(pickle.dumps({"data": rows, label_key: labels}))


def write_stl10(root: Path, n_train: int = 20, n_test: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """STL-10's binary files without the unlabelled ones; returns training and test images (N, 96, 96, 3)."""
    directory = root / "stl10_binary"
    directory.mkdir(parents=True)
    images = {"train": make_images(n_train, 96, 96, seed=5), "test": make_images(n_test, 96, 96, seed=6)}
    for split, images_NHWC in images.items():
        # Channel by channel, and each channel column by column.
        images_NHWC.transpose(0, 3, 2, 1).tofile(directory / f"{split}_X.bin")
        (np.arange(len(images_NHWC), dtype=np.uint8) % 10 + 1).tofile(directory / f"{split}_y.bin")
    (directory / "class_names.txt").write_text("\n".join(STL10_NAMES) + "\n", encoding="utf-8")
    return images["train"], images["test"]


def accept_any_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision read the tiny files: a file passes when it exists. In this process only."""

    def exists(path: str | Path, _digest: str | None = None) -> bool:
        return Path(path).is_file()

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", exists)
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", exists)
