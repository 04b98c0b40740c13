"""`python -m jobs.init`: a short configuration for your data and your devices, also as `hsee init`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.options import at_least, job_parser, user_path
from jobs.outcome import exit_code

if TYPE_CHECKING:
    from hsee_ray.config.schema import DataConfig

DESCRIPTION = """\
Write a short configuration, with comments, for your images and your kinds of devices. On a terminal it asks for what
the options do not say; elsewhere the defaults are taken.
"""
EXAMPLES = """\
examples:
  hsee init
  hsee init --data photos --devices esp32-s3,raspberry-pi-4,jetson-orin-nano --out photos.yaml
  hsee init --data digits --devices watch,phone,hub --clients 4,2,1
"""
DIGITS, DEVICES, CLIENTS = "digits", "sensor,hub,gateway", "2"
CUTS = ("layer1", "layer2", "layer3")
"""For devices without a profile, from the weakest to the strongest."""
SERVER = "cloud-t4"
BATCH, SMALLEST_BATCH = 32, 4
"""Images of a batch, and how few they may become until a cut fits into the memory of a device."""
LARGEST = 64
"""Pixels to which larger images are brought: a network of this width sees hardly more in them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 written, 2 bad input."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _init(options))


def _init(options: argparse.Namespace) -> int:
    from hsee_ray.config.files import load_config
    from hsee_ray.config.problems import did_you_mean
    from hsee_ray.config.yaml_text import read_yaml
    from hsee_ray.devices.profiles import load_profiles
    from hsee_ray.errors import ConfigError
    from hsee_ray.method.setup import prepare_run
    from hsee_ray.planning.planner import NoCutFits, planned
    from hsee_ray.storage import write_whole

    at_least(options, rounds=1)
    if options.out.exists():
        raise ConfigError(f"--out {options.out}: there is such a file already; name another, or remove it")
    asks = sys.stdin is not None and sys.stdin.isatty()
    where = _answer(options.data, asks, "Directory of your images (train/<class>/*.png, or Parquet)", DIGITS)
    data = _data(where)
    names = _answer(options.devices, asks, "Your kinds of devices, the weakest first", DEVICES)
    devices = [name.strip() for name in names.split(",")]
    if not all(devices) or len(set(devices)) < len(devices):
        raise ConfigError(f"--devices {names}: give different names, separated by commas")
    clients = _answer(options.clients, asks, "How many of each kind, one number or one for each", CLIENTS)
    counts, batches = _counts(clients, devices), [BATCH] * len(devices)
    while True:
        text = config_text(data, devices, counts, options.rounds, batches)
        config = load_config(read_yaml(text, str(options.out)))
        try:
            prepare_run(planned(config))  # what is written can be trained
            break
        except NoCutFits as full:
            if batches[full.tier] <= SMALLEST_BATCH:
                raise
            batches[full.tier] //= 2
    write_whole(options.out, text.encode())
    has_devices = any(tier.device is not None for tier in config.tiers)
    if not has_devices and names != DEVICES:
        profiles = load_profiles(None)
        unknown = [f"{name}{did_you_mean(name, profiles)}" for name in devices if name not in profiles]
        print(f"no profile is known of {', '.join(unknown)}: the cuts are a guess (docs/devices.md)")
    print(f"{options.out} is written. Next:")
    print(f"  hsee data --config {options.out}                  look at the images")
    if has_devices:
        print(f"  hsee plan --config {options.out}                  which cut for which device, and why")
    print(f"  hsee train --config {options.out} --in-process    train here; without --in-process over Ray's actors")
    return 0


def _answer(given: str | None, asks: bool, question: str, default: str) -> str:
    """What an option says, or a person answers, or the default."""
    if given is not None:
        return given
    return default if not asks else input(f"{question} [{default}]: ").strip() or default


def _counts(text: str, devices: Sequence[str]) -> list[int]:
    """Clients of each kind. Raises ConfigError."""
    from hsee_ray.errors import ConfigError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts) or len(parts) not in (
        1,
        len(devices),
    ):
        raise ConfigError(f"--clients {text}: give one number above 0, or one for each of {len(devices)} kinds: 4,2,1")
    return [int(part) for part in parts] * (len(devices) if len(parts) == 1 else 1)


