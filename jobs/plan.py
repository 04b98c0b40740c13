"""`python -m jobs.plan --config FILE`: which cut for which device, what it costs, what it saves; also `hsee plan`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.options import add_config, add_overrides, add_run, check_writable, job_parser, user_path
from jobs.outcome import exit_code

# Heavy packages are imported where they are needed: --help and a wrong key answer at once.
if TYPE_CHECKING:
    from hsee_ray.config.schema import Config
    from hsee_ray.devices.cost import CostTable
    from hsee_ray.devices.profiles import DeviceProfile
    from hsee_ray.planning.report import Plan

DESCRIPTION = """\
Plan before you deploy. The devices are profiles by name: tiers.N.device and simulation.server in the config.

  --config FILE            the best cut for every tier: seconds, joules and bytes of a round, and why not another cut
  --config FILE --table    what the network costs, by unit and by cut; needs no devices
  --run RUN_DIR --savings  what a calibrated and evaluated run saves in a million images or a month
  --run RUN_DIR --actual   the predicted seconds of a round against those that the run took on this machine

Nothing is trained but with --probe N, and images are read only where nothing else tells how many there are, and how
large.
"""
EXAMPLES = """\
examples:
  hsee plan --config jobs/configs/planned_cifar10.yaml --objective energy --round-time-s 60
  hsee plan --config jobs/configs/paper_cifar10.yaml --table
  hsee plan --config jobs/configs/cifar10_cpu.yaml --set tiers.0.device=raspberry-pi-4 tiers.1.device=... \\
    --png plan.png --write planned.yaml
  hsee plan --config jobs/configs/quickstart.yaml --set tiers.0.device=... --probe 3
  hsee plan --run runs/my-20260101-120000 --savings --price-per-kwh 0.30 --price-per-gib 0.09 --currency EUR \
    --requests-per-month 5e6

