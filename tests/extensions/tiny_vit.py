"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) as units: features are tokens, (T, D).

    model: {name: "tests.extensions.tiny_vit:units", options: {patch: 4, width: 32, blocks: 3}}

Legend: B batch, T tokens, D width, N heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Patches(nn.Module):
    """Images (B, C, H, W) -> a token for each patch, with a learnt position: (B, T, D)."""

    def __init__(self, image_shape: tuple[int, int, int], patch: int, width: int) -> None:
        super().__init__()
        height, image_width, channels = image_shape
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(height // patch * (image_width // patch), width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        tokens: Tensor = self.project(x_BCHW).flatten(2).transpose(1, 2)
        return tokens + self.positions


class Block(nn.Module):
    """Self-attention and a layer of two, each behind its norm and beside a short cut: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h_BTD: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(h_BTD)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h_BTD = h_BTD + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        narrowed: Tensor = self.narrow(gelu(self.wide(self.norm2(h_BTD))))
        return h_BTD + narrowed


class Head(nn.Module):
    """Logits (B, K) of the mean token."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def forward(self, h_BTD: Tensor) -> Tensor:
        logits_BK: Tensor = self.fc(self.norm(h_BTD).mean(dim=1))
        return logits_BK


def units(
    image_shape: tuple[int, int, int], n_classes: int, patch: int = 4, width: int = 16, blocks: int = 2, heads: int = 2
) -> dict[str, nn.Module]:
    """`patches`, `block0`, `block1`, ..., `head`, for images of shape (H, W, C)."""
    middle = {f"block{index}": Block(width, heads) for index in range(blocks)}
    return {"patches": Patches(image_shape, patch, width), **middle, "head": Head(width, n_classes)}
