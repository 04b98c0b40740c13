"""Objectives: what a side of the cut minimises.

One of your own is a subclass of Objective: `training.objective: package.module:Name` (docs/extend.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, get_args

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from hsee_ray.config.fleet import OBJECTIVE
from hsee_ray.config.plugins import Pluggable, PlugIn, create
from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError
from hsee_ray.method.legs import Side
from hsee_ray.method.task import task_of
from hsee_ray.models.model import Model


class Objective(Pluggable, nn.Module):
    """The loss of one model's steps. B samples, K classes.

    Buffers are what it remembers: they belong to the model's state, and are saved and restored with it. They are never
    averaged, and are in no final file.
    """

    def __init__(self, options: Any, side: Side, parameters: Mapping[str, torch.Tensor]) -> None:
        """`parameters` are the model's own, by name, the exit head's included; they change with every step."""
        nn.Module.__init__(self)
        super().__init__(options)
        self.side = side
        self.of_model = dict(parameters)

    def begin_round(self, round_number: int) -> None:
        """Called before each message of a round's steps, also when a round is repeated: the first call decides.

        Averages of the round before have been taken by then.
        """

    @abstractmethod
    def forward(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        """Scalar loss in nats of float32 logits (B, K) and labels (B,), with its gradient."""

    def auxiliary(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        """Loss of other logits in the same step, as `forward`'s; what counts once for a step is left out."""
        return self(logits_BK, y_B)  # type: ignore[no-any-return]


class CrossEntropy(Objective):
    """Mean cross-entropy, with label smoothing on demand (Szegedy et al. 2016, arXiv:1512.00567)."""

    class Options(Objective.Options):
        label_smoothing: float = Field(0.0, ge=0, lt=1)
        """Share of a label that is spread over all classes alike."""

    def forward(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits_BK, y_B, label_smoothing=self.options.label_smoothing)


class Proximal(CrossEntropy):
    """FedProx (Li et al. 2020, arXiv:1812.06127): a client's parameters are drawn back to where its round began.

    On clients mu / 2 times the squared distance of all parameters, the exit's included, is added to the cross-entropy.
    """

    class Options(CrossEntropy.Options):
        mu: float = Field(0.01, gt=0)

    round_number: torch.Tensor

    def __init__(self, options: Any, side: Side, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__(options, side, parameters if side == "client" else {})
        self.register_buffer("round_number", torch.zeros((), dtype=torch.int64))
        self.anchors = {name: f"anchor_{name.replace('.', '_')}" for name in self.of_model}
        for name, anchor in self.anchors.items():
            self.register_buffer(anchor, torch.zeros_like(self.of_model[name]))

    def begin_round(self, round_number: int) -> None:
        if self.round_number != round_number:
            self.round_number.fill_(round_number)
            for name, anchor in self.anchors.items():
                getattr(self, anchor).copy_(self.of_model[name].detach())

    def forward(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        loss = self.auxiliary(logits_BK, y_B)
        for name, anchor in self.anchors.items():
            loss = loss + self.options.mu / 2 * (self.of_model[name] - getattr(self, anchor)).square().sum()
        return loss

    def auxiliary(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        return super().forward(logits_BK, y_B)


def build_objective(config: Config, side: Side, model: Model) -> Objective:
    """The objective of a model, which from now on keeps what it remembers. Raises ConfigError when it cannot be had."""
    objective = _made(config, side, model.units)
    model.remembers(OBJECTIVE, objective.to(model.device))
    return objective


def check_objective(config: Config, units: Mapping[str, nn.Module], n_classes: int) -> None:
    """Tries the objective on two samples, for a model of these units. Raises ConfigError unless it gives a loss."""
    for side in get_args(Side):
        objective = _made(config, side, units)
        objective.begin_round(1)
        logits_BK = torch.linspace(-1, 1, 2 * n_classes).reshape(2, n_classes).requires_grad_()
        loss = objective(logits_BK, torch.zeros(2, dtype=torch.int64))
        if loss.ndim or not loss.isfinite() or not loss.requires_grad:
            name, wanted = _named(config).name, "it must give one finite loss with a gradient"
            raise ConfigError(f"training.objective is {name!r}: it gives {loss}, {wanted}")


def _named(config: Config) -> PlugIn:
    """The objective of the configuration, else the task's own."""
    return config.training.objective or PlugIn(name=task_of(config).objective)


def _made(config: Config, side: Side, units: Mapping[str, nn.Module]) -> Objective:
    parameters = {f"{name}.{of}": each for name, unit in units.items() for of, each in unit.named_parameters()}
    base: Any = Objective  # mypy takes no abstract class for a type[Objective]
    objective: Objective = create("objective", "training.objective", _named(config), base, side, parameters)
    return objective
