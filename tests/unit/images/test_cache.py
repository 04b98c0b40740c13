"""The cache: built once, complete or absent, and honest about what it cannot do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hsee_ray.data.cache as cache
from hsee_ray.config.schema import DataConfig
from hsee_ray.data import DatasetFiles, channel_statistics, open_images, prepare
from hsee_ray.errors import ConfigError, DataError, UserError
from hsee_ray.rundir.location import RunLocation
from tests.tiny_data import make_images, write_folder


def small_config(tmp_path: Path, **keys: Any) -> DataConfig:
    return DataConfig(name="folder", root=str(tmp_path / "data"), cache=str(tmp_path / "cache"), **keys)


def write_small_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", "train", {"a": make_images(2), "b": make_images(2, seed=1)})
    write_folder(tmp_path / "data", "test", {"a": make_images(1, seed=2)})


def files_in(directory: Path) -> list[Path]:
    """Files of a cache, without the empty ones that locks are."""
    return sorted(path for path in directory.iterdir() if path.suffix != ".lock")


def test_a_second_run_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_folder(tmp_path)
    first = prepare(small_config(tmp_path))

    def refuse(*_args: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "decode_split", refuse)
    assert prepare(small_config(tmp_path)) == first
    assert (first.name, first.class_names, first.image_shape) == ("folder", ("a", "b"), (8, 8, 3))
    assert list(map(str, first.notes)) == ["1 classes have no test image (first: b)"]


def test_a_changed_source_or_key_is_built_anew(tmp_path: Path) -> None:
    write_small_folder(tmp_path)
    first = prepare(small_config(tmp_path))
    smaller = prepare(small_config(tmp_path, image_size=4))
    assert smaller.train != first.train
    os.utime(tmp_path / "data" / "train" / "a" / "0.png", ns=(1, 1))
    touched = prepare(small_config(tmp_path))
    assert touched.train not in (first.train, smaller.train)
    # What only chooses among the images does not decode them again.
    assert prepare(small_config(tmp_path, train_samples=2, augment=True)) == touched


def test_images_are_mapped_not_copied(tmp_path: Path) -> None:
    write_small_folder(tmp_path)
    train = open_images(prepare(small_config(tmp_path)).train)
    assert train.images_NHWC.dtype == np.uint8 and train.labels_N.dtype == np.int64
    assert not train.images_NHWC.flags.owndata and not train.images_NHWC.flags.writeable
    assert not train.labels_N.flags.owndata and not train.labels_N.flags.writeable


def test_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepare(DataConfig(name="synthetic")).train.parent == tmp_path / "xdg" / "hsee-ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepare(DataConfig(name="synthetic")).train.parent == tmp_path / "home" / ".cache" / "hsee-ray"
    monkeypatch.chdir(tmp_path)
    files = prepare(DataConfig(name="synthetic", cache="here"))
    assert files.train.parent == tmp_path / "here"
    assert files.train.name.startswith("synthetic-train-")


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has a number only."""

    def nobody(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(ConfigError, match=r"no home directory is known .*; set data.cache, or HOME"):
        prepare(DataConfig(name="synthetic"))
    with pytest.raises(UserError, match="no home directory is known for ~; set HOME, or"):
        RunLocation("~/runs/a")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_folder(tmp_path)

    def full(_descriptor: int) -> None:
        assert len(files_in(tmp_path / "cache")) == 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError) as caught:
        prepare(small_config(tmp_path))
    assert f"directory {tmp_path / 'cache'} (No space left on device)" in str(caught.value)
    assert "--set data.cache=DIR" in str(caught.value)
    assert files_in(tmp_path / "cache") == []


