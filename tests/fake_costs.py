"""Costs that can be reckoned with by hand: a network of three units, and devices that need whole seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import Fleet
from hsee_ray.config.schema import Config
from hsee_ray.devices.cost import Memory, OpCounts, SideCost, UnitCost
from hsee_ray.devices.profiles import DeviceProfile
from hsee_ray.method.strategies import build_fleet

UNITS = ("stem", "layer1", "head")
NOTHING = Memory(0, 0, 0, 0, 0)


class FakeCosts:
    """A step takes 3 multiply-adds for each unit and sample, an answer 1; a unit has 10 parameters, an exit 5.

    A sample's features are 100 bytes, or 25 with int8 and 8 more for each message.
    """

    units = tuple(UnitCost(name, 10, 1, 2, 0, (25,)) for name in UNITS)

    def client(self, cut: int, batch_size: int, with_exit: bool = True, inner_exits: tuple[int, ...] = ()) -> SideCost:
        return _side(
            cut * batch_size,
            {
                **dict.fromkeys(UNITS[:cut], 10),
                **({"exit": 5} if with_exit else {}),
                **{f"exits.{UNITS[i - 1]}": 5 for i in inner_exits},
            },
        )

    def server(self, cut: int, batch_size: int) -> SideCost:
        units = len(UNITS) - cut
        return _side(units * batch_size, dict.fromkeys(UNITS[cut:], 10))

    def feature_bytes(self, cut: int, codec: str, batch_size: int) -> int:
        return 25 * batch_size + 8 if codec == "int8" else 100 * batch_size


def _side(unit_samples: int, parameters: dict[str, int]) -> SideCost:
    return SideCost(
        OpCounts(3 * unit_samples, 0, 0),
        OpCounts(unit_samples, 0, 0),
        parameters,
        NOTHING,
        OpCounts(unit_samples, 0, 0),
    )


def device(adds_per_s: float, bytes_s: float, **figures: Any) -> DeviceProfile:
    """So many multiply-adds a second, and a link of so many bytes a second both ways."""
    mbit_s = bytes_s * 8e-6
    known: dict[str, Any] = {
        "memory_mib": 1.0,
        "active_w": 2.0,
        "radio_w": 10.0,
        "source": "made up",
        "uplink_mbit_s": mbit_s,
        "downlink_mbit_s": mbit_s,
    }
    return DeviceProfile(compute_gflops=2e-9 * adds_per_s, **{**known, **figures})


PROFILES: Mapping[str, DeviceProfile] = {
    "board": device(1.0, 100.0),
    "phone": device(2.0, 200.0),
    "cloud": device(10.0, 1000.0, cores=2),
}


def config_of(*overrides: str, **sections: Any) -> Config:
    """Two sensors on boards that cut after the stem, and a phone after layer1; batches of 2."""
    tiers = [
        {"name": "sensor", "clients": 2, "cut": "stem", "device": "board"},
        {"name": "phone", "clients": 1, "cut": "layer1", "device": "phone"},
    ]
    given = {
        "tiers": tiers,
        "training": {"batch_size": 2},
        "simulation": {"server": "cloud"},
        "evaluation": {"batch_size": 4},
        **sections,
    }
    return load_config(given, overrides)


def fleet_of(config: Config) -> Fleet:
    return build_fleet(config, UNITS)
