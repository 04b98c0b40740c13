"""Costs of a network, counted by running it: arithmetic, memory traffic, operators, and training memory.

The very steps of training run on the meta device, which has shapes and no data; a mode of torch sees every operator
that they call. A network that cannot run there runs on the CPU. Figures are of float32, at the given batch size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hsee_ray.backbones import build_backbone, feature_shapes
from hsee_ray.config.schema import Config
from hsee_ray.devices.counter import Counter, OpCounts
from hsee_ray.edge.codecs import Codec, feature_bytes
from hsee_ray.method.steps import client_step, forward_step, returned_step, server_step
from hsee_ray.models.exits import build_exit
from hsee_ray.models.look_ahead import build_look_ahead
from hsee_ray.models.model import MEMORY_FORMATS, Model
from hsee_ray.models.split import UnitChain

__all__ = ["CostTable", "Memory", "OpCounts", "SideCost", "UnitCost"]

LABEL_BYTES = 8
_RETURNED = "returned"


@dataclass(frozen=True)
class Memory:
    """Peak training memory of one side of the cut."""

    parameter_bytes: int
    """Parameters and buffers."""
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Kept by the forward pass for the backward pass, and what comes out of it."""
    batch_bytes: int
    """The batch that enters: images or features, and labels."""
    workspace_bytes: int = 0
    """Temporary memory of operators at the peak."""

    @property
    def total_bytes(self) -> int:
        return (
            self.parameter_bytes
            + self.gradient_bytes
            + self.optimizer_bytes
            + self.activation_bytes
            + self.batch_bytes
            + self.workspace_bytes
        )


@dataclass(frozen=True)
class SideCost:
    """One side of a cut at a batch size."""

    train: OpCounts
    """A step: forward, backward, optimiser; on a client with its exit head."""
    infer: OpCounts
    """Forward only, in evaluation mode."""
    parameters: Mapping[str, int]
    """By unit; with the exit head, and what is there in training only."""
    memory: Memory
    """Of training."""
    returned: OpCounts
    """Part of a step that a client does when the server's gradient has come back; the rest is before it sends."""


@dataclass(frozen=True)
class UnitCost:
    """One unit of the network, per sample."""

    name: str
    parameters: int
    multiply_adds: int
    """Forward."""
    backward_multiply_adds: int
    """In a network that is trained as a whole: the first unit needs no gradient of its input."""
    activation_bytes: int
    """Kept for the backward pass that no unit before it keeps; without parameters and the image itself."""
    feature_shape: tuple[int, ...]
    """Of its output: (C, H, W), (T, D) or any other."""


