"""Warnings about presets beside measured profiles: they count differently, and by how much is said."""

from __future__ import annotations

from collections.abc import Mapping

from hsee_ray.config.schema import Config
from hsee_ray.devices.cost import CostTable
from hsee_ray.devices.profiles import DeviceProfile, load_presets, seconds


def mixture_warnings(config: Config, profiles: Mapping[str, DeviceProfile], costs: CostTable) -> list[str]:
    """A line for each of the user's own profiles beside presets, one for all that name none of the same machine.

    None where all are of one kind.

    The time of one image through the whole network, by the profile and by the preset for the same machine: the one
    that the profile names, or whose name it has.
    """
    presets = load_presets()
    used = dict.fromkeys([*(str(tier.device) for tier in config.tiers), str(config.simulation.server)])
    own = [name for name in used if profiles[name] != presets.get(name)]
    reckoned = [name for name in used if name not in own]
    if not own or not reckoned:
        return []
    work = costs.client(len(costs.units), 1, with_exit=False).infer
    beside = f"{', '.join(reckoned)} {'are presets' if len(reckoned) > 1 else 'a preset'}: they count differently; "
    warnings: list[str] = []
    unknown = [name for name in own if (profiles[name].preset or name) not in presets]
    if unknown:
        names, known = " and ".join(unknown), ", ".join(presets)
        of_own = "are profiles" if len(unknown) > 1 else "is a profile"
        warnings.append(
            f"warning: {names} {of_own} of your own, and {beside}by how much is not known: give {names} the key "
            f"`preset: NAME` of the same machine, if it is one of {known}"
        )
    for name in own:
        profile = profiles[name]
        twin = profile.preset or name
        if twin not in presets:
            continue
        times_s = seconds(work, profile), seconds(work, presets[twin])
        ratio = times_s[0] / times_s[1]
        apart = f"{ratio:.3g} times as long" if ratio >= 1 else f"{1 / ratio:.3g} times as fast"
        watts = f"{profile.active_w:g} W in place of {presets[twin].active_w:g} W"
        warnings.append(
            f"warning: {name} is a profile of your own, and {beside}an image through the whole network takes {name} "
            f"{1000 * times_s[0]:.3g} ms, and the preset {twin} for the same machine {1000 * times_s[1]:.3g} ms: "
            f"{apart}; {watts}, {profile.cores} cores in place of {presets[twin].cores}"
        )
    return warnings
