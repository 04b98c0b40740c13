"""Soft labels: a server's answers to a client's training samples, from which the exit learns a round later."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hsee_ray.config.schema import SoftLabelFeedback
from hsee_ray.method.steps import ExitLoss

Array = np.ndarray[Any, Any]


class SoftLabels(nn.Module):
    """What a client has been told of its N training samples, in K classes. Its buffers are part of the client's state.

    Group knowledge transfer (FedGKT, He et al. 2020, arXiv:2007.14513), from the server to the client.
    """

    round_number: torch.Tensor
    received_NK: torch.Tensor
    in_use_NK: torch.Tensor

    def __init__(self, feedback: SoftLabelFeedback, samples: int, n_classes: int) -> None:
        super().__init__()
        self.weight, self.temperature = feedback.weight, feedback.temperature
        self.register_buffer("round_number", torch.zeros((), dtype=torch.int64))
        # Probabilities; all zero where nothing has been received yet.
        self.register_buffer("received_NK", torch.zeros(samples, n_classes))
        self.register_buffer("in_use_NK", torch.zeros(samples, n_classes))

    def begin_round(self, round_number: int) -> None:
        """From now on what was received before this round is in use. Called before each message of the round."""
        if self.round_number != round_number:
            self.round_number.fill_(round_number)
            self.in_use_NK.copy_(self.received_NK)

    def receive(self, rows_B: Array, logits_BK: torch.Tensor) -> None:
        """Keeps the server's logits of the samples `rows_B`, for the next round."""
        self.received_NK[torch.from_numpy(rows_B)] = (logits_BK / self.temperature).softmax(1)

    def loss_of(self, rows_B: Array) -> ExitLoss:
        """weight T^2 KL(server || exit), both softened by T, of the samples `rows_B`; 0 for those not known yet."""
        soft_BK = self.in_use_NK[torch.from_numpy(rows_B)]
        factor, temperature = self.weight * self.temperature**2, self.temperature

        def loss(logits_BK: torch.Tensor) -> torch.Tensor:
            log_p_BK = (logits_BK / temperature).log_softmax(1)
            return factor * functional.kl_div(log_p_BK, soft_BK, reduction="batchmean")

        return loss
