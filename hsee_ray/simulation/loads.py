"""From counted costs and device profiles to what each client has to do in a round: its batches in seconds and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Literal

from hsee_ray.config.fleet import ClientSpec
from hsee_ray.config.schema import Config
from hsee_ray.devices.cost import LABEL_BYTES, CostTable
from hsee_ray.devices.profiles import DeviceProfile, load_profiles, profile_of, seconds
from hsee_ray.features.path import feature_bytes
from hsee_ray.method.reports import EvaluationReport, TrainReport
from hsee_ray.method.schedule import round_batches
from hsee_ray.method.strategies import strategy_of
from hsee_ray.simulation.model import Batch, ClientLoad

FLOAT_BYTES = 4

Part = Literal["client", "returned", "server"]
"""`returned` is what a client does when the server's gradient is there; `client` is all that it does."""
Step = Literal["train", "infer"]


class Loads:
    """Loads of one configuration's clients. Batches are worked out once for all clients that are alike."""

    def __init__(self, config: Config, costs: CostTable, profiles: Mapping[str, DeviceProfile]) -> None:
        """`config` names the tiers' devices and the server's. Raises ConfigError for one that is not in `profiles`."""
        self.config = config
        self.costs = costs
        self.server, self.devices = devices_of(config, profiles)
        self.all_on_server = config.simulation.one_machine or strategy_of(config).on_server
        self._known: dict[tuple[object, ...], tuple[Batch, ...]] = {}

    def device(self, spec: ClientSpec) -> DeviceProfile:
        """Device of a client: the server's machine in Centralized, and where everything is on one machine."""
        return self.server if self.all_on_server else self.devices[spec.tier]

    def training(self, spec: ClientSpec, samples: int) -> ClientLoad:
        """A client's steps in a round, each sent by itself; without dropout and exchange."""
        sends = spec.codec, repr(spec.stages)
        key = ("train", self._device_name(spec), spec.cut, spec.inner_exits, *sends, spec.batch_size, samples)
        if key not in self._known:
            steps = round_batches(self.config.training, samples, spec.batch_size)
            sizes = [step.stop - step.start for step in steps]
            batches = [self._batch("train", spec, size, spec.batch_size) for size in sizes]
            if spec.has_server and batches:
                batches[-1] = batches[-1]._replace(
                    server_s=(batches[-1].server_s or 0.0) + self._again_s(spec, sizes, batches)
                )
            self._known[key] = tuple(batches)
        return self.load(spec, self._known[key])

    def _again_s(self, spec: ClientSpec, sizes: Sequence[int], batches: Sequence[Batch]) -> float:
        """Seconds of a server for further epochs over what it keeps of a client's batches."""
        training, kept_s = self.config.training, 0.0
        room = training.server_memory_mib << 20
        for size, batch in zip(sizes, batches, strict=True):
            size_bytes = self.feature_bytes(spec, size)
            if size_bytes <= room:
                room -= size_bytes
                kept_s += batch.server_s or 0.0
        return (training.server_epochs - 1) * kept_s

    def evaluation(self, spec: ClientSpec, n_test: int) -> ClientLoad:
        """A client's answers to the test images, to all of which the server answers too."""
        most = min(self.config.evaluation.batch_size, n_test)
        key = ("infer", self._device_name(spec), spec.cut, spec.codec, repr(spec.stages), most, n_test)
        if key not in self._known:
            sizes = [min(most, n_test - first) for first in range(0, n_test, most)]
            self._known[key] = tuple(self._batch("infer", spec, size, most) for size in sizes)
        return self.load(spec, self._known[key])

    def load(self, spec: ClientSpec, batches: Sequence[Batch]) -> ClientLoad:
        """These batches on the client's device and link."""
        device = self.device(spec)
        return ClientLoad(
            client=spec.client_id,
            batches=batches,
            uplink_bytes_s=bytes_s(device.uplink_mbit_s),
            downlink_bytes_s=bytes_s(device.downlink_mbit_s),
            latency_s=device.latency_ms / 1000,
        )

    def feature_bytes(self, spec: ClientSpec, samples: int) -> int:
        """Of a batch without labels: what windows are reckoned by."""
        return feature_bytes(self.config, spec, self.costs.units[spec.cut - 1].feature_shape, samples)

    def unit_bytes(self, spec: ClientSpec, units: Iterable[str]) -> int:
        """Bytes of what is averaged of a client's units: parameters, and the optimiser's state where that is too."""
        training, values = self.config.training, 1
        if training.optimizer_state == "average":
            values += 2 if training.optimizer.name == "adamw" else int(training.optimizer.momentum > 0)
        cost = self.costs.client(spec.cut, spec.batch_size, with_exit=spec.has_exit, inner_exits=spec.inner_exits)
        return FLOAT_BYTES * values * sum(cost.parameters[unit] for unit in units)

    def _device_name(self, spec: ClientSpec) -> str | None:
        return None if self.all_on_server else spec.tier

    def _batch(self, step: Step, spec: ClientSpec, samples: int, batch_size: int) -> Batch:
        """A batch of so many samples, among others of `batch_size`."""
        compute_s = self._seconds("client", step, spec, samples, batch_size)
        if not spec.has_server:
            return Batch(compute_s)
        feedback = self.config.training.feedback.name if step == "train" else "none"
        returned_bytes, after_s = 0, None
        if feedback == "gradients":
            returned_bytes = FLOAT_BYTES * samples * prod(self.costs.units[spec.cut - 1].feature_shape)
            after_s = self._seconds("returned", step, spec, samples, batch_size)
            compute_s -= after_s
        elif feedback == "soft_labels":
            returned_bytes = FLOAT_BYTES * samples * prod(self.costs.units[-1].feature_shape)
        sent_bytes = self.costs.feature_bytes(spec.cut, spec.codec, samples)
        if spec.stages:
            sent_bytes = self.feature_bytes(spec, samples) + LABEL_BYTES * samples
        server_s = self._seconds("server", step, spec, samples, batch_size)
        return Batch(compute_s, sent_bytes, server_s, returned_bytes, after_s)

    def _seconds(self, part: Part, step: Step, spec: ClientSpec, samples: int, batch_size: int) -> float:
        """Seconds of a part of the work on a batch. Counts are a straight line over samples: two sizes tell all."""

        def of(size: int) -> float:
            if part == "server":
                cost = self.costs.server(spec.cut, size)
            else:
                cost = self.costs.client(spec.cut, size, with_exit=spec.has_exit, inner_exits=spec.inner_exits)
            if part == "returned":
                return seconds(cost.returned, profile)
            return seconds(cost.train if step == "train" else cost.infer, profile)

        profile = self.server if part == "server" else self.device(spec)
        if samples == batch_size:
            return of(batch_size)
        other = batch_size // 2 if batch_size >= 4 else 2 * batch_size
        slope = (of(batch_size) - of(other)) / (batch_size - other)
        return of(batch_size) + slope * (samples - batch_size)


