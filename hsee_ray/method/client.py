"""A client: the units below its cut, its exit head, its images. Knows nothing of servers, actors or clusters."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hsee_ray.backbones import Backbone
from hsee_ray.config.fleet import FEEDBACK, ClientSpec
from hsee_ray.config.schema import Config, SoftLabelFeedback
from hsee_ray.data.augment import Augment
from hsee_ray.data.batches import normalise
from hsee_ray.edge.gate import Gate
from hsee_ray.features.message import FeatureBatch, Packet, decode, encode
from hsee_ray.features.path import FeaturePath
from hsee_ray.method.figures import count, metrics_of
from hsee_ray.method.objective import build_objective
from hsee_ray.method.predictions import ExitPredictions, Part
from hsee_ray.method.reports import EvaluationReport, TrainReport, evaluation_report
from hsee_ray.method.schedule import learning_rate, round_batches
from hsee_ray.method.soft_labels import SoftLabels
from hsee_ray.method.steps import (
    Buffers,
    ExitLoss,
    NonFiniteStep,
    client_step,
    forward_step,
    refuse_nonfinite,
    returned_step,
    undone_if_nonfinite,
)
from hsee_ray.method.strategies import strategy_of
from hsee_ray.method.task import task_of
from hsee_ray.models.exits import build_exits
from hsee_ray.models.look_ahead import build_look_ahead
from hsee_ray.models.model import Model
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.split import client_units
from hsee_ray.models.state import Arrays, ModelState, finite, named_tensors
from hsee_ray.models.torch_device import to_device
from hsee_ray.rng import generator

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Samples:
    """Some rows of a file of images: `indices` into (N, H, W, C) uint8 images and their labels."""

    images_NHWC: Array
    labels_N: Array
    indices: Array

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class ClientData:
    """A client's samples, of training and of each Part, and the normalisation of its images (scale [0, 1])."""

    train: Samples
    test: Samples
    calibration: Samples
    validation: Samples
    class_names: tuple[str, ...]
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]

    def of(self, part: Part) -> Samples:
        return {"test": self.test, "calibration": self.calibration, "validation": self.validation}[part]


