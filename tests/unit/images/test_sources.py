"""Every source is read to the pixel, and everything that may be wrong with one is said in one line."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


def test_sixteen_bits_are_read_where_it_is_said_how_many_count(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535]] * 4, np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    for split in ("train", "test"):
        write_parquet(tmp_path / "data", split, [file.getvalue()] * 2, [0, 1])
    text = message(tmp_path)
    assert "row 0 has more than 8 bits per pixel (its values go from 0 to 65535)" in text and "data.bits=16" in text
    files = prepare_in(tmp_path, "parquet", bits=16)
    assert "2 images reduced from 16 to 8 bits" in str(files.notes[0])
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


def test_classes_without_train_and_test_are_told_where_to_go(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat", "dog", ".git"):
        (tmp_path / "data" / name).mkdir(parents=True)
    text = message(tmp_path, "folder")
    assert "data has ant, bee, cat, ... and no directory train: if these are classes, move most images of each" in text
    assert f"{tmp_path / 'data' / 'test'}/<class>/" in text


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
    assert prepare_in(tmp_path, "parquet").class_names == ("0", "1")  # the only column of images
    text = message(tmp_path, image_column="picture")
    assert "no image column picture" in text and "photo, label" in text and "data.image_column" in text
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


@pytest.mark.parametrize(("labels", "wrong"), [([0, -1, 0], -1), ([0, 2**63 - 1, 0], None)])
def test_labels_that_leave_one_class_are_named(tmp_path: Path, labels: list[int], wrong: int | None) -> None:
    write_small_parquet(tmp_path / "data")
    encoded = [encode_png(image) for image in make_images(3)]
    for split in ("train", "test"):
        write_parquet(tmp_path / "data", split, encoded, labels)
    text = message(tmp_path)
    assert "single class" not in text
    assert wrong is None or f"row 1 has label {wrong}, outside 0..0" in text


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred"])
def test_a_class_that_breaks_a_line_or_steers_a_terminal(tmp_path: Path, name: str) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split, {name: make_images(2), "c": make_images(2)})
    assert message(tmp_path, "folder").endswith("it is no UTF-8 text in one line; rename it")


def test_a_note_is_one_line(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split, {"a": make_images(2), "b": make_images(2)})
    (tmp_path / "data" / "train" / "a" / "\x1b[2J\n.txt").write_text("x")
    assert "\\x1b[2J\\n.txt" in str(prepare_in(tmp_path, "folder").notes[0])


def test_postscript_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for it."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked for"))
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split, {"a": make_images(2), "b": make_images(2)})
    path = tmp_path / "data" / "train" / "a" / "0.png"
    Image.fromarray(make_images(1)[0]).save(path, "EPS")
    assert f"{path} does not decode" in message(tmp_path, "folder")


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


# Guesses


def write_pictures(directory: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_images(1, seed=number)[0]).save(directory / name)


def test_a_folder_is_read_with_all_that_is_below_a_class(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_pictures(
        data / "train", ["a/0.png", "a/deep/er/1.jfif", "b/0.PNG", "b/1.webp", "@eaDir/0.png", "__MACOSX/0.png"]
    )
    write_pictures(data / "test", ["a/0.png", "b/1.png", "b/.hidden.png"])
    (data / "train" / "readme.txt").write_text("about")
    (data / "train" / "b" / "list.txt").write_text("of images")
    (data / "train" / "a" / "deep" / "loop").symlink_to(data / "train" / "a")
    os.mkfifo(data / "train" / "b" / "pipe.png")
    (data / "test" / "a" / "zero.png").symlink_to("/dev/zero")
    files = prepare_in(tmp_path, "folder")
    assert files.class_names == ("a", "b")
    assert open_images(files.train).labels_N.tolist() == [0, 0, 1, 1]
    assert open_images(files.test).labels_N.tolist() == [0, 1]
    texts = [str(note).partition(" (")[0] for note in files.notes]
    assert texts[:4] == [
        "3 hidden files and files of systems ignored",
        "1 files beside the directories of classes ignored",
        "1 links to a directory above them ignored",
        "1 files ignored, which by their names are no images",
    ]
    assert texts[4:5] == ["2 pipes, sockets and devices ignored"]


def test_class_names_that_are_numbers_stay_apart(tmp_path: Path) -> None:
    images = {name: make_images(1, seed=int(name)) for name in "123"}
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split, images)
    assert prepare_in(tmp_path, "folder", classes=5).class_names == ("1", "2", "3", "class 3", "4")


def write_table(path: Path, **columns: Sequence[int]) -> None:
    """A table of these columns, and one of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [encode_png(image) for image in make_images(len(next(iter(columns.values()))), seed=len(str(path)))]
    pq.write_table(pa.table({"img": images, **columns}), path)