def devices_of(config: Config, profiles: Mapping[str, DeviceProfile]) -> tuple[DeviceProfile, dict[str, DeviceProfile]]:
    """The server's profile and those of the tiers, by tier. Raises ConfigError for a device that is not known."""
    server = config.simulation.server
    assert server is not None, "a configuration without devices has no simulated time"
    tiers = {
        tier.name: profile_of(profiles, tier.device, f"tiers.{index}.device")
        for index, tier in enumerate(config.tiers)
        if tier.device is not None
    }
    return profile_of(profiles, server, "simulation.server"), tiers


def check_profiles(config: Config) -> None:
    """Raises ConfigError when a device of the configuration is not known, or its file of profiles is no such file."""
    if config.simulates:
        devices_of(config, load_profiles(config.simulation.profiles))


def bytes_s(mbit_s: float) -> float:
    """Bytes per second of a link of so many Mbit/s."""
    return mbit_s * 1e6 / 8


def as_sent(load: ClientLoad, report: TrainReport | EvaluationReport | None) -> ClientLoad:
    """The load with what was really sent. Which batches were skipped no report tells: the last ones are taken to be."""
    if report is None:
        return load
    batches = list(load.batches)
    skipped = report.skipped if isinstance(report, TrainReport) else 0
    for place in range(len(batches) - skipped, len(batches)):
        batches[place] = Batch(batches[place].compute_s)
    reckoned = sum(batch.sent_bytes for batch in batches)
    if reckoned not in (0, report.sent_bytes):
        given = so_far = 0
        for place, batch in enumerate(batches):
            so_far += batch.sent_bytes
            share = so_far * report.sent_bytes // reckoned - given
            batches[place] = batch._replace(sent_bytes=share)
            given += share
    elif not skipped:
        return load
    return replace(load, batches=tuple(batches))


def in_messages(load: ClientLoad, together: int) -> ClientLoad:
    """The load with so many batches in a message, as one; what is not sent only adds its computing."""
    groups = [load.batches[first : first + together] for first in range(0, len(load.batches), together)]
    batches = tuple(
        Batch(
            sum(batch.compute_s for batch in group),
            sum(batch.sent_bytes for batch in group),
            None if all(b.server_s is None for b in group) else sum(b.server_s or 0.0 for b in group),
        )
        for group in groups
    )
    return replace(load, batches=batches)
