"""Presets beside measured profiles: who is warned, and of what."""

from __future__ import annotations

from typing import Any

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config
from hsee_ray.devices.cost import CostTable
from hsee_ray.devices.profiles import DeviceProfile, load_presets
from hsee_ray.planning.mixture import mixture_warnings

MEASURED = DeviceProfile(
    compute_gflops=0.89, memory_mib=900, uplink_mbit_s=80, downlink_mbit_s=80, active_w=5, radio_w=1, cores=2,
    operator_us=100, source="made up",
)  # fmt: skip
COSTS_OF = {"model": {"name": "resnet18", "width": 8}, "data": {"name": "digits"}}


def warned(device: str, server: str, profile: DeviceProfile, name: str = "board") -> list[str]:
    config: Config = load_config(
        {**COSTS_OF, "tiers": [{"name": "a", "clients": 1, "cut": "stem", "device": device}],
         "simulation": {"server": server}},
    )  # fmt: skip
    return mixture_warnings(config, {**load_presets(), name: profile}, CostTable(config, (8, 8, 1), 10))


def test_profiles_of_one_kind_are_compared_without_a_word() -> None:
    assert warned("raspberry-pi-4", "cloud-t4", MEASURED) == []
    assert warned("board", "board", MEASURED) == []


@pytest.mark.parametrize("by_name", [True, False])
def test_a_measured_profile_beside_a_preset_says_by_how_much_they_differ(by_name: bool) -> None:
    """545,920 multiply-adds: 1.227 ms at 0.89 GFLOP/s and some operators of 100 us; 0.613 ms at the preset's 1.78."""
    changes: dict[str, Any] = {"operator_us": 0} | ({} if by_name else {"preset": "raspberry-pi-4"})
    name = "raspberry-pi-4" if by_name else "board"
    (line,) = warned(name, "cloud-t4", MEASURED.model_copy(update=changes), name)
    assert line.startswith(f"warning: {name} is a profile of your own, and cloud-t4 a preset: they count differently; ")
    assert f"takes {name} 1.23 ms, and the preset raspberry-pi-4 for the same machine 0.613 ms" in line
    assert line.endswith(": 2 times as long; 5 W in place of 7.2 W, 2 cores in place of 4")


def test_own_profiles_without_a_preset_share_a_line() -> None:
    tiers = [{"name": name, "clients": 1, "cut": "stem", "device": name} for name in ("board", "phone")]
    config = load_config({**COSTS_OF, "tiers": tiers, "simulation": {"server": "cloud-t4"}})
    profiles = {**load_presets(), "board": MEASURED, "phone": MEASURED}
    (line,) = mixture_warnings(config, profiles, CostTable(config, (8, 8, 1), 10))
    assert line.startswith("warning: board and phone are profiles of your own, and cloud-t4 a preset: they count diff")


def test_without_a_preset_for_the_same_machine_the_warning_asks_for_it() -> None:
    (line,) = warned("board", "cloud-t4", MEASURED)
    assert "by how much is not known: give board the key `preset: NAME` of the same machine" in line
    assert "raspberry-pi-4" in line and "\n" not in line