class Client:
    """Trains f^c and f^o on its own data and hands out the features at its cut."""

    def __init__(
        self,
        config: Config,
        spec: ClientSpec,
        backbone: Backbone,
        feature_shapes: Sequence[tuple[int, ...]],
        data: ClientData,
        device: torch.device,
    ) -> None:
        """`feature_shapes` are those behind each unit of the backbone."""
        feature_shape, n_classes = feature_shapes[spec.cut - 1], len(data.class_names)
        heads = build_exits(config, spec, tuple(backbone.units), feature_shapes, n_classes)
        look_ahead = None
        if spec.has_exit:
            look_ahead = build_look_ahead(config, backbone.units, spec.cut, feature_shapes, n_classes)
        self.config = config
        self.spec = spec
        self.data = data
        self.path = FeaturePath(config, spec, feature_shape)
        units = client_units(backbone.units, spec.cut)
        exit_head = heads.pop(spec.cut, None)
        self.model = Model(units, exit_head, config.training, device, self.path.units, look_ahead, heads)
        self.distillation = strategy_of(config).distillation
        self.objective = build_objective(config, "client", self.model)
        self.soft_labels: SoftLabels | None = None
        if spec.has_server and isinstance(config.training.feedback, SoftLabelFeedback):
            self.soft_labels = SoftLabels(config.training.feedback, len(data.train), n_classes).to(device)
            self.model.remembers(FEEDBACK, self.soft_labels)
        self.augment = Augment(config.data.augment, data.mean_C)
        self.task = task_of(config)
        self.skips = config.failures.on_nonfinite == "skip_batch"
        self.pending: dict[int, Any] = {}
        """State that a strategy's legs keep of a batch until its reply arrives, by step; not part of a snapshot."""
        self._batches = round_batches(config.training, len(data.train), spec.batch_size)
        self._order: tuple[int, int, Array] | None = None

    def train(self, round_number: int, first: int, last: int) -> tuple[Packet, TrainReport]:
        """Steps first..last-1 of a round; the features of each batch are from before its step.

        A client without a server gives an empty packet. A batch whose loss is not finite raises NonFiniteError,
        or is left out, as `failures.on_nonfinite` says.
        """
        packet: list[FeatureBatch] = []
        losses: list[float] = []
        samples = skipped = 0
        for step, x_BCHW, y_B in self.training_batches(round_number, first, last):
            try:
                h, loss = self._step(x_BCHW, y_B, self._soft_labels_of(round_number, step))
            except NonFiniteStep as error:
                self._refuse(round_number, step, error)
                skipped += 1
                continue
            losses.append(loss)
            samples += len(y_B)
            if self.spec.has_server:
                packet.append(self.path.for_training(encode(h, y_B, step), round_number))
        sent_bytes = sum(message.sent_bytes for message in packet)
        return tuple(packet), TrainReport(samples, tuple(losses), sent_bytes, skipped)

    def send(self, round_number: int, first: int, last: int) -> tuple[Packet, TrainReport]:
        """Features of steps first..last-1 of a round; their graphs wait for the server's gradients."""
        packet: list[FeatureBatch] = []
        skipped = 0
        for step, x_BCHW, y_B in self.training_batches(round_number, first, last):
            buffers = Buffers(self.model.network) if self.skips else None
            try:
                h = forward_step(self.model.network, x_BCHW, self.config.training.autocast)
            except NonFiniteStep as error:
                self._refuse(round_number, step, error, buffers)
                skipped += 1
                continue
            self.pending[step] = h, y_B, buffers
            packet.append(self.path.for_training(encode(h.detach(), y_B, step), round_number))
        return tuple(packet), TrainReport(0, (), sum(message.sent_bytes for message in packet), skipped)

    def take_gradients(self, round_number: int, packet: Packet) -> TrainReport:
        """The steps of batches that were sent, with the server's gradients, but for batches that it has left out."""
        model, training = self.model, self.config.training
        assert model.exit_head is not None, "only a client with a server sends features"
        gradients = {message.step: message for message in packet}
        losses: list[float] = []
        samples = skipped = 0
        for step, (h, y_B, buffers) in sorted(self.pending.items()):
            try:
                if step not in gradients:
                    raise NonFiniteStep("the server's loss or gradient", math.nan)
                gradient, _ = decode(gradients[step], model.device)
                with undone_if_nonfinite(model.exit_head) if self.skips else nullcontext():
                    loss = returned_step(
                        h,
                        gradient,
                        model.exit_head,
                        model.optimizer,
                        y_B,
                        training.autocast,
                        self.objective,
                        training.optimizer.clip_norm,
                        training.exit_weight,
                    )
            except NonFiniteStep as error:
                self._refuse(round_number, step, error, buffers)
                skipped += 1
                continue
            losses.append(loss)
            samples += len(y_B)
        self.pending.clear()
        return TrainReport(samples, tuple(losses), 0, skipped, sum(message.feature_bytes for message in packet))

    def take_soft_labels(self, round_number: int, packet: Packet) -> TrainReport:
        """Keeps the server's logits of batches that were sent, for the next round."""
        assert self.soft_labels is not None, "only this feedback has such a leg"
        for message in packet:
            logits_BK, _ = decode(message, self.model.device)
            self.soft_labels.receive(self._rows(round_number, message.step), logits_BK)
        return TrainReport(0, (), received_bytes=sum(message.feature_bytes for message in packet))

    def training_batches(
        self, round_number: int, first: int, last: int
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Steps first..last-1 of a round with their images (B, C, H, W) and labels (B,); the model is in train mode."""
        self.model.train_mode(learning_rate(self.config.training, round_number))
        self.objective.begin_round(round_number)
        if self.soft_labels is not None:
            self.soft_labels.begin_round(round_number)
        for batch in self._batches[first:last]:
            yield batch.step, *self._training_batch(round_number, batch.step)

    @torch.no_grad()
    def evaluate(self, part: Part, first: int, last: int) -> tuple[Packet, EvaluationReport | None]:
        """Samples first..last-1 of a part of the data through the client's part; the features go to the server.

        A client without a server answers them itself: an empty packet, and its report.
        """
        self.model.eval_mode()
        samples = self.data.of(part)
        rows = samples.indices[first:last]
        labels_B = samples.labels_N[rows]
        x_BCHW, y_B = self._tensors(samples.images_NHWC[rows], labels_B)
        h, logits_BK = self._infer(x_BCHW)
        confidence_B = self.task.confidence(logits_BK, self.config.exits.confidence)
        prediction_B = self.task.predict(logits_BK)
        counts = count(metrics_of(self.config), logits_BK, labels_B)
        if self.spec.has_server:
            sent = dataclasses.replace(
                self._sent(encode(h, y_B)), confidence_B=confidence_B, prediction_B=prediction_B, counts=counts
            )
            return (sent,), None
        return (), evaluation_report(
            labels_B=labels_B,
            n_classes=len(self.data.class_names),
            client_right_B=self.task.right(prediction_B, labels_B),
            confidence_B=confidence_B,
            server_right_B=None,
            taus=self.config.exits.taus,
            sent_bytes=0,
            counts={"client": counts},
        )

    @torch.no_grad()
    def answer(self, part: Part, first: int, last: int, gate: Gate) -> tuple[Packet, ExitPredictions]:
        """Samples first..last-1 of a part of the data, answered by the exit where it is sure.

        The packet holds the features of the others in one smaller batch, or nothing when all stay; no labels travel.
        """
        begin = time.perf_counter()
        self.model.eval_mode()
        samples = self.data.of(part)
        rows = samples.indices[first:last]
        x_BCHW, y_B = self._tensors(samples.images_NHWC[rows], samples.labels_N[rows])
        h, logits_BK = self._infer(x_BCHW)
        exited_B = np.ones(len(rows), bool)
        packet: Packet = ()
        if self.spec.has_server:
            exited_B = gate.exits_B(logits_BK, self.task)
            unsure = np.flatnonzero(~exited_B)
            if len(unsure):
                packet = (self._sent(encode(h, y_B[:0]).rows(unsure)),)
        sent_bytes = sum(message.feature_bytes for message in packet)
        seconds = time.perf_counter() - begin
        return packet, ExitPredictions(y_B.cpu().numpy(), logits_BK, exited_B, sent_bytes, seconds)

    def snapshot(self) -> Snapshot:
        """A copy of everything that decides this client's future. Raises NonFiniteError."""
        return Snapshot(self._state())

    def _state(self) -> ModelState:
        return finite(self.model.state(), self.spec.client_file)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back to a snapshot."""
        self.model.restore(snapshot.units)
        self.pending.clear()

    def tensors(self) -> Arrays:
        """Tensors of the model file, named `<unit>.<name in the unit>`."""
        return named_tensors(self._state())

    def take_tensors(self, tensors: Arrays) -> None:
        """Takes the tensors of a model file. Raises DataError when they do not fit."""
        self.model.take_tensors(tensors)

    def _infer(self, x_BCHW: torch.Tensor) -> tuple[torch.Tensor, Array]:
        """Features and the exit's logits (B, K); at cut L the network's own output is both."""
        h = self.model.network(x_BCHW)
        logits_BK = h if self.model.exit_head is None else self.model.exit_head(h)
        return h, logits_BK.cpu().numpy()

    def _sent(self, message: FeatureBatch) -> FeatureBatch:
        """The message as it is sent outside of training, so that no sample depends on those beside it.

        A client that has not trained yet shows its stages its first training images, and keeps nothing of it.
        """
        path = self.path
        if not path.ready:
            path = copy.deepcopy(path)
            rows = self.data.train.indices[: self.spec.batch_size]
            x_BCHW, y_B = self._tensors(self.data.train.images_NHWC[rows], self.data.train.labels_N[rows])
            path.for_training(encode(self.model.network(x_BCHW), y_B), 0)
        return path.for_inference(message)

    def _soft_labels_of(self, round_number: int, step: int) -> ExitLoss | None:
        return None if self.soft_labels is None else self.soft_labels.loss_of(self._rows(round_number, step))

    def _refuse(self, round_number: int, step: int, error: NonFiniteStep, buffers: Buffers | None = None) -> None:
        """Raises NonFiniteError, unless the batch is to be left out: then the buffers go back."""
        refuse_nonfinite(self.config, self.spec.client_file, round_number, step, error)
        if buffers is not None:
            buffers.put_back()

    def _step(
        self, x_BCHW: torch.Tensor, y_B: torch.Tensor, soft_labels: ExitLoss | None
    ) -> tuple[torch.Tensor, float]:
        model, training = self.model, self.config.training
        modules = (model.network, model.exit_head, model.look_ahead, *model.inner_exits.values())
        with undone_if_nonfinite(*modules) if self.skips else nullcontext():
            return client_step(
                model.network,
                model.exit_head,
                model.optimizer,
                x_BCHW,
                y_B,
                training.autocast,
                self.objective,
                training.optimizer.clip_norm,
                training.exit_weight,
                model.look_ahead,
                soft_labels,
                self.objective.auxiliary,
                model.inner_exits,
                self.distillation,
            )

    def _training_batch(self, round_number: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        indices = self.data.train.indices[self._rows(round_number, step)]
        images_BHWC = self.data.train.images_NHWC[indices]
        if self.config.data.augment.on:
            rng = generator(self.config.seed, "augmentation", self.spec.client_id, round_number, step)
            images_BHWC = self.augment(images_BHWC, rng)
        return self._tensors(images_BHWC, self.data.train.labels_N[indices])

    def _rows(self, round_number: int, step: int) -> Array:
        """Which of the client's training samples a step is of."""
        batch = self._batches[step]
        return self._epoch_order(round_number, batch.epoch)[batch.start : batch.stop]

    def _epoch_order(self, round_number: int, epoch: int) -> Array:
        """The client's training samples in the order of a local epoch; kept until another one is asked for."""
        if self._order is None or self._order[:2] != (round_number, epoch):
            rng = generator(self.config.seed, "order", self.spec.client_id, round_number, epoch)
            self._order = (round_number, epoch, rng.permutation(len(self.data.train)))
        return self._order[2]

    def _tensors(self, images_BHWC: Array, labels_B: Array) -> tuple[torch.Tensor, torch.Tensor]:
        x_BCHW = normalise(images_BHWC, self.data.mean_C, self.data.std_C, self.model.memory_format)
        device = self.model.device
        return to_device(x_BCHW, device), to_device(torch.from_numpy(labels_B), device)
