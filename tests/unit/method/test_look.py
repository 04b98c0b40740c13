"""A look at the data: the numbers of a run's images, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.method.look import look
from hsee_ray.method.setup import Setup, prepare_run
from jobs.data import main
from tests.tiny_data import make_images, write_folder


def config_of(tmp_path: Path, **data: Any) -> dict[str, Any]:
    return {
        "model": {"name": "tests.networks:conv_units"},
        "data": {
            "name": "folder",
            "root": str(tmp_path / "photos"),
            "cache": str(tmp_path / "cache"),
            "calibration_fraction": 0,
            **data,
        },
        "tiers": [{"name": "sensor", "clients": 2, "cut": 1}, {"name": "hub", "clients": 1, "cut": 2}],
    }


def write_photos(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", "train", {"cat": make_images(8), "dog": make_images(7, seed=1)})
    write_folder(tmp_path / "photos", "test", {"cat": make_images(3, seed=2), "dog": make_images(2, seed=3)})


def prepared(tmp_path: Path, **data: Any) -> Setup:
    return prepare_run(load_config(config_of(tmp_path, **data)))


def test_numbers_per_class_and_client(tmp_path: Path) -> None:
    write_photos(tmp_path)
    assert look(prepared(tmp_path)) == [
        "15 training and 5 test images, 8x8x3; training images per class 7 to 8, per client 5"
    ]


def test_what_was_noted_and_what_a_run_leaves_out(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "photos" / "train" / "cat" / "notes.txt").write_text("of the photographer")
    lines = look(prepared(tmp_path, test_samples=1))
    assert lines[1].startswith("1 files ignored, which by their names are no images (first: ")
    assert lines[2] in ("no test images in this run for class cat", "no test images in this run for class dog")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    write_photos(tmp_path)
    config, sheet = tmp_path / "config.yaml", tmp_path / "sheet.png"
    config.write_text(yaml.safe_dump(config_of(tmp_path, augment=True)))
    assert main(["--config", str(config), "--sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[4:7]] == [
        ["cat", "8", "3", *printed.splitlines()[4].split()[3:]],
        ["dog", "7", "2", *printed.splitlines()[5].split()[3:]],
        ["all", "15", "5", "5", "5", "5"],
    ]
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert main(["--config", str(config), "--set", "data.root=/nowhere"]) == 2
    assert "the data directory /nowhere does not exist" in capsys.readouterr().err


def test_equal_beginnings_have_equal_fingerprints(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write_photos(tmp_path / place)
    here, there = (prepared(tmp_path / place) for place in ("here", "there"))
    assert here.fingerprint == there.fingerprint and len(set(here.fingerprint.values())) == 5
    write_folder(tmp_path / "there" / "photos", "test", {"cat": make_images(1, seed=9)})
    changed = prepared(tmp_path / "there").fingerprint
    assert [name for name in changed if changed[name] != here.fingerprint[name]] == ["test images"]
    write_folder(tmp_path / "there" / "photos", "train", {"fox": make_images(1, seed=9)})
    changed = prepared(tmp_path / "there").fingerprint
    assert "names of the classes" in [name for name in changed if changed[name] != here.fingerprint[name]]