def test_train_and_test_have_one_label_column(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_table(data / "train-0.parquet", label=[0, 1, 0], row=[0, 1, 2])
    write_table(data / "test-0.parquet", row=[0, 1])
    text = message(tmp_path)
    assert ("have no" not in text and "test-0.parquet" not in text.partition(": ")[0]) or "label" in text
    write_table(data / "test-0.parquet", label=[1, 0], row=[0, 1])
    assert open_images(prepare_in(tmp_path, "parquet").test).labels_N.tolist() == [1, 0]


def test_shards_do_not_mix_columns(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_table(data / "train-0.parquet", label=[0, 1], fine_label=[1, 0])
    write_table(data / "train-1.parquet", fine_label=[1, 0])
    write_table(data / "test-0.parquet", fine_label=[0, 1])
    assert open_images(prepare_in(tmp_path, "parquet").train).labels_N.tolist() == [1, 0, 1, 0]
    write_table(data / "train-1.parquet", labels=[1, 0])
    assert "its files have no integer label column in common" in message(tmp_path)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, 1, 2, 3], "each training image has a label of its own"),
        ([1, 2, 1, 2], "no training image has label 0"),
        ([10, 20, 20, 10], "21 classes and 4 training images"),
        ([0, 2, 2, 0], "no training image has label 1"),
    ],
)
def test_numbers_that_are_no_labels(tmp_path: Path, labels: list[int], text: str) -> None:
    for split in ("train", "test"):
        write_table(tmp_path / "data" / f"{split}-0.parquet", number=labels)
    found = message(tmp_path)
    assert text in found and "data.classes" in found
    assert len(prepare_in(tmp_path, "parquet", classes=30).class_names) == 30


def test_training_and_test_come_from_one_directory(tmp_path: Path) -> None:
    for directory, split in (("full", "train"), ("small", "train"), ("small", "test")):
        write_table(tmp_path / "data" / directory / f"{split}-0.parquet", label=[0, 1])
    assert prepare_in(tmp_path, "parquet").train.exists()
    assert len(open_images(prepare_in(tmp_path, "parquet").train).labels_N) == 2
    write_table(tmp_path / "data" / "full" / "test-0.parquet", label=[0, 1])
    assert "several directories: name one of" in message(tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "noted"),
    [
        ("train.parquet", "test.parquet", []),
        ("default/train/0000.parquet", "default/test/0000.parquet", []),
        (
            "train-00000-of-00001.parquet",
            "validation-00000-of-00001.parquet",
            ["validation split taken as the test set"],
        ),
    ],
)
def test_parquet_by_any_of_its_names(tmp_path: Path, train: str, test: str, noted: list[str]) -> None:
    for name in (train, test):
        write_table(tmp_path / "data" / name, label=[0, 1])
    files = prepare_in(tmp_path, "parquet")
    assert all(any(text in str(note) for note in files.notes) for text in noted)
    assert len(open_images(files.test).labels_N) == 2


