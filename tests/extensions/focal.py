"""Focal loss (Lin et al. 2017, arXiv:1708.02002): what is answered well counts less.

training: {objective: {name: "tests.extensions.focal:Focal", options: {gamma: 2.0}}}
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

from hsee_ray.method.objective import Objective


class Focal(Objective):
    """(1 - p)^gamma times the cross-entropy of each sample, p the probability of its label."""

    class Options(Objective.Options):
        gamma: float = Field(2.0, ge=0)

    def forward(self, logits_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        loss_B = cross_entropy(logits_BK, y_B, reduction="none")
        return ((1 - torch.exp(-loss_B)) ** self.options.gamma * loss_B).mean()