def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path: Path) -> None:
    """A write that the system really refuses, in a process of its own."""
    program = (
        "import resource, sys\n"
        "from hsee_ray.config.schema import DataConfig\n"
        "from hsee_ray.data import prepare\n"
        "from hsee_ray.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    prepare(DataConfig(name='synthetic', cache=sys.argv[1]))\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-B", "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert f"cannot use the cache directory {tmp_path} (File too large" in run.stdout
    assert files_in(tmp_path) == []


def test_a_cache_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    write_small_folder(tmp_path)
    with pytest.raises(DataError, match=r"cannot use the cache directory .*cache.*--set data\.cache=DIR"):
        prepare(small_config(tmp_path))


def test_a_damaged_cache_file_is_named(tmp_path: Path) -> None:
    write_small_folder(tmp_path)
    files = prepare(small_config(tmp_path))
    files.train.write_bytes(files.train.read_bytes()[:100])
    with pytest.raises(DataError, match=f"cannot read {files.train} .*delete it"):
        prepare(small_config(tmp_path))
    files.train.unlink()
    assert prepare(small_config(tmp_path)) == files
    assert len(open_images(files.train).labels_N) == 4


def test_of_two_builders_one_waits_and_finds_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second builder starts while the first one is between writing and renaming."""
    write_small_folder(tmp_path)
    fsync, decode = os.fsync, cache.decode_split
    second: list[Future[DatasetFiles]] = []
    decoded = []

    def start_another(descriptor: int) -> None:
        fsync(descriptor)
        if not second:
            second.append(pool.submit(prepare, small_config(tmp_path)))

    def count(*args: Any) -> Any:
        decoded.append(args)
        return decode(*args)

    monkeypatch.setattr(os, "fsync", start_another)
    monkeypatch.setattr(cache, "decode_split", count)
    with ThreadPoolExecutor(1) as pool:
        first = prepare(small_config(tmp_path))
        assert second[0].result(timeout=60) == first
    assert len(decoded) == 2
    assert files_in(tmp_path / "cache") == sorted([first.train, first.test])
    assert np.array_equal(open_images(first.train).images_NHWC[:2], make_images(2))


def test_a_cache_without_locks_is_built_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_lock: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    write_small_folder(tmp_path)
    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    assert prepare(small_config(tmp_path)).class_names == ("a", "b")


def test_what_a_killed_builder_left_is_removed_a_day_later(tmp_path: Path) -> None:
    write_small_folder(tmp_path)
    (tmp_path / "cache").mkdir()
    old, young = (tmp_path / "cache" / f".folder-train-{age}.arrow.{age}.tmp" for age in ("old", "young"))
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (1, 1))
    prepare(small_config(tmp_path))
    assert not old.exists() and young.exists()


def test_a_class_that_comes_later_is_seen(tmp_path: Path) -> None:
    """Its key covers the classes, not only the files."""
    write_small_folder(tmp_path)
    assert prepare(small_config(tmp_path)).class_names == ("a", "b")
    (tmp_path / "data" / "train" / "c").mkdir()
    with pytest.raises(DataError, match=r"train/c has no images: add some, or remove the directory"):
        prepare(small_config(tmp_path))


def test_equal_pixels_have_equal_digests_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write_small_folder(tmp_path / place)
    here, there = (prepare(small_config(tmp_path / place)) for place in ("here", "there"))
    assert here.digests == there.digests and len(set(here.digests)) == 2
    write_folder(tmp_path / "there" / "data", "train", {"a": make_images(2, seed=9)})
    changed = prepare(small_config(tmp_path / "there"))
    assert changed.digests[0] != here.digests[0] and changed.digests[1] == here.digests[1]


def test_images_that_occur_twice_are_noted(tmp_path: Path) -> None:
    images = make_images(3)
    write_folder(tmp_path / "data", "train", {"a": images[:2], "b": images[1:]})
    write_folder(tmp_path / "data", "test", {"a": images[:1], "b": make_images(1, seed=5)})
    first, second = map(str, prepare(small_config(tmp_path)).notes)
    assert first.startswith("1 training images occur with another label too (first: ") and "train/b/0.png" in first
    assert second.startswith("1 test images occur in training too (first: ") and "test/a/0.png" in second


def test_nothing_here_needs_torch(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from hsee_ray.config.schema import DataConfig\n"
        "from hsee_ray.data import prepare\n"
        "prepare(DataConfig(name='synthetic', cache=sys.argv[1]))\n"
        "print(json.dumps([name in sys.modules for name in ('torch', 'ray')]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [False, False]


def test_statistics_of_two_pixels() -> None:
    """Channel 0 holds 0 and 255 (mean 1/2, deviation 1/2), channel 1 only 51; image 1 is not asked for."""
    images = np.array([[[[0, 51], [255, 51]]], [[[9, 9], [9, 9]]]], np.uint8)
    mean, std = channel_statistics(images, np.array([0]))
    assert mean == (0.5, 0.2)
    assert std == (0.5, 1.0)


def test_statistics_over_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsee_ray.data.images._STATISTICS_CHUNK_BYTES", 500)
    images, indices = make_images(20), np.arange(1, 20, 2)
    mean, std = channel_statistics(images, indices)
    scaled = images[indices] / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)
    assert channel_statistics(images, indices[::-1].copy()) == (mean, std)