docs/planning.md explains what is assumed.
"""
PLANNING = ("objective", "round_time_s", "samples", "png", "write", "probe")
SAVING = (
    "image_bytes", "price_per_kwh", "price_per_gib", "price_per_server_hour", "currency", "requests_per_month",
    "explain", "split",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 done, 2 bad input."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.run is not None and not (options.savings or options.actual):
        parser.error("--run RUN_DIR needs --savings or --actual")
    allowed: set[str] = set()
    if options.config is not None:
        if options.savings or options.actual:
            parser.error("--savings and --actual go with --run RUN_DIR")
        allowed = {"samples"} if options.table else set(PLANNING)
    elif options.savings:
        allowed = set(SAVING)
    else:
        allowed = {"profile"}
    given = [name for name in (*PLANNING, *SAVING, "profile") if getattr(options, name) is not None]
    misplaced = [name for name in given if name not in allowed]
    if options.run is not None and options.table:
        misplaced.append("table")
    if misplaced:
        goes_with = "--run RUN_DIR --savings" if misplaced[0] in SAVING else "--config FILE"
        goes_with = "--run RUN_DIR --actual" if misplaced[0] == "profile" else goes_with
        table = " and without --table" if options.table and misplaced[0] in PLANNING else ""
        parser.error(f"--{misplaced[0].replace('_', '-')} goes with {goes_with}{table}")
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from hsee_ray.errors import ConfigError

    for name in ("round_time_s", "samples", "image_bytes", "requests_per_month", "probe"):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: should be above 0")
    check_writable(json=options.json, png=options.png, write=options.write)
    if options.config is not None:
        found = _table(options) if options.table else _plan(options)
    else:
        found = _savings(options) if options.savings else _actual(options)
    if options.json is not None:
        from hsee_ray.storage import write_whole

        write_whole(options.json, f"{json.dumps(found, indent=2, allow_nan=False)}\n".encode())
        print(f"\n{options.json}: the same as JSON")
    return 0


def _table(options: argparse.Namespace) -> Mapping[str, Any]:
    from hsee_ray.config.files import load_config
    from hsee_ray.data.sizes import image_sizes

    config = load_config(options.config, options.set)
    shape, n_classes = image_sizes(config.data)

    from hsee_ray.devices.cost import CostTable
    from hsee_ray.planning.tables import cost_rows, render_costs

    batch_size = config.training.batch_size
    rows = cost_rows(CostTable(config, shape, n_classes), shape, batch_size)
    print(render_costs(rows, config, shape, batch_size))
    return {"model": config.model.name, "image_shape": shape, "batch_size": batch_size, "cuts": rows}


def _plan(options: argparse.Namespace) -> Mapping[str, Any]:
    from dataclasses import asdict

    from hsee_ray.config.files import load_config
    from hsee_ray.data.sizes import image_sizes, local_samples
    from hsee_ray.devices.profiles import load_profiles
    from hsee_ray.errors import ConfigError
    from hsee_ray.planning.planner import Planner, check_devices

    config = load_config(options.config, options.set)
    profiles = load_profiles(config.simulation.profiles)
    check_devices(config, profiles)
    if options.write is not None and options.write.exists():
        raise ConfigError(f"--write {options.write}: there is such a file already; name another, or remove it")
    shape, n_classes = image_sizes(config.data)
    samples = local_samples(config, options.samples)

    from hsee_ray.devices.cost import CostTable
    from hsee_ray.planning.report import make_plan
    from hsee_ray.planning.tables import render_plan

    costs = CostTable(config, shape, n_classes)
    planner = Planner(config, costs, profiles, samples.counts)
    plan = make_plan(planner, options.objective or "time", options.round_time_s)
    warnings, probe = _warned(config, profiles, costs), None
    if options.probe is not None:
        from hsee_ray.planning.probe import probe_cuts, probe_lines, with_accuracies

        probe = probe_cuts(config, planner.unit_names, options.probe, lambda text: print(text, file=sys.stderr))
        plan = with_accuracies(plan, probe)
    print(f"{options.config}: {config.training.strategy}, {samples.origin}\n\n{render_plan(plan)}")
    if probe is not None:
        print(f"\n{probe_lines(probe)}")
    if options.png is not None:
        from hsee_ray.planning.plots import draw_plan

        draw_plan(plan).savefig(options.png, format="png")
        print(f"\n{options.png}: seconds per cut and tier")
    if options.write is not None:
        _write_config(options.write, config, plan)
    figures = {
        "round": plan.round._asdict(),
        "configured": None if plan.configured is None else plan.configured._asdict(),
    }
    probed = None if probe is None else {k: v for k, v in asdict(probe).items() if k != "accuracies"}
    return {"samples": asdict(samples), "warnings": warnings, "probe": probed, **asdict(plan), **figures}


def _write_config(path: Path, config: Config, plan: Plan) -> None:
    """The configuration with the plan's cuts, which nothing else is changed in."""
    from hsee_ray.config.files import dump_config
    from hsee_ray.config.fleet import with_cuts

    planned = with_cuts(config, [tier.cuts[tier.cut - 1].name for tier in plan.tiers])
    with path.open("x", encoding="utf-8") as file:
        file.write(dump_config(planned))
    print(f"\n{path}: this config with the recommended cuts; hsee train --config {path}")


def _savings(options: argparse.Namespace) -> Mapping[str, Any]:
    from dataclasses import asdict

    from hsee_ray.planning.cost import Prices
    from hsee_ray.planning.savings import INFERENCES, savings, savings_values
    from hsee_ray.rundir.run import load_run

    run = load_run(options.run)
    prices = Prices(
        options.price_per_kwh, options.price_per_gib, options.price_per_server_hour, options.currency or "USD"
    )

    from hsee_ray.devices.profiles import load_profiles
    from hsee_ray.planning.run_savings import run_costs, savings_inputs, tier_rows, with_devices
    from hsee_ray.planning.savings_tables import render_savings
    from hsee_ray.rundir.tables import align

    split, a_month = options.split or "test", options.requests_per_month
    config = with_devices(run, options.set)
    inputs = savings_inputs(run, config, split, options.image_bytes)
    found = savings(inputs, prices, a_month)
    profiles, server = load_profiles(config.simulation.profiles), str(config.simulation.server)
    warnings = _warned(config, profiles, run_costs(run, config))
    shown = render_savings(found, prices, (server, profiles[server]), a_month, options.explain or False)
    print(f"{run.name}, {split} images\n\n{align(tier_rows(config, inputs))}\n\n{shown}")
    return {
        "run": run.name,
        "warnings": warnings,
        "inferences": INFERENCES if a_month is None else a_month,
        "currency": prices.currency,
        "inputs": [asdict(each) for each in inputs],
        "tiers": savings_values(found),
    }


