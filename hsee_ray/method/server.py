"""A server: the units above the cut, trained on features that clients send. One client's, or all clients' in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from hsee_ray.backbones import Backbone
from hsee_ray.config.fleet import ClientSpec
from hsee_ray.config.schema import Config
from hsee_ray.features.message import FeatureBatch, Packet, decode, encode
from hsee_ray.method.aggregation import mean_arrays
from hsee_ray.method.figures import count, metrics_of
from hsee_ray.method.objective import build_objective
from hsee_ray.method.predictions import ServerPredictions
from hsee_ray.method.reports import Array, EvaluationReport, TrainReport, evaluation_report
from hsee_ray.method.schedule import learning_rate
from hsee_ray.method.steps import NonFiniteStep, refuse_nonfinite, server_step, undone_if_nonfinite
from hsee_ray.method.task import task_of
from hsee_ray.models.model import Model
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.split import server_units
from hsee_ray.models.state import Arrays, ModelState, finite, named_tensors, statistics_names, to_array
from hsee_ray.rng import generator

StatisticsSet = dict[str, torch.Tensor]
"""Norm statistics of one client by `<unit>.<name in the unit>`."""


class Server:
    """Trains f^s on one client's features, or on the features of all clients of Sequential."""

    def __init__(
        self,
        config: Config,
        served: Sequence[ClientSpec],
        backbone: Backbone,
        n_classes: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.n_classes = n_classes
        self.specs = {spec.client_id: spec for spec in served}
        self.first_cut = min(spec.cut for spec in served)
        self.model = Model(server_units(backbone.units, self.first_cut), None, config.training, device)
        self.per_client_statistics = len(served) > 1 and config.training.norm_statistics == "per_client"
        self.objective = build_objective(config, "server", self.model)
        self.task = task_of(config)
        self.skips = config.failures.on_nonfinite == "skip_batch"
        self._kept: dict[int, list[FeatureBatch]] = {}
        """Of a round that is under way, by client: features for further epochs; not part of a snapshot."""
        self._initial_statistics = self._read_statistics()
        self._statistics: dict[int, StatisticsSet] = {}

    def train(
        self, client: int, round_number: int, packet: Packet, ends_round: bool = False
    ) -> tuple[Packet, TrainReport]:
        """One step per batch of the packet; a batch enters above its client's cut, in its client's statistics.

        What goes back to the client is as `training.feedback` says: of every batch dL/dh, or the logits (B, K) from
        before the step, or nothing. Behind the client's last batch of a round, further epochs over its features follow.
        """
        reply, report = self._steps(client, round_number, packet)
        epochs = self.config.training.server_epochs
        if epochs > 1:
            kept = self._keep(client, packet)
            if ends_round:
                for epoch in range(1, epochs):
                    rng = generator(self.config.seed, "server order", client, round_number, epoch)
                    again = [kept[place] for place in rng.permutation(len(kept))]
                    _, more = self._steps(client, round_number, again)
                    report = replace(report + more, samples=report.samples)
                del self._kept[client]
        return reply, report

    def _keep(self, client: int, packet: Packet) -> list[FeatureBatch]:
        """A client's features of this round so far, without batches for which there is no room."""
        kept = self._kept.setdefault(client, [])
        room = (self.config.training.server_memory_mib << 20) - sum(batch.feature_bytes for batch in kept)
        for batch in packet:
            if batch.feature_bytes <= room:
                room -= batch.feature_bytes
                # They may lie in memory that all processes share, and that is needed for others.
                kept.append(replace(batch, features=batch.features.copy(), labels_B=batch.labels_B.copy()))
        return kept

    def _steps(self, client: int, round_number: int, packet: Sequence[FeatureBatch]) -> tuple[Packet, TrainReport]:
        """One step per batch; what goes back to the client, and a report."""
        network, training = self.part_of(client, round_number), self.config.training
        feedback = training.feedback.name
        reply: list[FeatureBatch] = []
        losses: list[float] = []
        samples = skipped = 0
        for batch in packet:
            h, y_B = decode(batch, self.model.device)
            h.requires_grad_(feedback == "gradients")
            try:
                with undone_if_nonfinite(self.model.network) if self.skips else nullcontext():
                    logits_BK, loss = server_step(
                        network,
                        self.model.optimizer,
                        h,
                        y_B,
                        training.autocast,
                        self.objective,
                        training.optimizer.clip_norm,
                    )
            except NonFiniteStep as error:
                who = self.specs[client].client_file
                refuse_nonfinite(self.config, who, round_number, batch.step, error)
                skipped += 1
                continue
            losses.append(loss)
            samples += len(y_B)
            if feedback != "none":
                back = h.grad if h.grad is not None else logits_BK
                reply.append(encode(back, y_B[:0], batch.step))
        return tuple(reply), TrainReport(samples, tuple(losses), skipped=skipped)

    def part_of(self, client: int, round_number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The units above a client's cut, in its statistics and in train mode: features -> logits (B, K)."""
        if self.per_client_statistics:
            self._bind_statistics(self._statistics.setdefault(client, self._statistics_of(client)))
        self.model.train_mode(learning_rate(self.config.training, round_number))
        self.objective.begin_round(round_number)
        return partial(self.model.network, entry=self.specs[client].cut - self.first_cut)

    @torch.no_grad()
    def evaluate(self, client: int, packet: Packet) -> EvaluationReport:
        """The server's answers to a client's features, beside the client's own that travel with them."""
        (batch,) = packet
        assert batch.confidence_B is not None and batch.prediction_B is not None and batch.counts is not None
        logits_BK = self._infer(client, batch)
        counted = count(metrics_of(self.config), logits_BK, batch.labels_B)
        return evaluation_report(
            labels_B=batch.labels_B,
            n_classes=self.n_classes,
            client_right_B=self.task.right(batch.prediction_B, batch.labels_B),
            confidence_B=batch.confidence_B,
            server_right_B=self.task.right(self.task.predict(logits_BK), batch.labels_B),
            taus=self.config.exits.taus,
            sent_bytes=batch.feature_bytes,
            counts={"client": batch.counts, "server": counted},
        )

    @torch.no_grad()
    def answer(self, client: int, packet: Packet) -> ServerPredictions:
        """Answers to the samples of which a client was not sure."""
        begin = time.perf_counter()
        (batch,) = packet
        prediction_B = self.task.predict(self._infer(client, batch))
        return ServerPredictions(prediction_B, len(prediction_B), time.perf_counter() - begin)

    def _infer(self, client: int, batch: FeatureBatch) -> Array:
        """Logits (B, K), in the client's statistics."""
        if self.per_client_statistics:
            self._bind_statistics(self._statistics_of(client))
        self.model.eval_mode()
        h, _ = decode(batch, self.model.device)
        logits_BK: Array = self.model.network(h, self.specs[client].cut - self.first_cut).cpu().numpy()
        return logits_BK

    def snapshot(self) -> Snapshot:
        """A copy of everything that decides this server's future. Raises NonFiniteError."""
        sets = {
            client_id: {name: to_array(tensor) for name, tensor in kept.items()}
            for client_id, kept in self._statistics.items()
        }
        return Snapshot(self._state(), sets)

    def _state(self) -> ModelState:
        first, *others = self.specs.values()
        return finite(self.model.state(), "the shared server" if others else f"the server of {first.client_file}")

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot."""
        self.model.restore(snapshot.units)
        self._kept.clear()
        self._statistics = {
            client_id: {name: torch.from_numpy(array).clone().to(self.model.device) for name, array in kept.items()}
            for client_id, kept in snapshot.sets.items()
        }

    def tensors(self) -> Arrays:
        """Parameters and buffers; a shared server's statistics once per client, as `client-<label>.<name>`."""
        tensors = named_tensors(self._state())
        if not self.per_client_statistics:
            return tensors
        shared = {name: array for name, array in tensors.items() if name not in self._initial_statistics}
        for client_id, spec in sorted(self.specs.items()):
            statistics = self._statistics_of(client_id)
            shared.update({f"{spec.client_file}.{name}": to_array(tensor) for name, tensor in statistics.items()})
        return shared

    def take_tensors(self, tensors: Arrays) -> None:
        """Takes the tensors of a model file, as `tensors` gives them. Raises DataError when they do not fit."""
        shared = dict(tensors)
        if self.per_client_statistics:
            own = {client_id: f"{spec.client_file}." for client_id, spec in self.specs.items()}
            for client_id, prefix in own.items():
                names = [name for name in tensors if name.startswith(prefix)]
                self._statistics[client_id] = {
                    name.removeprefix(prefix): torch.from_numpy(shared.pop(name)).clone().to(self.model.device)
                    for name in names
                }
            # The model itself wears some client's set; which one makes no difference.
            shared.update({name: to_array(tensor) for name, tensor in self._initial_statistics.items()})
        self.model.take_tensors(shared)

    def _statistics_of(self, client: int) -> StatisticsSet:
        """The client's own set; without one yet, the mean of those with its cut; without those, the initial one."""
        if client in self._statistics:
            return self._statistics[client]
        cut = self.specs[client].cut
        same_cut = [kept for client_id, kept in sorted(self._statistics.items()) if self.specs[client_id].cut == cut]
        passed = set(self.model.network.names[cut - self.first_cut :])
        names = [name for name in self._initial_statistics if self._unit_of[name] in passed]
        if not same_cut:
            return {name: self._initial_statistics[name].clone() for name in names}
        weights = [1.0] * len(same_cut)
        return {
            name: torch.from_numpy(mean_arrays([to_array(kept[name]) for kept in same_cut], weights)).to(
                self.model.device
            )
            for name in names
        }

    def _read_statistics(self) -> StatisticsSet:
        self._unit_of: dict[str, str] = {}
        found: StatisticsSet = {}
        for unit_name, unit in self.model.units.items():
            buffers = dict(unit.named_buffers())
            for name in sorted(statistics_names(unit)):
                found[f"{unit_name}.{name}"] = buffers[name].clone()
                self._unit_of[f"{unit_name}.{name}"] = unit_name
        return found

    def _bind_statistics(self, statistics: StatisticsSet) -> None:
        """Puts a client's statistics into the norm layers by reference: training then updates that set itself."""
        units = self.model.units
        for name, tensor in statistics.items():
            unit_name = self._unit_of[name]
            module_name, _, buffer_name = name.removeprefix(f"{unit_name}.").rpartition(".")
            units[unit_name].get_submodule(module_name).register_buffer(buffer_name, tensor)
