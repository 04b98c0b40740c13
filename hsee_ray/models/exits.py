"""Exit heads: light classifiers on the features at a cut.

A head of your own is a subclass of ExitPart: `exits.head: package.module:Name` (docs/extend.md).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hsee_ray.config.fleet import Fleet
from hsee_ray.config.plugins import Pluggable, create
from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError
from hsee_ray.rng import torch_seed


class ExitPart(Pluggable):
    """Makes the exit head of a cut."""

    @abstractmethod
    def build(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> nn.Module:
        """A module from features (B, *feature_shape) in float32 to logits (B, K), which leaves its input as it is.

        `hidden` is `exits.hidden`. Parameters are drawn from torch's global generator, which is seeded for the cut.
        """


class Pool(ExitPart):
    """Global average pool, then one linear layer or two."""

    def build(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> nn.Module:
        return ExitHead(feature_shape, n_classes, hidden)


class ExitHead(nn.Module):
    """Light classifier on the features at a cut: global average pool, then one linear layer or two."""

    def __init__(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> None:
        super().__init__()
        # Features of one sample: (C, H, W) is pooled over H and W; any other shape is taken as it is.
        self.pooled = len(feature_shape) == 3
        width = feature_shape[0] if self.pooled else math.prod(feature_shape)
        self.hidden = None if hidden is None else nn.Linear(width, hidden)
        self.fc = nn.Linear(hidden or width, n_classes)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of features (B, C, H, W)."""
        v = h.mean(dim=(2, 3)) if self.pooled else h.flatten(1)
        if self.hidden is not None:
            v = torch.relu(self.hidden(v))
        logits_BK: torch.Tensor = self.fc(v)
        return logits_BK


def build_exit(config: Config, cut_name: str, feature_shape: Sequence[int], n_classes: int) -> nn.Module:
    """f^o: the exit head of a cut; heads at the same cut start equal. Raises ConfigError when it cannot be had."""
    base: Any = ExitPart  # mypy takes no abstract class for a type[ExitPart]
    part: ExitPart = create("exit", "exits.head", config.exits.head, base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.seed, "exit", cut_name))
        return part.build(feature_shape, n_classes, config.exits.hidden)


def check_exits(config: Config, fleet: Fleet, feature_shapes: Sequence[tuple[int, ...]], n_classes: int) -> None:
    """Tries the head of every cut on two samples. Raises ConfigError unless it gives logits and keeps its input."""
    for cut_name, cut in {spec.cut_name: spec.cut for spec in fleet.clients if spec.has_server}.items():
        shape = feature_shapes[cut - 1]
        head = build_exit(config, cut_name, shape, n_classes).eval()
        h = torch.linspace(-1, 1, 2 * math.prod(shape)).reshape(2, *shape)
        before, where = h.clone(), f"exits.head is {config.exits.head.name!r}: on features {shape} at {cut_name} it"
        try:
            with torch.no_grad():
                logits_BK = head(h)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ConfigError(f"{where} fails: {str(error).splitlines()[0]}") from error
        if not isinstance(logits_BK, torch.Tensor) or logits_BK.shape != (2, n_classes):
            found = tuple(logits_BK.shape) if isinstance(logits_BK, torch.Tensor) else type(logits_BK).__name__
            raise ConfigError(f"{where} gives {found} for 2 samples; it must give logits (2, {n_classes})")
        if logits_BK.dtype != torch.float32 or not torch.isfinite(logits_BK).all():
            raise ConfigError(f"{where} gives {logits_BK.dtype} logits, or infinite ones; give finite float32")
        if not torch.equal(h, before):
            raise ConfigError(f"{where} changes its input in place; begin it with an operation that does not")
