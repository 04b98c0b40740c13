"""The message that crosses the cut, and how a tensor gets in and out of it.

On the CPU a linear layer gives other bits for data aligned to 4 or 8 bytes than to 16 or more, so `decode` aligns
what enters a step to 64 bytes; the one-process reference takes the same path as the actors.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from hsee_ray.edge.codecs import ALIGNMENT_BYTES, channel_axis
from hsee_ray.models.torch_device import to_device

# Features arrive in shared memory that is mapped read-only; no unit writes to its input (checked at load).
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Decoder(Protocol):
    """Decodes features on the server. It travels with the codes, its class by name."""

    @property
    def nbytes(self) -> int:
        """Bytes of what it holds: they are counted as sent in training, and are the server's own later."""

    def decode(self, codes: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
        """Decodes features, with the channels in `axis` of the codes."""


@dataclass(frozen=True)
class FeatureBatch:
    """Features of one batch at the cut, with what the server needs beside them."""

    features: np.ndarray[Any, Any]
    """Contiguous: (B, H, W, C) if `channels_last`, else in the tensor's own order. float32, or codes of `decoders`."""
    channels_last: bool
    labels_B: np.ndarray[Any, Any]
    """int64 class of every sample."""
    confidence_B: np.ndarray[Any, Any] | None = None
    """The exit's confidence in [0, 1]; in evaluation only."""
    prediction_B: np.ndarray[Any, Any] | None = None
    """The exit's answer; in evaluation only."""
    step: int = 0
    """The batch's number in its round, from 0; in training only."""
    counts: Mapping[str, float] | None = None
    """Of the exit's logits, by the metrics of `evaluation.figures`; in evaluation only."""
    decoders: tuple[Decoder, ...] = ()
    """Of the stages that coded the features, in their order; int8's has the range of this batch in training."""

    def rows(self, indices: np.ndarray[Any, Any]) -> FeatureBatch:
        """The features of some of the samples, as a smaller batch in the same memory format; all of them, uncopied."""
        if len(indices) == len(self.features):
            return self
        return dataclasses.replace(self, features=self.features[indices])

    def decoded(self) -> torch.Tensor:
        """float32 features, in the order of the message and aligned."""
        features = self.features
        for decoder in reversed(self.decoders):
            features = decoder.decode(features, self.axis)
        return aligned_tensor(features)

    @property
    def feature_bytes(self) -> int:
        """Bytes of the features alone: what a device sends, whose server has its constants."""
        return int(self.features.nbytes)

    @property
    def sent_bytes(self) -> int:
        """Bytes of features, of what they are decoded with, and of labels: what a training step sends."""
        constants = sum(decoder.nbytes for decoder in self.decoders)
        return self.feature_bytes + constants + int(self.labels_B.nbytes)

    @property
    def axis(self) -> int:
        """Axis of the channels."""
        return channel_axis(self.features.ndim, self.channels_last)


Packet = tuple[FeatureBatch, ...]
"""Consecutive batches of one client that travel together."""


def encode(h: torch.Tensor, y_B: torch.Tensor, step: int = 0) -> FeatureBatch:
    """Message of detached features h, (B, C, H, W) or any other shape, and labels. Copies nothing on the CPU.

    float32 still: a FeaturePath makes it smaller.
    """
    channels_last = h.dim() == 4 and h.is_contiguous(memory_format=torch.channels_last)
    laid_out = h.permute(0, 2, 3, 1) if channels_last else h.contiguous()
    return FeatureBatch(laid_out.cpu().numpy(), channels_last, y_B.cpu().numpy(), step=step)


def decode(batch: FeatureBatch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 features and labels of a message on the device, in the memory format in which they were sent."""
    h = to_device(batch.decoded(), device)
    return h.permute(0, 3, 1, 2) if batch.channels_last else h, to_device(aligned_tensor(batch.labels_B), device)


def aligned_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Tensor over the array's memory, or over an aligned copy where that memory is not aligned to 64 bytes."""
    tensor = torch.from_numpy(array)
    return tensor if array.ctypes.data % ALIGNMENT_BYTES == 0 else tensor.clone()
