"""A base network cut in two: the client's units below the cut, the server's units above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


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

    def taps(self, h: torch.Tensor, cuts: Sequence[int]) -> list[torch.Tensor]:
        """h behind so many units, for each of the cuts, and behind all of them."""
        found: list[torch.Tensor] = []
        for cut, unit in enumerate(self.chain, start=1):
            h = unit(h)
            if cut in cuts:
                found.append(h)
        return [*found, h]


def client_units(units: Mapping[str, nn.Module], cut: int) -> dict[str, nn.Module]:
    """f^c: u_1..u_cut."""
    return dict(list(units.items())[:cut])


def server_units(units: Mapping[str, nn.Module], cut: int) -> dict[str, nn.Module]:
    """f^s: u_{cut+1}..u_L."""
    return dict(list(units.items())[cut:])
