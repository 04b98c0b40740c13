"""Device profiles: what a device computes, holds, sends and draws. Presets lie in `presets.yaml`.

Figures are of one core where a device computes several models side by side. docs/devices.md explains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import Field

from hsee_ray.config.problems import Strict, did_you_mean, in_one_line, read_text
from hsee_ray.config.yaml_text import read_yaml
from hsee_ray.errors import ConfigError

if TYPE_CHECKING:
    from hsee_ray.devices.counter import OpCounts


class DeviceProfile(Strict):
    """One kind of device."""

    compute_gflops: float = Field(gt=0)
    """Sustained in training, float32, of one core; a multiply-add is two operations."""
    memory_mib: float = Field(gt=0)
    uplink_mbit_s: float = Field(gt=0)
    downlink_mbit_s: float = Field(gt=0)
    latency_ms: float = Field(0.0, ge=0)
    """One way, for each message."""
    active_w: float = Field(ge=0)
    """Drawn by the whole device, or the whole GPU with its host, with all its cores at work."""
    radio_w: float = Field(ge=0)
    """Drawn while it sends or receives."""
    cores: int = Field(1, ge=1)
    """Models that compute side by side; of a GPU, those that share it."""
    memory_gib_s: float | None = Field(None, gt=0)
    """Bandwidth of its memory, of one core; None: not known, and not reckoned with."""
    operator_us: float = Field(0.0, ge=0)
    """Microseconds that each operator takes beside its arithmetic."""
    processor: str | None = None
    """Processor that it was measured on, as hsee profile-device found it; None of a profile that is not measured."""
    preset: str | None = None
    """Preset that stands for the same machine, to be shown beside this profile."""
    source: str = Field(min_length=1)
    """Source of the figures."""

    @property
    def core_w(self) -> float:
        """Watts that a model at work on one core of a shared machine is charged with:

            core_w = active_w / cores

        A run that uses one core of 64 pays for a 64th; what is idle costs nothing.
        """
        return self.active_w / self.cores


def seconds(work: OpCounts, profile: DeviceProfile) -> float:
    """Seconds that a piece of work takes one core of a device:

        t = 2 multiply_adds / (compute_gflops 1e9) + traffic_bytes / (memory_gib_s 2**30) + operators operator_us 1e-6

    The terms are those of the roofline model (Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785), added
    and not the larger of them: the operators of a step are in turn bound by the one and by the other. A term whose
    figure is not known is left out.
    """
    time_s = 2 * work.multiply_adds / (profile.compute_gflops * 1e9) + work.operators * profile.operator_us * 1e-6
    if profile.memory_gib_s is not None:
        time_s += work.traffic_bytes / (profile.memory_gib_s * 2**30)
    return time_s


def load_profiles(path: str | Path | None) -> dict[str, DeviceProfile]:
    """The presets by name, with the profiles of the user's own YAML file beside them and before them.

    Raises ConfigError, in one line, for a file that cannot be read, is no YAML, or has a profile that is none.
    """
    profiles = load_presets()
    if path is not None:
        profiles.update(_parse(read_text(Path(path), "name a file of profiles in simulation.profiles"), str(path)))
    return profiles


def load_presets() -> dict[str, DeviceProfile]:
    """The presets that come with the project, by name."""
    text = files("hsee_ray.devices").joinpath("presets.yaml").read_text(encoding="utf-8")
    return _parse(text, "hsee_ray/devices/presets.yaml")


def profile_of(profiles: Mapping[str, DeviceProfile], name: str, where: str) -> DeviceProfile:
    """The profile of a device that the key `where` of a configuration names. Raises ConfigError for an unknown one."""
    if name not in profiles:
        hint = did_you_mean(name, profiles)
        raise ConfigError(
            f"{where} is {name!r}: there is no such device{hint} (known: {', '.join(sorted(profiles))}; your own go "
            "into a file that simulation.profiles names, see docs/devices.md)"
        )
    return profiles[name]


def dump_profile(name: str, profile: DeviceProfile) -> str:
    """YAML text that `load_profiles` reads."""
    return yaml.safe_dump({name: profile.model_dump(exclude_none=True)}, sort_keys=False, width=110)


def _parse(text: str, where: str) -> dict[str, DeviceProfile]:
    values = read_yaml(text, where)
    if not isinstance(values, dict) or not all(isinstance(figures, dict) for figures in values.values()):
        raise ConfigError(f"{where}: should hold devices by name, each with its figures (docs/devices.md)")
    profiles: dict[str, DeviceProfile] = {}
    for name, figures in values.items():
        with in_one_line(DeviceProfile, f"{where}: {name}: ", "see docs/devices.md"):
            profiles[str(name)] = DeviceProfile.model_validate(figures)
    return profiles
