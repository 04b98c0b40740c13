"""A base network cut in two: the client's units with an exit head below the cut, the server's units above it.

And what watches the features between them, where they are coded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hsee_ray.config.schema import Config
from hsee_ray.rng import torch_seed


class UnitChain(nn.Module):
    """Consecutive units of a base network; a batch may enter at any of them."""

    def __init__(self, units: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(units)
        self.chain = nn.ModuleList(units.values())

    @property
    def units(self) -> dict[str, nn.Module]:
        return dict(zip(self.names, self.chain, strict=True))

    def forward(self, h: torch.Tensor, entry: int = 0) -> torch.Tensor:
        """Passes h through the units from index `entry` of this chain to its end."""
        for unit in self.chain[entry:]:
            h = unit(h)
        return h


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


def client_units(units: Mapping[str, nn.Module], cut: int) -> dict[str, nn.Module]:
    """f^c: u_1..u_cut."""
    return dict(list(units.items())[:cut])


def server_units(units: Mapping[str, nn.Module], cut: int) -> dict[str, nn.Module]:
    """f^s: u_{cut+1}..u_L."""
    return dict(list(units.items())[cut:])


def build_exit(config: Config, cut_name: str, feature_shape: Sequence[int], n_classes: int) -> ExitHead:
    """f^o: the exit head of a cut; heads at the same cut start equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.seed, "exit", cut_name))
        return ExitHead(feature_shape, n_classes, config.exits.hidden)
