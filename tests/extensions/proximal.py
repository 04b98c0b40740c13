"""FedProx (Li et al. 2020, arXiv:1812.06127): a client's parameters are drawn back to where its round began.

training: {objective: {name: "tests.extensions.proximal:Proximal", options: {mu: 0.01}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

from hsee_ray.method.legs import Side
from hsee_ray.method.objective import Objective


class Proximal(Objective):
    """Cross-entropy; on a client also mu / 2 times the squared distance from the start of the round."""

    class Options(Objective.Options):
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
        loss = cross_entropy(logits_BK, y_B)
        for name, anchor in self.anchors.items():
            loss = loss + self.options.mu / 2 * (self.of_model[name] - getattr(self, anchor)).square().sum()
        return loss