def _warned(config: Config, profiles: Mapping[str, DeviceProfile], costs: CostTable) -> list[str]:
    """Warnings about the devices' profiles, which are printed to stderr."""
    from hsee_ray.planning.mixture import mixture_warnings

    warnings = mixture_warnings(config, profiles, costs)
    for warning in warnings:
        print(warning, file=sys.stderr)
    return warnings


def _actual(options: argparse.Namespace) -> Mapping[str, Any]:
    from dataclasses import asdict

    from hsee_ray.rundir.run import load_run

    run = load_run(options.run)

    from hsee_ray.planning.run_savings import compare_with_actual, with_devices

    found = compare_with_actual(run, with_devices(run, options.set), options.profile)
    print(
        f"{run.name} on {found.profile} ({found.cores} cores): training of a round predicted "
        f"{found.predicted_s:.2f} s, measured {found.actual_s:.2f} s (median of {found.rounds}, from "
        f"{found.fastest_s:.2f} to {found.slowest_s:.2f}), error {100 * found.error:+.1f} %"
    )
    return {**asdict(found), "error": found.error}


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("plan", DESCRIPTION, EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    add_config(source)
    add_run(source, required=False)
    add_overrides(parser, "override a key of the config, such as tiers.0.device=raspberry-pi-4")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="write all that is printed as JSON")
    plan = parser.add_argument_group("with --config")
    plan.add_argument("--table", action="store_true", help="print what the network costs, and plan nothing")
    plan.add_argument(
        "--objective", choices=("time", "energy", "bytes"), help="what a round is to have little of (time)"
    )
    plan.add_argument(
        "--round-time-s", type=float, metavar="T", help="only plans with rounds of at most so many seconds"
    )
    plan.add_argument(
        "--samples", type=int, metavar="N", help="training images, in equal shares; the data are not read"
    )
    plan.add_argument(
        "--probe",
        type=int,
        metavar="N",
        help="train each cut for the config's first N rounds, in this process, on 2,000 images and 2 clients of each "
        "tier at most, and show the accuracy of exits and servers beside each cut",
    )
    plan.add_argument("--png", type=user_path, metavar="FILE", help="draw compute, upload and server by cut and tier")
    plan.add_argument("--write", type=user_path, metavar="FILE", help="write the config with the recommended cuts")
    run = parser.add_argument_group("with --run")
    what = run.add_mutually_exclusive_group()
    what.add_argument(
        "--savings", action="store_true", help="of a million images, beside cloud, device and exits alone"
    )
    run.add_argument("--split", choices=("test", "calibration"), help="whose evaluation --savings counts with (test)")
    run.add_argument(
        "--image-bytes", type=float, metavar="N", help="of one raw image, such as its JPEG (default: H*W*C)"
    )
    run.add_argument(
        "--requests-per-month", type=float, metavar="N", help="images that all clients are asked: figures of a month"
    )
    run.add_argument("--currency", metavar="NAME", help="that prices are in (USD)")
    run.add_argument("--explain", action="store_true", default=None, help="print the formula behind every figure")
    run.add_argument(
        "--price-per-kwh",
        type=float,
        metavar="MONEY",
        help="of electricity; the server's too, unless its hours have a price, which contains it",
    )
    run.add_argument("--price-per-gib", type=float, metavar="MONEY", help="of traffic from devices")
    run.add_argument(
        "--price-per-server-hour", type=float, metavar="MONEY", help="of the whole server, electricity included"
    )
    what.add_argument("--actual", action="store_true", help="predicted seconds of a round against those of the run")
    run.add_argument("--profile", metavar="NAME", help="of the machine that the run was on, for --actual")
    return parser


if __name__ == "__main__":
    sys.exit(main())
