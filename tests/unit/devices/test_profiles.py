"""Profiles of devices: presets, a user's own beside them, and one clear line for a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hsee_ray.devices.counter import OpCounts
from hsee_ray.devices.profiles import DeviceProfile, dump_profile, load_profiles, profile_of, seconds
from hsee_ray.errors import ConfigError

FIGURES: dict[str, Any] = {
    "compute_gflops": 2.0, "memory_mib": 512, "uplink_mbit_s": 10, "downlink_mbit_s": 20, "active_w": 3, "radio_w": 1,
    "source": "made up",
}  # fmt: skip


def written(tmp_path: Path, **changes: Any) -> Path:
    """A file with one device; a change of None leaves the figure out."""
    path = tmp_path / "own.yaml"
    figures = {name: value for name, value in {**FIGURES, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump({"board": figures}))
    return path


def refusal(path: str | Path) -> str:
    with pytest.raises(ConfigError) as refused:
        load_profiles(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_presets_span_five_orders_of_magnitude_and_name_their_sources() -> None:
    presets = load_profiles(None)
    computing = {name: profile.compute_gflops for name, profile in presets.items()}
    assert max(computing.values()) > 10_000 * min(computing.values())
    for name, profile in presets.items():
        assert "http" in profile.source, name
        assert "Assumed" in profile.source, name


def test_docs_list_the_presets_as_they_are() -> None:
    text = (Path(__file__).parents[3] / "docs" / "devices.md").read_text()
    for name, device in load_profiles(None).items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        _, cores, gflops, mib, links, latency, watts = [cell.strip() for cell in row.strip("|").split("|")]
        assert float(cores) == device.cores
        assert float(gflops) == device.compute_gflops
        assert float(mib) == device.memory_mib
        assert [float(link) for link in links.split("/")] == [device.uplink_mbit_s, device.downlink_mbit_s]
        assert float(latency) == device.latency_ms
        assert [float(watt) for watt in watts.split("/")] == [device.active_w, device.radio_w]


def test_own_profiles_stand_beside_the_presets_and_before_them(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"board": FIGURES, "raspberry-pi-4": {**FIGURES, "memory_mib": 1024}}))
    profiles = load_profiles(path)
    assert profiles["board"].compute_gflops == 2.0
    assert profiles["raspberry-pi-4"].memory_mib == 1024
    assert profiles.keys() == {*load_profiles(None), "board"}


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    profile = DeviceProfile(**FIGURES, memory_gib_s=1.5, operator_us=20.0, cores=4)
    path = tmp_path / "own.yaml"
    path.write_text(dump_profile("board", profile))
    assert load_profiles(path)["board"] == profile


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compute_gflops", 0),
        ("memory_mib", -1),
        ("uplink_mbit_s", 0.0),
        ("downlink_mbit_s", -2.5),
        ("latency_ms", -1),
        ("active_w", -1),
        ("radio_w", -0.1),
        ("cores", 0),
        ("memory_gib_s", 0),
        ("operator_us", -1),
        ("compute_gflops", "fast"),
        ("compute_gflops", float("inf")),
        ("cores", True),
        ("source", ""),
    ],
)
def test_a_figure_that_no_device_has(tmp_path: Path, field: str, value: object) -> None:
    path = written(tmp_path, **{field: value})
    assert refusal(path).startswith(f"{path}: board: {field} is {value!r}: ")


def test_a_figure_that_is_missing_or_misspelt(tmp_path: Path) -> None:
    path = written(tmp_path, memory_mib=None)
    assert refusal(path).startswith(f"{path}: board: memory_mib: is missing; see docs/devices.md")
    path = written(tmp_path, compute_gflop=1)
    assert "board: compute_gflop: unknown key; did you mean compute_gflops? (known here: active_w, " in refusal(path)


def test_files_that_hold_no_profiles(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    assert "No such file" in refusal(path)
    assert "simulation.profiles" in refusal(path)
    for text in ("", "- board", "board: 3"):
        path.write_text(text)
        assert f"{path}: should hold devices by name" in refusal(path)
    path.write_text("board: {compute_gflops: 1")
    assert f"{path}: is not valid YAML" in refusal(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not a text file" in refusal(path)


def test_a_device_that_nobody_knows() -> None:
    profiles = {"board": DeviceProfile(**FIGURES)}
    assert profile_of(profiles, "board", "tiers.0.device") is profiles["board"]
    with pytest.raises(ConfigError) as refused:
        profile_of(profiles, "bord", "tiers.0.device")
    assert str(refused.value).startswith(
        "tiers.0.device is 'bord': there is no such device; did you mean board? (known: board; "
    )


def test_seconds_by_hand() -> None:
    # 500 million multiply-adds are a GFLOP; at 2 GFLOP/s half a second. 1 GiB at 4 GiB/s takes a quarter, and 1,000
    # operators of 50 us a twentieth.
    work = OpCounts(500_000_000, 2**30, 1_000)
    assert seconds(work, DeviceProfile(**FIGURES)) == pytest.approx(0.5)
    assert seconds(work, DeviceProfile(**FIGURES, memory_gib_s=4, operator_us=50)) == pytest.approx(0.5 + 0.25 + 0.05)
