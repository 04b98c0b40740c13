"""A finished run held against device profiles: what its exits save, and how its rounds compare with predicted ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config
from hsee_ray.devices.cost import CostTable
from hsee_ray.devices.profiles import DeviceProfile, load_profiles, profile_of, seconds
from hsee_ray.errors import ConfigError, UserError
from hsee_ray.evaluation.calibration import calibration_of
from hsee_ray.evaluation.report import Evaluation, read_evaluation
from hsee_ray.planning.planner import Planner, check_devices
from hsee_ray.planning.savings import TierInputs
from hsee_ray.rundir.run import CONFIG_FILE, Run
from hsee_ray.rundir.tables import Rows, percent
from hsee_ray.simulation.loads import FLOAT_BYTES, bytes_s


def with_devices(run: Run, overrides: Iterable[str]) -> Config:
    """The run's configuration with other devices. Raises ConfigError for a change of anything else."""
    changed = load_config(run.path / CONFIG_FILE, overrides)
    # With another number of tiers, too, what comes of it is not what was asked for.
    tiers = [
        own.model_copy(update={"device": other.device})
        for own, other in zip(run.config.tiers, changed.tiers, strict=False)
    ]
    config = run.config.model_copy(update={"tiers": tuple(tiers), "simulation": changed.simulation})
    if config != changed:
        raise ConfigError(
            "--set: of a finished run only tiers.N.device and simulation.* can be set, the rest is trained"
        )
    return config


def savings_inputs(run: Run, config: Config, split: str, image_bytes: float | None) -> list[TierInputs]:
    """Inputs of the savings by tier: the run's evaluation, counted costs and device profiles.

    `image_bytes` is the size of one raw image, H * W * C unless given. Raises UserError for a run that is not
    calibrated, or was not evaluated since.
    """
    profiles = load_profiles(config.simulation.profiles)
    check_devices(config, profiles)
    evaluation = calibrated_evaluation(run, split)
    data, costs = run.summary["data"], run_costs(run, config)
    whole = costs.client(len(costs.units), 1, with_exit=False)
    rows, alone, sent = (
        {row.name: row for row in evaluation.of("tier", kind)} for kind in ("calibrated", "local", "sent")
    )
    server = profiles[str(config.simulation.server)]
    found: list[TierInputs] = []
    for tier in config.tiers:
        if tier.name not in rows:
            continue
        spec = next(spec for spec in run.fleet.clients if spec.tier == tier.name)
        device, row = profiles[str(tier.device)], rows[tier.name]
        client = costs.client(spec.cut, 1, with_exit=spec.has_exit)
        found.append(
            TierInputs(
                tier=tier.name,
                clients=tier.clients,
                cut=spec.cut_name,
                offload_ratio=row.offload_ratio,
                sent_bytes=row.sent_bytes,
                image_bytes=prod(data["image_shape"]) if image_bytes is None else image_bytes,
                client_s=seconds(client.infer, device),
                server_s=seconds(costs.server(spec.cut, 1).infer, server) if spec.has_server else 0.0,
                whole_device_s=seconds(whole.infer, device),
                whole_server_s=seconds(whole.infer, server),
                active_w=device.active_w,
                radio_w=device.radio_w,
                uplink_bytes_s=bytes_s(device.uplink_mbit_s),
                link_bytes_s=bytes_s(min(device.uplink_mbit_s, server.downlink_mbit_s)),
                latency_s=device.latency_ms / 1000,
                server_active_w=server.active_w,
                server_cores=server.cores,
                gated_accuracy=row.accuracy,
                exit_accuracy=alone[tier.name].accuracy,
                whole_accuracy=sent[tier.name].accuracy,
                whole_memory_bytes=inference_bytes(costs, data["image_shape"]),
                memory_bytes=device.memory_mib * 2**20,
            )
        )
    return found


def run_costs(run: Run, config: Config) -> CostTable:
    """Counted costs of the run's network on its images."""
    data = run.summary["data"]
    height, width, channels = data["image_shape"]
    return CostTable(config, (height, width, channels), len(data["class_names"]))


def calibrated_evaluation(run: Run, split: str) -> Evaluation:
    """The run's evaluation with the gates that it is calibrated to. Raises UserError when there is none."""
    calibration = calibration_of(run)
    if calibration is None:
        raise UserError(f"{run.path}: is not calibrated, and savings count with its gates; run hsee calibrate first")
    evaluation = read_evaluation(run.path, split)
    if evaluation.network != run.summary["weights_sha256"]:
        raise UserError(f"{run.path}: its evaluation is of other models; run hsee evaluate again")
    if evaluation.confidence != calibration.confidence:
        raise UserError(
            f"{run.path}: was evaluated by {evaluation.confidence} and calibrated by {calibration.confidence}; run "
            f"hsee evaluate again with --confidence {calibration.confidence}"
        )
    rows = [row for row in evaluation.of("tier", "calibrated") if row.name in calibration.tiers]
    gates = [(calibration.tiers[row.name].tau, calibration.tiers[row.name].temperature) for row in rows]
    if evaluation.target != calibration.target or [(row.tau, row.temperature) for row in rows] != gates:
        raise UserError(f"{run.path}: was calibrated after it had been evaluated; run hsee evaluate again")
    return evaluation