def _data(where: str) -> DataConfig:
    """The data set at a place, found and looked at. Raises DataError where there is none that can be read."""
    from hsee_ray.config.schema import DataConfig
    from hsee_ray.data.cache import prepare
    from hsee_ray.data.sources import find_source
    from hsee_ray.errors import DataError
    from hsee_ray.paths import expanded_place

    if where == DIGITS:
        return DataConfig()
    root = Path(expanded_place(where)).absolute()
    if not root.is_dir():
        raise DataError(f"{root}: there is no such directory; name the one that your images are in, or `{DIGITS}`")
    is_parquet = any(root.glob("*.parquet")) or any(root.glob("*/*.parquet"))
    data = DataConfig(name="parquet" if is_parquet else "folder", root=str(root))
    find_source(data)
    try:
        height, width, _ = prepare(data).image_shape
    except DataError:  # of different sizes: if it is something else, it is said of the next attempt
        return _scaled(data)
    return data if max(height, width) <= LARGEST and height == width else _scaled(data)


def _scaled(data: DataConfig) -> DataConfig:
    from hsee_ray.data.cache import prepare

    scaled = data.model_copy(update={"image_size": LARGEST})
    prepare(scaled)
    return scaled


def config_text(
    data: DataConfig, devices: Sequence[str], counts: Sequence[int], rounds: int, batches: Sequence[int]
) -> str:
    """A configuration as YAML with comments. Devices with a profile get the cut that the planner picks."""
    from hsee_ray.devices.profiles import load_profiles

    profiles = load_profiles(None)
    known = [name in profiles for name in devices]
    lines = [
        "# Written by hsee init; jobs/configs/reference.yaml explains every key, and has more.",
        "seed: 0",
        "model: {name: resnet18, stem: cifar, width: 8}  # 64 is the width of the paper; it computes 64 times as much",
        *_data_lines(data),
        "tiers:  # kinds of devices: how many, and the last layer that they hold",
    ]
    for index, (name, count, batch) in enumerate(zip(devices, counts, batches, strict=True)):
        cut = "auto" if all(known) else CUTS[index * len(CUTS) // len(devices)]
        device = f", device: {name}" if all(known) else ""
        small = f", batch_size: {batch}" if batch < BATCH else ""
        quoted = json.dumps(name, ensure_ascii=False)
        why = f"  # in batches of {BATCH} no cut fits into its memory" if small else ""
        lines.append(f"  - {{name: {quoted}, clients: {count}, cut: {cut}{device}{small}}}{why}")
    if all(known):
        lines.append(f"simulation: {{server: {SERVER}}}  # the server; the planner picks the cuts for these devices")
    else:
        lines += [
            "# The planner picks cuts for devices that it knows. Give each tier `cut: auto, device: NAME`, and here",
            f"# `simulation: {{server: {SERVER}, profiles: my-devices.yaml}}`: docs/devices.md has the names, and how",
            "# to describe devices of your own in that file (measured by hsee profile-device, or from a data sheet).",
        ]
    lines += [
        "training:",
        "  strategy: averaging  # or sequential",
        f"  rounds: {rounds}",
        f"  batch_size: {BATCH}",
        "  optimizer: {name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 5.0e-4}",
        "  lr_schedule: {name: cosine}",
    ]
    return "\n".join(lines) + "\n"


def _data_lines(data: DataConfig) -> list[str]:
    root = "" if data.root is None else f", root: {json.dumps(data.root, ensure_ascii=False)}"
    size = "" if data.image_size is None else f", image_size: {data.image_size}"
    return [
        f"data: {{name: {data.name}{root}{size}, partition: {{kind: iid}}, calibration_fraction: 0.1}}",
        "# Set aside to choose thresholds on: calibration_fraction. Uneven classes: {kind: dirichlet, alpha: 0.5}",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("init", DESCRIPTION, EXAMPLES)
    parser.add_argument("--data", metavar="DIR", help=f"directory of images, or `{DIGITS}` (default: {DIGITS})")
    text = f"kinds of devices, the weakest first: names of profiles, or any others (default: {DEVICES})"
    parser.add_argument("--devices", metavar="A,B,C", help=text)
    parser.add_argument("--clients", metavar="N[,N]", help=f"devices of each kind (default: {CLIENTS})")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of training (default: 15)")
    parser.add_argument("--out", type=user_path, default=Path("hsee.yaml"), metavar="FILE", help="default: hsee.yaml")
    return parser


if __name__ == "__main__":
    sys.exit(main())
