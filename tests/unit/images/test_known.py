"""What is known of data sets by name is what reading them gives; whether they lie there is told without fetching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hsee_ray.config.schema import DataConfig
from hsee_ray.data import is_there, known_classes, known_shape, known_train_images, open_images, prepare
from tests.tiny_data import make_images, write_cifar10, write_folder


@pytest.mark.parametrize(
    "content",
    [
        {"name": "digits"},
        {"name": "synthetic"},
        {"name": "synthetic", "image_size": 8, "channels": 1, "classes": 3, "train_samples": 20},
        {"name": "digits", "image_size": 12, "channels": 3, "classes": 11},
    ],
)
def test_known_is_what_reading_gives(content: dict[str, Any], tmp_path: Path) -> None:
    config = DataConfig(cache=str(tmp_path), **content)
    files = prepare(config)
    assert known_shape(config) == files.image_shape
    assert known_classes(config) == len(files.class_names)
    assert known_train_images(config) == len(open_images(files.train).labels_N)


def test_of_images_of_ones_own_the_config_alone_is_known() -> None:
    config = DataConfig(name="folder", root="somewhere")
    assert (known_shape(config), known_classes(config), known_train_images(config)) == (None, None, None)
    assert known_shape(DataConfig(name="folder", root="somewhere", image_size=20)) is None
    told = DataConfig(name="folder", root="somewhere", image_size=20, channels=3, classes=7, train_samples=50)
    assert (known_shape(told), known_classes(told), known_train_images(told)) == ((20, 20, 3), 7, 50)


def test_whether_images_lie_there(tmp_path: Path) -> None:
    assert is_there(DataConfig(name="digits")) and is_there(DataConfig(name="synthetic"))
    for name in ("cifar10", "cifar100", "stl10", "folder", "parquet"):
        assert not is_there(DataConfig(name=name, root=str(tmp_path / "missing")))
    assert not (tmp_path / "missing").exists(), "nothing was fetched"
    write_cifar10(tmp_path)
    assert is_there(DataConfig(name="cifar10", root=str(tmp_path)))
    write_folder(tmp_path / "own", "train", {"cat": make_images(2)})
    assert is_there(DataConfig(name="folder", root=str(tmp_path / "own")))
