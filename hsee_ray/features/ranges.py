"""The range of each channel of a client's features."""

from __future__ import annotations

import torch
from torch import nn

from hsee_ray.edge.codecs import ChannelRange


class RangeObserver(nn.Module):
    """The range of each channel of a client's features, as int8 needs it for samples that come one by one.

    Exponential moving averages of the lowest and highest values of each training batch (Jacob et al. 2018,
    arXiv:1712.05877, section 3.1); the first batch sets them.
    """

    MOMENTUM = 0.1
    """Weight of the newest batch."""

    low_C: torch.Tensor
    high_C: torch.Tensor
    batches: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("low_C", torch.zeros(channels))
        self.register_buffer("high_C", torch.zeros(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def observe(self, batch: ChannelRange) -> None:
        """Takes the range of one batch in."""
        weight = self.MOMENTUM if self.batches > 0 else 1.0
        for kept_C, new_C in ((self.low_C, batch.low_C), (self.high_C, batch.high_C)):
            kept_C.mul_(1 - weight).add_(torch.from_numpy(new_C) * weight)
        self.batches += 1

    @property
    def bounds(self) -> ChannelRange | None:
        """The averages; None before the first batch."""
        if self.batches == 0:
            return None
        return ChannelRange(self.low_C.numpy().copy(), self.high_C.numpy().copy())
