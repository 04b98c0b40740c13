"""Exit heads: light classifiers on the features at a cut.

A head of your own is a subclass of ExitPart: `exits.head: package.module:Name` (docs/extend.md).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from hsee_ray.backbones.norms import norm_layer
from hsee_ray.config.fleet import ClientSpec, Fleet
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


class Mlp(ExitPart):
    """Global average pool, then two linear layers with a ReLU between: `exits.hidden` features, or `factor` times C."""

    class Options(ExitPart.Options):
        factor: int = Field(2, ge=1)

    def build(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> nn.Module:
        return ExitHead(feature_shape, n_classes, hidden or self.options.factor * _channels(feature_shape))


class Conv(ExitPart):
    """A 3x3 convolution with stride 2 to `factor` times C channels, norm and ReLU, and behind them as Pool.

    A branch that begins with a convolution of its own is BranchyNet's (Teerapittayanon et al. 2016, arXiv:1709.01686).
    """

    class Options(ExitPart.Options):
        factor: int = Field(2, ge=1)
        norm: Literal["batch", "group"] = "batch"

    def build(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> nn.Module:
        if len(feature_shape) != 3:
            raise ConfigError(
                f"exits.head is 'conv': features of shape {tuple(feature_shape)} are no maps of "
                "(channels, height, width); use pool or mlp"
            )
        channels, wider = feature_shape[0], self.options.factor * feature_shape[0]
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(channels, wider, kernel_size=3, stride=2, padding=1, bias=False),
                norm=norm_layer(self.options.norm)(wider),
                relu=nn.ReLU(inplace=True),
                pool=ExitHead((wider, 1, 1), n_classes, hidden),
            )
        )


class ExitHead(nn.Module):
    """Light classifier on the features at a cut: global average pool, then one linear layer or two."""

    def __init__(self, feature_shape: Sequence[int], n_classes: int, hidden: int | None) -> None:
        super().__init__()
        self.pooled, width = len(feature_shape) == 3, _channels(feature_shape)
        self.hidden = None if hidden is None else nn.Linear(width, hidden)
        self.fc = nn.Linear(hidden or width, n_classes)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of features (B, C, H, W)."""
        v = h.mean(dim=(2, 3)) if self.pooled else h.flatten(1)
        if self.hidden is not None:
            v = torch.relu(self.hidden(v))
        logits_BK: torch.Tensor = self.fc(v)
        return logits_BK


def _channels(feature_shape: Sequence[int]) -> int:
    """Features of one sample that reach a linear layer: (C, H, W) is pooled to C, any other shape is taken flat."""
    return feature_shape[0] if len(feature_shape) == 3 else math.prod(feature_shape)


def build_exit(config: Config, cut_name: str, feature_shape: Sequence[int], n_classes: int) -> nn.Module:
    """f^o: the exit head of a cut; heads at the same cut start equal. Raises ConfigError when it cannot be had."""
    base: Any = ExitPart  # mypy takes no abstract class for a type[ExitPart]
    part: ExitPart = create("exit", "exits.head", config.exits.head, base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.seed, "exit", cut_name))
        return part.build(feature_shape, n_classes, config.exits.hidden)


def build_exits(
    config: Config,
    spec: ClientSpec,
    unit_names: Sequence[str],
    feature_shapes: Sequence[tuple[int, ...]],
    n_classes: int,
) -> dict[int, nn.Module]:
    """All exit heads of a client by their cut; `feature_shapes` are those behind each unit."""
    cuts = (*spec.inner_exits, *([spec.cut] if spec.has_exit else []))
    return {cut: build_exit(config, unit_names[cut - 1], feature_shapes[cut - 1], n_classes) for cut in cuts}


def check_exits(config: Config, fleet: Fleet, feature_shapes: Sequence[tuple[int, ...]], n_classes: int) -> None:
    """Tries the head of every cut on two samples. Raises ConfigError unless it gives logits and keeps its input."""
    for cut_name, cut in {spec.cut_name: spec.cut for spec in fleet.clients if spec.has_exit}.items():
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
