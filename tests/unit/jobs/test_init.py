"""`hsee init`: what it writes can be trained, and what cannot be meant is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsee_ray.config.files import load_config
from jobs.init import main
from tests.tiny_data import make_images, write_folder


@pytest.fixture(autouse=True)
def working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", None)


def test_defaults_are_the_digits_on_three_kinds_of_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    config = load_config(Path("hsee.yaml"))
    assert config.data.name == "digits"
    assert [(tier.name, tier.clients, tier.cut) for tier in config.tiers] == [
        ("sensor", 2, "layer1"),
        ("hub", 2, "layer2"),
        ("gateway", 2, "layer3"),
    ]
    assert "hsee train --config hsee.yaml --in-process" in capsys.readouterr().out


def test_devices_with_profiles_leave_their_cuts_to_the_planner() -> None:
    assert main(["--devices", "esp32-s3, raspberry-pi-4", "--clients", "4,1", "--out", "fleet.yaml"]) == 0
    config = load_config(Path("fleet.yaml"))
    assert [(tier.device, tier.clients, tier.cut) for tier in config.tiers] == [
        ("esp32-s3", 4, "auto"),
        ("raspberry-pi-4", 1, "auto"),
    ]
    assert config.simulation.server is not None


def test_a_device_with_little_memory_gets_smaller_batches(tmp_path: Path) -> None:
    """64x64 images: 21.5 MiB in batches of 32 at the lowest cut, and 5.4 MiB in batches of 8; the device has 8 MiB."""
    for split in ("train", "test"):
        write_folder(tmp_path / "photos", split, {name: make_images(20, 64, 64) for name in ("cat", "dog")})
    assert main(["--data", "photos", "--devices", "esp32-s3,raspberry-pi-4", "--clients", "1"]) == 0
    small, large = load_config(Path("hsee.yaml")).tiers
    assert (small.batch_size, large.batch_size) == (8, None)


def test_a_folder_of_photos_is_brought_to_one_size(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", "train", {"cat": make_images(6), "dog": make_images(6, seed=1)})
    write_folder(tmp_path / "photos", "test", {"cat": make_images(2, seed=2), "dog": make_images(2, seed=3)})
    assert main(["--data", "photos", "--devices", "watch,phone", "--out", "photos.yaml"]) == 0
    data = load_config(Path("photos.yaml")).data
    assert (data.name, data.root, data.image_size) == ("folder", str(tmp_path / "photos"), None)


def test_a_person_is_asked_for_what_the_options_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "3" if "How many" in question else ""

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", answer)
    assert main(["--devices", "a,b"]) == 0
    assert [tier.clients for tier in load_config(Path("hsee.yaml")).tiers] == [3, 3]
    assert [question.split(" ")[0] for question in asked] == ["Directory", "How"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--devices", "a,,b"], "--devices a,,b: give different names, separated by commas"),
        (["--devices", "a,a"], "--devices a,a: give different names"),
        (["--clients", "1,2"], "--clients 1,2: give one number above 0, or one for each of 3 kinds"),
        (["--clients", "²"], "--clients ²: give one number above 0"),
        (["--rounds", "0"], "--rounds: give at least 1"),
        (["--data", "nowhere"], "nowhere: there is no such directory"),
        (["--data", "."], "has no directories of images"),
        (["--clients", "900"], "2700 clients cannot share"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "hsee.yaml").exists()


def test_no_file_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("hsee.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert main([]) == 2
    assert "there is such a file already" in capsys.readouterr().err
    assert Path("hsee.yaml").read_text(encoding="utf-8") == "seed: 1\n"


def test_a_device_without_a_profile_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--devices", "esp32-s3,raspbery-pi-4"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("no profile is known of raspbery-pi-4; did you mean raspberry-pi-4?: the cuts are a guess")


@pytest.mark.parametrize("option", ["--data", "--devices", "--clients"])
def test_an_empty_answer_is_not_the_default(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option, ""]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("hsee.yaml").exists()
