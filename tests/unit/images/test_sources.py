"""Every source is read to the pixel, and everything that may be wrong with one is said in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hsee_ray.config.schema import DataConfig
from hsee_ray.data import DatasetFiles, open_images, prepare
from hsee_ray.errors import DataError
from tests.tiny_data import (
    CIFAR10_NAMES,
    STL10_NAMES,
    accept_any_digest,
    encode_png,
    make_images,
    write_cifar10,
    write_cifar100,
    write_folder,
    write_parquet,
    write_stl10,
)


def prepare_in(tmp_path: Path, name: str, **keys: Any) -> DatasetFiles:
    return prepare(DataConfig(name=name, root=str(tmp_path / "data"), cache=str(tmp_path / "cache"), **keys))


def write_small_parquet(root: Path, **keys: Any) -> np.ndarray:
    """Four training images of classes 0, 1, 0, 1, and two test images; returns all six."""
    images = make_images(6)
    encoded = [encode_png(image) for image in images]
    write_parquet(root, "train", encoded[:4], [0, 1, 0, 1], **keys)
    write_parquet(root, "test", encoded[4:], [0, 1], **keys)
    return images


def message(tmp_path: Path, name: str = "parquet", **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare_in(tmp_path, name, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Sources


def test_digits_are_scaled_and_split_for_good(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    files = prepare(DataConfig(name="digits", cache=str(tmp_path)))
    train, test = open_images(files.train), open_images(files.test)
    assert files.image_shape == (8, 8, 1)
    assert files.class_names == tuple("0123456789")
    assert (len(train.labels_N), len(test.labels_N)) == (1437, 360)
    # Together they are all the digits, in the scale 0..255; value 8 of 16 is 127.5, which rounds to even.
    both = np.concatenate([train.images_NHWC, test.images_NHWC]).reshape(1797, 64)
    expected = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, expected))
    assert {0, 16, 128, 255} <= set(np.unique(both).tolist())
    assert np.bincount(test.labels_N).min() > 25


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_any_digest(monkeypatch)
    train, test = write_cifar10(tmp_path / "data", train_per_batch=4, n_test=6)
    files = prepare_in(tmp_path, "cifar10")
    assert files.class_names == CIFAR10_NAMES
    assert np.array_equal(open_images(files.train).images_NHWC, train)
    assert np.array_equal(open_images(files.test).images_NHWC, test)
    assert open_images(files.train).labels_N.tolist() == [0, 1, 2, 3] * 5


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_any_digest(monkeypatch)
    train, _ = write_cifar100(tmp_path / "data", n_train=110, n_test=3)
    files = prepare_in(tmp_path, "cifar100")
    assert files.class_names[99] == "class99"
    assert np.array_equal(open_images(files.train).images_NHWC, train)
    assert open_images(files.train).labels_N[[0, 99, 100]].tolist() == [0, 99, 0]


def test_stl10_is_read_by_columns_and_from_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept_any_digest(monkeypatch)
    train, test = write_stl10(tmp_path / "data", n_train=11, n_test=2)
    files = prepare_in(tmp_path, "stl10")
    assert files.class_names == STL10_NAMES
    assert files.image_shape == (96, 96, 3)
    assert np.array_equal(open_images(files.train).images_NHWC, train)
    assert np.array_equal(open_images(files.test).images_NHWC, test)
    assert open_images(files.train).labels_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_damaged_cifar10_says_what_to_delete(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "data", train_per_batch=1, n_test=1)
    text = message(tmp_path, "cifar10")
    assert "cifar-10-batches-py" in text and "damaged" in text


def test_without_a_network_the_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_keys: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    text = message(tmp_path, "cifar10")
    for part in (
        "cannot be downloaded",
        "cifar-10-python.tar.gz",
        "data_batch_5",
        "batches.meta",
        str(tmp_path),
    ):
        assert part in text


@pytest.mark.parametrize("plain_bytes", [False, True])
def test_parquet_shards_are_read_in_order(tmp_path: Path, plain_bytes: bool) -> None:
    images = make_images(7)
    encoded = [encode_png(image) for image in images]
    names = ["cat", "dog", "owl"]
    keys: dict[str, Any] = {"class_names": names, "plain_bytes": plain_bytes}
    write_parquet(tmp_path / "data" / "data", "train", encoded[:5], [2, 1, 0, 1, 2], shards=2, **keys)
    write_parquet(tmp_path / "data" / "data", "test", encoded[5:], [0, 2], **keys)
    files = prepare_in(tmp_path, "parquet")
    assert files.class_names == ("cat", "dog", "owl")
    assert files.image_shape == (8, 8, 3)
    assert np.array_equal(open_images(files.train).images_NHWC, images[:5])
    assert np.array_equal(open_images(files.test).images_NHWC, images[5:])
    assert open_images(files.train).labels_N.tolist() == [2, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        ({"image_column": "image", "label_column": "labels"}, {}),
        ({"image_column": "image", "label_column": "fine_label"}, {}),
        ({"label_column": "breed"}, {}),
        (
            {"image_column": "photo", "label_column": "breed"},
            {"image_column": "photo", "label_column": "breed"},
        ),
    ],
)
def test_parquet_columns_are_found(tmp_path: Path, columns: dict[str, str], keys: dict[str, str]) -> None:
    write_small_parquet(tmp_path / "data", **columns)
    files = prepare_in(tmp_path, "parquet", **keys)
    assert open_images(files.train).labels_N.tolist() == [0, 1, 0, 1]
    assert files.class_names == ("0", "1")


def test_folder_classes_are_sorted(tmp_path: Path) -> None:
    images = make_images(4)
    write_folder(tmp_path / "data", "train", {"owl": images[:2], "cat": images[2:3]})
    write_folder(tmp_path / "data", "test", {"owl": images[3:]}, suffix=".bmp")
    (tmp_path / "data" / "train" / "owl" / "notes.txt").write_text("not an image")
    files = prepare_in(tmp_path, "folder")
    assert files.class_names == ("cat", "owl")
    assert np.array_equal(open_images(files.train).images_NHWC, images[[2, 0, 1]])
    assert open_images(files.train).labels_N.tolist() == [0, 1, 1]
    assert open_images(files.test).labels_N.tolist() == [1]


def test_synthetic_classes_can_be_told_apart(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"classes": 3, "image_size": 8, "channels": 1, "train_samples": 30}
    files = prepare(DataConfig(name="synthetic", cache=str(tmp_path), **keys))
    train, test = open_images(files.train), open_images(files.test)
    assert train.images_NHWC.shape == (30, 8, 8, 1)
    assert len(test.labels_N) == 64
    assert np.bincount(train.labels_N).tolist() == [10, 10, 10]
    # The nearest class mean of the training images answers every test image.
    means = np.stack([train.images_NHWC[train.labels_N == k].mean(axis=0) for k in range(3)])
    distances = ((test.images_NHWC[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    assert np.array_equal(distances.argmin(axis=1), test.labels_N)
    assert not np.array_equal(train.images_NHWC[0], train.images_NHWC[3])


# Shapes


def test_the_first_image_decides_for_gray(tmp_path: Path) -> None:
    gray = make_images(3, channels=1)
    write_folder(tmp_path / "data", "train", {"a": gray[:1], "b": gray[1:2]})
    write_folder(tmp_path / "data", "test", {"a": gray[2:]})
    files = prepare_in(tmp_path, "folder")
    assert files.image_shape == (8, 8, 1)
    assert np.array_equal(open_images(files.train).images_NHWC, gray[:2])
    coloured = prepare_in(tmp_path, "folder", channels=3)
    assert np.array_equal(open_images(coloured.train).images_NHWC, np.repeat(gray[:2], 3, axis=3))


def test_sixteen_bits_keep_their_upper_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535]] * 4, np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    for split in ("train", "test"):
        write_parquet(tmp_path / "data", split, [file.getvalue()] * 2, [0, 1])
    files = prepare_in(tmp_path, "parquet")
    assert files.image_shape == (4, 4, 1)
    assert open_images(files.train).images_NHWC[0, 0, :, 0].tolist() == [0, 0, 1, 255]


def test_palettes_and_transparency_become_rgb(tmp_path: Path) -> None:
    images = make_images(2, 4, 4)
    encoded = []
    for image, mode in zip(images, ("P", "RGBA"), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).convert(mode).save(file, "PNG")
        encoded.append(file.getvalue())
    for split in ("train", "test"):
        write_parquet(tmp_path / "data", split, encoded, [0, 1])
    files = prepare_in(tmp_path, "parquet")
    assert files.image_shape == (4, 4, 3)
    assert np.array_equal(open_images(files.train).images_NHWC[1], images[1])


def test_images_are_resized_to_a_square(tmp_path: Path) -> None:
    flat = np.full((1, 6, 10, 3), 77, np.uint8)
    write_folder(tmp_path / "data", "train", {"a": flat, "b": make_images(1, 8, 8)})
    write_folder(tmp_path / "data", "test", {"a": flat})
    files = prepare_in(tmp_path, "folder", image_size=4)
    assert files.image_shape == (4, 4, 3)
    assert (open_images(files.train).images_NHWC[0] == 77).all()


def test_more_classes_than_names_are_numbered(tmp_path: Path) -> None:
    write_small_parquet(tmp_path / "data", class_names=["cat", "dog"])
    assert prepare_in(tmp_path, "parquet", classes=4).class_names == ("cat", "dog", "2", "3")


# What may be wrong


@pytest.mark.parametrize("name", ["parquet", "folder"])
def test_missing_directory(tmp_path: Path, name: str) -> None:
    text = message(tmp_path, name)
    assert str(tmp_path / "data") in text and "does not exist" in text and "--set data.root=" in text


def test_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "has no train-*.parquet" in message(tmp_path)
    assert f"{tmp_path / 'data' / 'train'} has no directories of images" in message(tmp_path, "folder")
    (tmp_path / "data" / "train" / "cat").mkdir(parents=True)
    assert "has no images" in message(tmp_path, "folder")


def test_parquet_without_rows(tmp_path: Path) -> None:
    write_small_parquet(tmp_path / "data")
    write_parquet(tmp_path / "data", "test", [], [])
    assert "has no test images" in message(tmp_path)


def test_parquet_in_several_directories(tmp_path: Path) -> None:
    write_small_parquet(tmp_path / "data" / "small")
    write_small_parquet(tmp_path / "data" / "large")
    assert "several directories" in message(tmp_path)


def test_class_without_training_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", "train", {"a": make_images(1), "b": make_images(1)})
    write_folder(tmp_path / "data", "test", {"c": make_images(1)})
    text = message(tmp_path, "folder")
    assert f"{tmp_path / 'data' / 'test' / 'c'} is a class without training images" in text


def test_truncated_parquet(tmp_path: Path) -> None:
    write_small_parquet(tmp_path / "data")
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    text = message(tmp_path)
    assert str(path) in text and "damaged or not a Parquet file" in text


def test_file_that_is_no_parquet(tmp_path: Path) -> None:
    write_small_parquet(tmp_path / "data")
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    path.write_text("<html>Not found</html>")
    assert f"{path} is damaged or not a Parquet file" in message(tmp_path)


def test_no_image_column(tmp_path: Path) -> None:
    write_small_parquet(tmp_path / "data", image_column="photo")
    text = message(tmp_path)
    assert "no image column img or image" in text and "photo, label" in text and "data.image_column" in text
    assert "holds int64, not encoded images" in message(tmp_path, image_column="label")


def test_no_label_column(tmp_path: Path) -> None:
    image = encode_png(make_images(1)[0])
    (tmp_path / "data").mkdir()
    for columns in ({"img": [image], "breed": ["cat"]}, {"img": [image], "age": [1], "breed": [2]}):
        for split in ("train", "test"):
            pq.write_table(pa.table(columns), tmp_path / "data" / f"{split}-0.parquet")
        text = message(tmp_path)
        assert "no integer label column label or labels or fine_label" in text and "img, " in text
        assert "data.label_column" in text
    assert "no integer label column img" in message(tmp_path, label_column="img")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"no image", "does not decode"),
        (encode_png(make_images(1)[0])[:-60], "does not decode"),
        (None, "no image"),
    ],
)
def test_image_that_does_not_decode(tmp_path: Path, image: bytes | None, reason: str) -> None:
    write_small_parquet(tmp_path / "data")
    good = encode_png(make_images(1)[0])
    shards = write_parquet(tmp_path / "data", "test", [good, good, good, image], [0, 1, 0, 1], shards=2)
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    text = message(tmp_path)
    assert f"{shards[1]} row 1 " in text and reason in text


def test_image_file_that_does_not_decode(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split, {"a": make_images(1), "b": make_images(1)})
    path = tmp_path / "data" / "train" / "b" / "0.png"
    path.write_bytes(b"")
    assert f"{path} does not decode" in message(tmp_path, "folder")


def test_images_of_different_sizes(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", "train", {"a": make_images(1, 8, 8), "b": make_images(1, 6, 10)})
    write_folder(tmp_path / "data", "test", {"a": make_images(1, 8, 8)})
    text = message(tmp_path, "folder")
    for part in (str(tmp_path / "data" / "train" / "b" / "0.png"), "10x6", "8x8", "--set data.image_size=8"):
        assert part in text


def test_test_images_must_look_like_training_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", "train", {"a": make_images(1), "b": make_images(1)})
    write_folder(tmp_path / "data", "test", {"a": make_images(1, channels=1)})
    text = message(tmp_path, "folder")
    assert str(tmp_path / "data" / "test" / "a" / "0.png") in text and "--set data.channels=3" in text


@pytest.mark.parametrize(("label", "keys"), [(-1, {}), (2, {"classes": 2})])
def test_label_outside_the_classes(tmp_path: Path, label: int, keys: dict[str, int]) -> None:
    write_small_parquet(tmp_path / "data")
    encoded = [encode_png(image) for image in make_images(3)]
    (path,) = write_parquet(tmp_path / "data", "train", encoded, [0, 1, label])
    text = message(tmp_path, **keys)
    assert f"{path} row 2 has label {label}, outside 0..1" in text and "data.classes" in text


def test_label_that_is_missing(tmp_path: Path) -> None:
    write_small_parquet(tmp_path / "data")
    (path,) = write_parquet(tmp_path / "data", "train", [encode_png(make_images(1)[0])] * 2, [1, None])
    assert f"{path} row 1 has no label in column label" in message(tmp_path)


def test_identifiers_are_not_taken_for_classes(tmp_path: Path) -> None:
    write_small_parquet(tmp_path / "data")
    write_parquet(tmp_path / "data", "train", [encode_png(make_images(1)[0])] * 2, [10**12, 1])
    text = message(tmp_path)
    assert "1000000000001 classes and 2 training images" in text and "data.label_column" in text


def test_single_class(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split, {"cat": make_images(2)})
    assert "single class" in message(tmp_path, "folder")
