"""A device's figures from steps that took so long, and the command that measures them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hsee_ray.config.files import load_config
from hsee_ray.devices.counter import OpCounts
from hsee_ray.devices.fitting import Timed, combined, fit, link, time_steps
from hsee_ray.devices.profiles import DeviceProfile, load_profiles, seconds
from hsee_ray.errors import RunError
from jobs.profile_device import main

WORKS = [
    OpCounts(multiply_adds=500_000_000, traffic_bytes=2**28, operators=400),
    OpCounts(multiply_adds=50_000_000, traffic_bytes=2**30, operators=900),
    OpCounts(multiply_adds=1_000_000, traffic_bytes=2**20, operators=5_000),
    OpCounts(multiply_adds=900_000_000, traffic_bytes=2**24, operators=100),
]
SMALL = {
    "model": {"name": "resnet18", "width": 2},
    "data": {"name": "synthetic", "image_size": 8},
    "tiers": [
        {"name": "low", "clients": 3, "cut": "layer1", "batch_size": 4},
        {"name": "whole", "clients": 1, "cut": 10},
    ],
    "training": {"batch_size": 6},
}


def test_the_figures_that_made_the_times_are_found() -> None:
    profile = DeviceProfile(
        compute_gflops=40, memory_gib_s=8, operator_us=5, memory_mib=1, uplink_mbit_s=1, downlink_mbit_s=1, active_w=1,
        radio_w=1, source="made up",
    )  # fmt: skip
    # 500 million multiply-adds are a GFLOP: 25 ms; a quarter of a GiB 31.25 ms; 400 operators 2 ms.
    assert seconds(WORKS[0], profile) == pytest.approx(0.025 + 0.03125 + 0.002)
    found = fit([Timed(str(n), work, seconds(work, profile)) for n, work in enumerate(WORKS)])
    assert found.compute_gflops == pytest.approx(40, rel=1e-6)
    assert found.memory_gib_s == pytest.approx(8, rel=1e-6)
    assert found.operator_us == pytest.approx(5, rel=1e-6)
    assert found.median_error == pytest.approx(0, abs=1e-9)


def test_memory_that_explains_nothing_is_left_out() -> None:
    found = fit([Timed(str(n), work, work.multiply_adds * 1e-9) for n, work in enumerate(WORKS)])
    assert found.memory_gib_s is None
    assert found.compute_gflops == pytest.approx(2)


def test_arithmetic_has_its_share_where_all_terms_grow_alike() -> None:
    alike = [OpCounts(n * 10**6, n * 2**20, n * 10) for n in (1, 2, 3)]
    found = fit([Timed(str(work), work, work.traffic_bytes / 2**30) for work in alike])
    assert found.median_error == pytest.approx(0, abs=1e-6)
    assert 0 < found.compute_gflops < 1e6


def test_side_by_side() -> None:
    one, other = [Timed("a", WORKS[0], 1.0)], [Timed("a", WORKS[0], 3.0)]
    assert combined([one, other]) == [Timed("a", WORKS[0], 2.0)]


def test_a_link_from_two_messages() -> None:
    # 1 ms and 1 MB/s: 1,000 bytes take 2 ms, 9,000 bytes 10 ms.
    latency_s, bytes_s = link({1000: 0.002, 9000: 0.010})
    assert latency_s == pytest.approx(0.001)
    assert bytes_s == pytest.approx(1e6)
    with pytest.raises(RunError, match="as quick as a small one"):
        link({1000: 0.002, 9000: 0.002})


def test_every_kind_of_step_is_timed_once(tmp_path: Path) -> None:
    config = load_config({**SMALL, "data": {**SMALL["data"], "cache": str(tmp_path), "train_samples": 48}})  # type: ignore[dict-item]
    timed = time_steps([config], repetitions=1)
    assert [step.name.split(",")[0] for step in timed] == ["client", "server", "client"]
    assert all(step.seconds > 0 and step.work.multiply_adds > 0 for step in timed)


def test_the_command_writes_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Steps that are so small take any time at all.
    made_up = [Timed(str(n), work, work.multiply_adds * 1e-9) for n, work in enumerate(WORKS)]
    monkeypatch.setattr("jobs.profile_device._on_all_cores", lambda config, repetitions: [made_up])
    file, out = tmp_path / "config.yaml", tmp_path / "me.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    command = ["--config", str(file), "--repetitions", "1", "--name", "me"]
    link_given = ["--uplink-mbit-s", "80", "--latency-ms", "2", "--active-w", "7"]
    assert main([*command, "--out", str(out), *link_given]) == 0
    shown = capsys.readouterr().out
    assert "error of the fit: median" in shown
    profile = load_profiles(out)["me"]
    assert (profile.uplink_mbit_s, profile.latency_ms, profile.active_w) == (80, 2, 7)
    assert "given: uplink_mbit_s, latency_ms, active_w" in profile.source
    assert "assumed, not measured: downlink_mbit_s, radio_w" in profile.source

    assert main([*command, "--out", str(out), *link_given]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "other.yaml"), "--uplink-mbit-s", "-1"]) == 2
    assert "--uplink-mbit-s is -1" in capsys.readouterr().err


def test_the_presets_are_profiles() -> None:
    presets = load_profiles(None)
    assert {"raspberry-pi-4", "jetson-nano", "cloud-cpu"} <= presets.keys()
    assert all("http" in profile.source or "." in profile.source for profile in presets.values())