def inference_bytes(costs: CostTable, image_shape: Sequence[int]) -> int:
    """Memory for one image through the whole network: the parameters, and the unit that needs most at work.

    Of a unit that is its input and all that it would keep for a backward pass: at least what is there at once.
    """
    height, width, channels = image_shape
    sizes = [prod((height, width, channels)), *(prod(unit.feature_shape) for unit in costs.units)]
    at_work = [
        FLOAT_BYTES * size + unit.activation_bytes for size, unit in zip(sizes[:-1], costs.units, strict=True)
    ]  # fmt: skip
    return FLOAT_BYTES * sum(unit.parameters for unit in costs.units) + max(at_work)


def tier_rows(config: Config, inputs: Sequence[TierInputs]) -> Rows:
    """By tier: its clients, their device, cut and codec, and what the gate sends."""
    rows = [["tier", "clients", "device", "cut", "codec", "sent"]]
    tiers = {tier.name: tier for tier in config.tiers}
    for own in inputs:
        tier = tiers[own.tier]
        rows.append([own.tier, str(own.clients), str(tier.device), own.cut, tier.codec, percent(own.offload_ratio)])
    return rows


@dataclass(frozen=True)
class ActualComparison:
    """A predicted round against those that were measured."""

    profile: str
    cores: int
    rounds: int
    """That were measured: all but the first, in which actors start, where there are more."""
    predicted_s: float
    actual_s: float
    """Median over the rounds."""
    fastest_s: float
    slowest_s: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured."""
        return self.predicted_s / self.actual_s - 1


def compare_with_actual(run: Run, config: Config, profile: str | None) -> ActualComparison:
    """Training of a round as it is predicted for one machine, against the run's own rounds.

    `profile` names the machine; without it the configuration's server does. Raises ConfigError where neither does, or
    it is no profile of the machine that the run was on, and UserError for a run without training of everybody in any
    round.
    """
    simulation = config.simulation
    known = load_profiles(simulation.profiles)
    name = profile or simulation.server
    if name is None:
        raise ConfigError("--actual: name the profile of the machine that the run was on with --profile NAME")
    _check_same_machine(run, name, profile_of(known, name, "--profile"))
    tiers = tuple(tier.model_copy(update={"device": name}) for tier in config.tiers)
    on_one = simulation.model_copy(update={"server": name, "one_machine": True})
    config = config.model_copy(update={"tiers": tiers, "simulation": on_one})
    samples = [client["samples"] for client in run.summary["clients"]]
    planner = Planner(config, run_costs(run, config), known, samples)
    cuts = planner.configured()
    assert cuts is not None, "a run's cuts are known"
    measured = round_seconds(run)
    return ActualComparison(
        profile=name,
        cores=known[name].cores,
        rounds=len(measured),
        predicted_s=planner.round(cuts).train_s,
        actual_s=median(measured),
        fastest_s=min(measured),
        slowest_s=max(measured),
    )


def _check_same_machine(run: Run, name: str, profile: DeviceProfile) -> None:
    """Raises ConfigError for a profile of another machine than that which the run says it was on."""
    there = run.summary.get("environment", {})
    model, cores = there.get("cpu_model") or there.get("machine"), there.get("cores")
    # Profiles from before there was a key for it name the processor in their source.
    same = profile.processor == model or (profile.processor is None and f" on {model}, torch" in profile.source)
    if model is not None and same and (cores is None or profile.cores <= cores):
        return
    of = f"of {profile.processor}" if profile.processor else "a preset, or not measured by hsee profile-device"
    raise ConfigError(
        f"--actual: the profile {name} is {of} ({profile.cores} cores), and the run was on {model or 'an unknown one'} "
        f"({cores or 'unknown'} cores): they cannot be compared; on that machine, run hsee profile-device --out "
        "this-machine.yaml --name this-machine, then --profile this-machine --set "
        "simulation.profiles=this-machine.yaml"
    )


def round_seconds(run: Run) -> list[float]:
    """Seconds of training of each round in which everybody took part, without the first where there are more."""
    samples: dict[int, float] = {}
    members: dict[int, int] = {}
    rates: dict[int, float] = {}
    columns = run.metrics.select(["round", "metric", "value"]).to_pydict()
    for number, metric, value in zip(columns["round"], columns["metric"], columns["value"], strict=True):
        if metric == "train_samples":
            samples[number] = samples.get(number, 0.0) + value
            members[number] = members.get(number, 0) + 1
        elif metric == "samples_per_s":
            rates[number] = value
    everybody = len(run.summary["clients"])
    whole = [samples[number] / rates[number] for number in sorted(rates) if members.get(number) == everybody]
    if not whole:
        raise UserError(
            f"{run.path}: there is no round in which all clients trained, so there is nothing to compare with"
        )
    return whole[1:] or whole
