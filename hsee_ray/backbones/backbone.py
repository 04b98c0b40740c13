"""A base network: an ordered list of named units."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Backbone:
    """A base network u_1..u_L: each unit takes the output of the one before; a cut lies between two."""

    units: dict[str, nn.Module]
    """In the order in which a batch passes them; the last one returns logits, (B, n_classes)."""
    published_prefix: dict[str, str] | None
    """By unit: what stands before the names of its tensors in torchvision's state dict, such as `layer1.0.`
    or nothing. None where torchvision has no network with these tensors."""


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names, each once: what a state holds, a model file and a graph.

    With buffers that are not persistent, which no state dict has, and without second names of what is used twice.
    """
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
