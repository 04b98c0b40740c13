"""Strided 1x1 convolutions on the CPU, which torch trains with a kernel that writes beyond its memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SAFE_PIXELS = 24 * 24
"""Of the output. With 8 to 15 channels, blocks followed by a guard page were overrun from 28x28 on."""


class SparedConv2d(nn.Conv2d):
    """Takes every n-th pixel first and computes without a stride: the same values, by another kernel."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        rows, columns = self.stride
        picked = x_BCHW[..., ::rows, ::columns]
        if self.in_channels >= 8 and picked.shape[-2] * picked.shape[-1] <= SAFE_PIXELS:
            return super().forward(x_BCHW)
        return functional.conv2d(picked, self.weight, self.bias, groups=self.groups)


def spare_strided_convolutions(network: nn.Module) -> None:
    """Makes a SparedConv2d of every strided 1x1 convolution with fewer than 16 channels.

    oneDNN's gradient of their weights (`jit_1x1:avx512_core`, seen with torch 2.9.0 and 2.14.1 on an AMD EPYC) writes
    beyond its memory for channels-last images of some size, and the process ends, or computes something else.
    """
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and max(module.kernel_size) == 1 < max(module.stride)
            and module.padding in ((0, 0), "valid")
            and module.in_channels < 16
        ):
            module.__class__ = SparedConv2d
