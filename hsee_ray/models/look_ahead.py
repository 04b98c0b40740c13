"""Units behind the cut through which a client trains its own; they are on the client, and in training only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hsee_ray.config.fleet import AHEAD, EXIT, names_ahead
from hsee_ray.config.schema import Config
from hsee_ray.models.exits import ExitHead
from hsee_ray.models.split import UnitChain
from hsee_ray.rng import torch_seed


def build_look_ahead(
    config: Config, units: Mapping[str, nn.Module], cut: int, feature_shapes: Sequence[tuple[int, ...]], n_classes: int
) -> UnitChain | None:
    """Copies of the units behind a cut, and a linear classifier: features -> logits (B, K). None without such units.

    `units` are the whole network's, which this takes for itself; `feature_shapes` those behind each of them.
    Classifiers behind some layers of their own are local learning (Belilovsky et al. 2020, arXiv:1901.08164); that the
    layers are copies of the next ones is from MAN (Su et al. 2024, arXiv:2407.05623).
    """
    names = tuple(units)
    ahead = names_ahead(config.training, names, cut)
    if not ahead:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.seed, "ahead", names[cut - 1]))
        classifier = ExitHead(feature_shapes[cut + len(ahead) - 1], n_classes, hidden=None)
    return UnitChain({**{f"{AHEAD}.{name}": units[name] for name in ahead}, f"{AHEAD}.{EXIT}": classifier})