class CostTable:
    """Costs of the configuration's network by unit and by cut, computed lazily and memoised."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int], n_classes: int) -> None:
        """For images of shape (H, W, C). Raises ConfigError as `build_backbone` does."""
        self._config = config
        self._n_classes = n_classes
        self._format = MEMORY_FORMATS[config.training.memory_format]
        backbone = build_backbone(config.model, image_shape, n_classes, config.seed)
        height, width, channels = image_shape
        self._shapes = ((channels, height, width), *feature_shapes(backbone, image_shape))
        self._device = torch.device("meta")
        self._units = {name: copy.deepcopy(unit).to(self._device) for name, unit in backbone.units.items()}
        try:
            self.units = self._count_units()
        except (RuntimeError, TypeError, ValueError, IndexError):
            # The network looks at values, or makes tensors on the CPU: a user's own may fail in any of these ways.
            self._device = torch.device("cpu")
            self._units = backbone.units
            self.units = self._count_units()
        self._sides: dict[tuple[int, int, int, bool, tuple[int, ...]], SideCost] = {}

    units: tuple[UnitCost, ...]
    """In order: `units[cut - 1]` is the last one below a cut."""

    def client(self, cut: int, batch_size: int, with_exit: bool = True, inner_exits: tuple[int, ...] = ()) -> SideCost:
        """Units 1..cut with the exit head. There is none behind the last unit, where the network itself answers.

        `inner_exits` are cuts below it with further heads, which no answer passes.
        No batch of one sample is ever trained: for that size the training costs are those of two.
        """
        return self._side(0, cut, batch_size, with_exit and cut < len(self._units), inner_exits)

    def server(self, cut: int, batch_size: int) -> SideCost:
        """Units cut+1..L, of which there must be one."""
        return self._side(cut, len(self._units), batch_size, False, ())

    def feature_bytes(self, cut: int, codec: Codec, batch_size: int) -> int:
        """Bytes of a training batch as it is sent: features, what they are decoded with, labels."""
        return feature_bytes(codec, self._shapes[cut], batch_size) + LABEL_BYTES * batch_size

    def _side(self, first: int, last: int, batch_size: int, with_exit: bool, inner: tuple[int, ...]) -> SideCost:
        key = first, last, batch_size, with_exit, inner
        if key not in self._sides:
            self._sides[key] = self._count_side(*key)
        return self._sides[key]

    def _count_side(self, first: int, last: int, batch_size: int, with_exit: bool, inner: tuple[int, ...]) -> SideCost:
        names = list(self._units)
        units = {name: self._units[name] for name in names[first:last]}
        heads = {
            cut: build_exit(self._config, names[cut - 1], self._shapes[cut], self._n_classes)
            for cut in (*inner, *([last] if with_exit else []))
        }
        exit_head = heads.pop(last, None)
        ahead = None
        if with_exit:
            ahead = build_look_ahead(self._config, copy.deepcopy(self._units), last, self._shapes[1:], self._n_classes)
        model = Model(units, exit_head, self._config.training, self._device, look_ahead=ahead, inner_exits=heads)
        infer = self._count_inference(model, self._batch(first, batch_size)[0])
        counter, memory = self._count_step(model, *self._batch(first, max(2, batch_size)), is_client=first == 0)
        forward, backward = counter.work(), counter.work(_RETURNED)
        parameters = {name: sum(each.numel() for each in unit.parameters()) for name, unit in model.units.items()}
        return SideCost(forward + backward, infer, parameters, memory, backward)

    def _count_step(self, model: Model, x: torch.Tensor, y_B: torch.Tensor, is_client: bool) -> tuple[Counter, Memory]:
        training, optimizer, exit_head = self._config.training, model.optimizer, model.exit_head
        how: dict[str, Any] = {"clip_norm": training.optimizer.clip_norm}
        returned = training.feedback.name == "gradients"

        def step() -> None:
            if not is_client:
                server_step(model.network, optimizer, x.detach().requires_grad_(returned), y_B, **how)
            elif returned and exit_head is not None:
                h = forward_step(model.network, x)
                counter.enter(_RETURNED)
                returned_step(
                    h, torch.empty_like(h), exit_head, optimizer, y_B, exit_weight=training.exit_weight, **how
                )
            else:
                how.update(exit_weight=training.exit_weight, look_ahead=model.look_ahead)
                how.update(inner_exits=model.inner_exits, distillation=1.0)
                client_step(model.network, exit_head, optimizer, x, y_B, **how)

        model.train_mode(1)
        parameters = _parameters(model)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        with Counter():
            model.optimizer.step()  # from then on it keeps what it will always keep
        own = [*parameters, *_buffers(model)]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        kept = [value for of in model.optimizer.state.values() for value in of.values() if torch.is_tensor(value)]
        counter = Counter([*own, *gradients, *kept, x, y_B])
        del gradients
        with counter:
            step()
        gradient_bytes = sum(_bytes(parameter.grad) for parameter in parameters if parameter.grad is not None)
        held = Memory(_bytes(*own), gradient_bytes, _bytes(*kept), counter.kept_bytes(), _bytes(x, y_B))
        workspace_bytes = max(0, counter.peak_bytes - held.total_bytes)
        return counter, replace(held, workspace_bytes=workspace_bytes)

    @torch.no_grad()
    def _count_inference(self, model: Model, x: torch.Tensor) -> OpCounts:
        model.eval_mode()
        with Counter() as counter:
            h = model.network(x)
            if model.exit_head is not None:
                model.exit_head(h)
        return counter.work()

    def _count_units(self) -> tuple[UnitCost, ...]:
        """All at once, as they follow one another: a unit's ReLU keeps what the next unit's convolution keeps too.

        From two batch sizes: what the backward pass needs once for a batch (statistics) is no sample's.
        """
        few, many = self._pass_through(2), self._pass_through(4)
        units: list[UnitCost] = []
        for index, (name, unit) in enumerate(self._units.items()):
            forward, backward, kept = ((b - a) // 2 for a, b in zip(few[index], many[index], strict=True))
            parameters = sum(parameter.numel() for parameter in unit.parameters())
            units.append(UnitCost(name, parameters, forward, backward, kept, self._shapes[index + 1]))
        return tuple(units)

    def _pass_through(self, batch_size: int) -> list[tuple[int, int, int]]:
        """Multiply-adds forward and backward, and bytes kept, of every unit of the network that is trained whole."""
        network = UnitChain(self._units).train()
        x, y_B = self._batch(0, batch_size)
        counter = Counter([*network.parameters(), *network.buffers(), x, y_B])
        with counter:
            h = x
            for name, unit in network.units.items():
                counter.enter(("forward", name))
                h = unit(h)
                if h.requires_grad:
                    h.register_hook(lambda gradient, name=name: counter.enter(("backward", name)))
            counter.enter("loss")
            functional.cross_entropy(h, y_B).backward()  # type: ignore[no-untyped-call]
        network.zero_grad(set_to_none=True)
        return [
            (
                counter.work(("forward", name)).multiply_adds,
                counter.work(("backward", name)).multiply_adds,
                counter.kept_bytes(("forward", name)),
            )
            for name in network.names
        ]

    def _batch(self, unit: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Input of the network at a unit, in the memory format of training, and labels."""
        shape = (batch_size, *self._shapes[unit])
        x = torch.empty(shape, device=self._device)
        if not x.is_meta:
            x = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
        if x.dim() == 4:
            x = x.contiguous(memory_format=self._format)
        return x, torch.zeros(batch_size, dtype=torch.int64, device=self._device)


def _parameters(model: Model) -> list[nn.Parameter]:
    return [parameter for unit in model.units.values() for parameter in unit.parameters()]


def _buffers(model: Model) -> list[torch.Tensor]:
    return [buffer for unit in model.units.values() for buffer in unit.buffers()]


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
