"""Measure the device that this runs on: `python -m jobs.profile-device --out FILE`, or `hsee profile-device`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from jobs.benches.common import machine, tell
from jobs.options import add_overrides, at_least, check_writable, job_parser, user_path
from jobs.outcome import exit_code

if TYPE_CHECKING:
    from hsee_ray.config.schema import Config
    from hsee_ray.devices.fitting import Fit, Timed
    from hsee_ray.devices.profiles import DeviceProfile

DESCRIPTION = """\
Measure the device that this runs on, and write a profile for simulated time and `cut: auto` (docs/devices.md).

Training steps of both sides are timed on synthetic images, one process for every core side by side, and a profile is
fitted to them: sustained GFLOP/s, memory bandwidth, and microseconds of an operator. With Ray installed, messages from
actor to actor are timed too, for runs on this machine (simulation.one_machine). Power and networks are not measured.
"""
WIDTHS = (8, 16, 32)
MESSAGES_KIB = (1024, 16384)
MESSAGE_CLIENTS = 6
ROUGH = 0.1
"""Median error above which a profile should be measured on the network that it is for."""
LIMIT_S = 3600.0
"""For all steps."""
ASSUMED = {"uplink_mbit_s": 100.0, "downlink_mbit_s": 100.0, "latency_ms": 5.0, "active_w": 10.0, "radio_w": 1.0}
"""Values that are neither given nor measured."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = job_parser("profile-device", DESCRIPTION)
    add = parser.add_argument
    add("--out", type=user_path, required=True, metavar="FILE", help="YAML file to write; must not be there yet")
    add("--name", default="this-device", help="what the device is called in it (default: this-device)")
    add(
        "--config",
        type=user_path,
        metavar="FILE",
        help="measure its network, cuts, batch sizes (default: ResNet-18)",
    )
    add_overrides(parser)
    add("--preset", metavar="NAME", help="preset for the same machine, to be shown beside what is measured")
    add("--repetitions", type=int, default=7, metavar="N", help="of each step (default: 7)")
    for figure, value in ASSUMED.items():
        add(f"--{figure.replace('_', '-')}", type=float, metavar="N", help=f"(where not measured: {value:g})")
    options = parser.parse_args(argv)
    return exit_code(lambda: _profile(options))


def _profile(options: argparse.Namespace) -> int:
    from hsee_ray.devices.fitting import combined, fit
    from hsee_ray.devices.profiles import dump_profile, load_presets, profile_of
    from hsee_ray.errors import ConfigError

    at_least(options, repetitions=1)
    if options.out.exists():
        raise ConfigError(f"{options.out}: is there already; remove it, or name another file with --out")
    check_writable(out=options.out)
    if options.preset is not None:
        profile_of(load_presets(), options.preset, "--preset")
    _check_given(options)
    with TemporaryDirectory() as directory:
        configs = _configs(options, Path(directory) / "cache")
        timed = combined(_on_all_cores(configs, options.repetitions))
    found = fit(timed)
    print(_table(timed, found))
    profile = _profile_of(found, options, _link(options))
    options.out.write_text(dump_profile(options.name, profile), encoding="utf-8")
    print(f"\n{options.out}: {options.name}, {_figures(profile)}")
    print(f"use it:  --set simulation.profiles={options.out} simulation.server={options.name}")
    return 0


def _configs(options: argparse.Namespace, cache: Path) -> list[Config]:
    """Configurations whose clients train on two batches of synthetic images each."""
    from hsee_ray.config.files import load_config

    if options.config is not None:
        given = [load_config(options.config, options.set)]
    else:
        tiers = [{"name": cut, "clients": 1, "cut": cut, "batch_size": 64} for cut in ("layer1", "layer2", "layer3")]
        data = {"name": "synthetic", "image_size": 32, "augment": True}
        given = [
            load_config({"model": {"width": width}, "tiers": tiers, "data": data}, options.set) for width in WIDTHS
        ]
    return [_on_synthetic(config, cache) for config in given]