def test_rows_with_a_path_and_no_bytes_are_read(tmp_path: Path) -> None:
    data, images = tmp_path / "data", make_images(4)
    write_pictures(data, ["pictures/0.png"])
    encoded = [encode_png(image) for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": "pictures/0.png"}, {"bytes": encoded[1], "path": "gone.png"}]
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": pa.array(rows, kind), "label": [0, 1]}), data / f"{split}.parquet")
    first = prepare_in(tmp_path, "parquet")
    assert np.array_equal(open_images(first.train).images_NHWC, np.stack([make_images(1, seed=0)[0], images[1]]))
    Image.fromarray(images[2]).save(data / "pictures" / "0.png")
    changed = prepare_in(tmp_path, "parquet")
    assert np.array_equal(open_images(changed.train).images_NHWC[0], images[2])
    (data / "pictures" / "0.png").unlink()
    assert "train.parquet row 0 does not decode" in message(tmp_path) and "pictures/0.png" in message(tmp_path)


@pytest.mark.parametrize(
    "described",
    [
        "{",
        "[]",
        '{"info": null}',
        '{"info": {"features": []}}',
        '{"info": {"features": {"label": {"names": 3}}}}',
        '{"info": {"features": {"label": {"names": ["a", 1]}}}}',
        '{"info": {"features": {"label": {"names": {"0": "a", "2": "b"}}}}}',
        "[" * 100_000,
    ],
)
def test_metadata_that_names_no_classes(tmp_path: Path, described: str) -> None:
    for split in ("train", "test"):
        path = tmp_path / "data" / f"{split}-0.parquet"
        write_table(path, label=[0, 1])
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({b"huggingface": described.encode()}), path)
    assert prepare_in(tmp_path, "parquet").class_names == ("0", "1")


def test_class_names_given_as_a_mapping(tmp_path: Path) -> None:
    names = '{"info": {"features": {"label": {"names": {"1": "dog", "0": "cat"}}}}}'
    for split in ("train", "test"):
        path = tmp_path / "data" / f"{split}-0.parquet"
        write_table(path, label=[0, 1])
        pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": names.encode()}), path)
    assert prepare_in(tmp_path, "parquet").class_names == ("cat", "dog")


COLUMN_TYPES = [pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.string(), pa.binary(), pa.bool_(), pa.null()]
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["img", "image", "label", "labels", "fine_label", "id", "é", "", "a b"]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Any columns under any of the names that mean something, with images that decode, or do not, or are not there."""
    rows = draw(st.integers(0, 4))
    pictures = [encode_png(make_images(1)[0]), b"no picture", None]
    columns: dict[str, pa.Array] = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4)):
        kind = draw(st.sampled_from([*COLUMN_TYPES, IMAGE_TYPE]))
        if kind == IMAGE_TYPE:
            cells = st.fixed_dictionaries(
                {"bytes": st.sampled_from(pictures), "path": st.sampled_from([None, "x", ""])}
            )
        elif pa.types.is_integer(kind):
            cells = st.integers(0 if kind == pa.uint64() else -1, 100)
        else:
            values = {"float": 1.5, "string": "1", "binary": pictures[0], "bool": True, "null": None}
            cells = st.just(values[str(kind)])
        columns[name] = pa.array(draw(st.lists(st.none() | cells, min_size=rows, max_size=rows)), kind)
    metadata = draw(st.none() | st.binary(max_size=30) | st.sampled_from([b'{"info": {"features": 1}}', b"{}"]))
    return pa.table(columns).replace_schema_metadata(None if metadata is None else {b"huggingface": metadata})


@pytest.mark.long
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(train=tables(), test=tables(), column=st.none() | st.sampled_from(NAMES), classes=st.none() | st.integers(2, 9))
def test_no_table_ends_in_a_traceback(train: pa.Table, test: pa.Table, column: str | None, classes: int | None) -> None:
    with TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        data.mkdir()
        for split, table in (("train", train), ("test", test)):
            pq.write_table(table, data / f"{split}.parquet")
        try:
            files = prepare_in(Path(directory), "parquet", label_column=column, classes=classes)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert open_images(files.train).labels_N.max() < len(files.class_names)


@pytest.mark.long
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=()), min_size=1, max_size=20).filter(
            lambda name: name not in (".", "..") and len(name.encode("utf-8", "surrogatepass")) < 200
        ),
        min_size=1,
        max_size=3,
        unique=True,
    )
)
def test_no_name_of_a_class_ends_in_a_traceback(names: list[str]) -> None:
    with TemporaryDirectory() as directory:
        try:
            for split in ("train", "test"):
                write_folder(Path(directory) / "data", split, {name: make_images(1) for name in names})
        except UnicodeEncodeError:  # no name of a file
            return
        try:
            files = prepare_in(Path(directory), "folder")
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert set(files.class_names) <= set(names)