def _on_synthetic(config: Config, cache: Path) -> Config:
    """A client for each cut (all cuts, where it is `auto`), at its batch size and at half of it; made-up images."""
    from hsee_ray.backbones import build_backbone
    from hsee_ray.data.sizes import image_sizes
    from hsee_ray.devices.fitting import BATCHES

    shape, classes = image_sizes(config.data)
    units = list(build_backbone(config.model, shape, classes, config.seed).units)
    tiers: list[dict[str, Any]] = []
    for tier in config.tiers:
        batch = tier.batch_size or config.training.batch_size
        for cut in range(1, len(units)) if tier.cut == "auto" else [tier.cut]:
            for size in {batch, max(2, batch // 2)}:
                own = {"cut": cut, "batch_size": size, "codec": tier.codec}
                tiers.append({"name": f"{tier.name}-{cut}-{size}", "clients": 1, **own})
    images = BATCHES * max(tier["batch_size"] for tier in tiers) * len(tiers)
    data = {
        "name": "synthetic",
        "cache": str(cache),
        "image_size": shape[0],
        "channels": shape[2],
        "classes": classes,
        "train_samples": images,
        "test_samples": 2,
        "augment": config.data.augment.model_dump(),
        "calibration_fraction": 0.0,
    }
    training = {"strategy": "averaging", "local_steps": None, "clients_per_round": 1.0}
    return type(config).model_validate(
        {
            "seed": config.seed,
            "model": config.model.model_dump(),
            "data": data,
            "tiers": tiers,
            "exits": config.exits.model_dump(),
            "training": {**config.training.model_dump(), **training},
        }
    )


def _on_all_cores(configs: Sequence[Config], repetitions: int) -> list[list[Timed]]:
    """The same measurement in a process for every core, side by side, as a run keeps them busy."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from hsee_ray.data import prepare
    from hsee_ray.devices.fitting import time_steps
    from hsee_ray.process import cores

    for config in configs:
        tell(f"{config.model.name} of width {config.model.width}: {len(config.tiers)} cuts and batch sizes")
        prepare(config.data)  # before the processes all make the same file
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
        running = [pool.submit(time_steps, configs, repetitions) for _ in range(cores())]
        return [each.result(timeout=LIMIT_S) for each in running]


def _link(options: argparse.Namespace) -> dict[str, float]:
    """Cost of a message between actors on this machine; nothing where it is given, or Ray is not installed."""
    from importlib.util import find_spec

    if options.uplink_mbit_s is not None or options.latency_ms is not None:
        return {}
    if find_spec("ray") is None:
        tell("Ray is not installed: what a message between actors takes was not measured")
        return {}
    from hsee_ray.devices.fitting import link
    from hsee_ray.errors import RunError
    from hsee_ray.process import cores
    from jobs.benches.overhead.rounds import wall_times_s

    tell("messages from actor to actor")
    batches = 8
    # A window of two batches: each of them is a message of its own.
    times_s = wall_times_s([MESSAGE_CLIENTS], MESSAGES_KIB, batches, 5, ["pipeline.max_in_flight=2"])
    # Both sides, the driver and Ray work at once on a message: it takes all cores for as long as that.
    messages = batches * MESSAGE_CLIENTS
    each_s = {kib * 1024: cores() * median(times_s[kib, MESSAGE_CLIENTS][1:]) / messages for kib in MESSAGES_KIB}
    try:
        latency_s, bytes_s = link(each_s)
    except RunError as error:
        tell(f"{error}: what a message takes is assumed")
        return {}
    megabits = 8 * bytes_s / 1e6
    return {"uplink_mbit_s": megabits, "downlink_mbit_s": megabits, "latency_ms": 1000 * latency_s}


def _profile_of(found: Fit, options: argparse.Namespace, measured: Mapping[str, float]) -> DeviceProfile:
    """Measured, given and assumed values, in four digits."""
    from hsee_ray.devices.profiles import DeviceProfile

    here = machine()
    given = {figure: getattr(options, figure) for figure in ASSUMED if getattr(options, figure) is not None}
    assumed = [figure for figure in ASSUMED if figure not in given and figure not in measured]
    notes = [f"given: {', '.join(given)}"] if given else []
    notes += ["links and latency: messages between Ray actors on this machine"] if measured else []
    notes += [f"assumed, not measured: {', '.join(assumed)}"] if assumed else []
    figures = {
        "compute_gflops": found.compute_gflops,
        "memory_gib_s": found.memory_gib_s,
        "operator_us": found.operator_us,
        "cores": here["cores"],
        "memory_mib": 1024 * here["memory_gib"],
        **ASSUMED,
        **measured,
    }
    rounded = {name: None if value is None else float(f"{value:.4g}") for name, value in figures.items()}
    source = (
        f"measured by hsee profile-device on {here['processor']}, torch {here['versions']['torch']}, "
        f"{datetime.now(UTC):%Y-%m-%d}, median error of the fit {100 * found.median_error:.0f} %; {'; '.join(notes)}"
    )
    about = {"processor": here["processor"], "preset": options.preset, "source": source}
    return DeviceProfile.model_validate({**rounded, "cores": here["cores"], **given, **about})


def _check_given(options: argparse.Namespace) -> None:
    """Raises ConfigError for a figure that a device cannot have, before anything is measured."""
    from hsee_ray.config.problems import in_one_line
    from hsee_ray.devices.profiles import DeviceProfile
    from hsee_ray.errors import ConfigError

    given = {figure: getattr(options, figure) for figure in ASSUMED if getattr(options, figure) is not None}
    whole = {"compute_gflops": 1, "memory_mib": 1, **ASSUMED, **given, "source": "given"}
    try:
        with in_one_line(DeviceProfile, "--", "see docs/devices.md"):
            DeviceProfile.model_validate(whole)
    except ConfigError as error:
        option, _, rest = str(error).partition(" ")
        raise ConfigError(f"{option.replace('_', '-')} {rest}") from None


def _table(timed: Sequence[Timed], found: Fit) -> str:
    from hsee_ray.rundir.tables import align

    rows = [["step", "measured ms", "fitted ms", "error"]]
    for step, fitted_s, error in zip(timed, found.fitted_s, found.errors, strict=True):
        rows.append([step.name, f"{1000 * step.seconds:.1f}", f"{1000 * fitted_s:.1f}", f"{100 * error:+.0f}%"])
    largest = max(map(abs, found.errors))
    hint = "; give --config for the network that you plan with" if found.median_error > ROUGH else ""
    shown = f"error of the fit: median {100 * found.median_error:.0f} %, largest {100 * largest:.0f} %{hint}"
    return f"{align(rows)}\n{shown}"


def _figures(profile: DeviceProfile) -> str:
    bandwidth = "" if profile.memory_gib_s is None else f", {profile.memory_gib_s:g} GiB/s of memory"
    return (
        f"{profile.cores} cores of {profile.compute_gflops:g} GFLOP/s{bandwidth}, {profile.operator_us:g} us an "
        f"operator; uplink {profile.uplink_mbit_s:g} Mbit/s, latency {profile.latency_ms:g} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
