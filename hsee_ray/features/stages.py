"""Stages of the way that features take across the cut, and the codecs fp16 and int8, which are the last of it.

A stage of your own is a subclass of Stage: `tiers.N.stages: [{name: package.module:Name, options: {...}}]`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hsee_ray.config.plugins import Pluggable
from hsee_ray.edge.codecs import ChannelRange, FeatureCodec, channel_axis, channel_range
from hsee_ray.edge.named import NamedPart
from hsee_ray.errors import UserError
from hsee_ray.features.message import Decoder

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Coded:
    """Codes in the place of float32 features, contiguous, and what the server undoes them with."""

    codes: Array
    decoder: Decoder


class Stage(Pluggable, nn.Module):
    """Transforms a client's features on their way to the server: numpy arrays in and out.

    Features are (B, ...) with the channels in `axis`, float32 unless an earlier stage has coded them, and are not to be
    written to. Out come features of that type and shape, or Coded. Buffers are the stage's state: they belong to the
    client's model, and are saved and restored with it, but never averaged.
    """

    def __init__(self, options: Any, feature_shape: Sequence[int]) -> None:
        """`feature_shape` is that of one sample: (C, H, W), (T, C) or any other."""
        nn.Module.__init__(self)
        super().__init__(options)

    @abstractmethod
    def for_training(self, features: Array, axis: int, rng: np.random.Generator) -> Array | Coded:
        """A training batch; `rng` is keyed by client, round, step and stage: a repeated batch draws the same."""

    def for_inference(self, features: Array, axis: int) -> Array | Coded:
        """Samples of evaluation and use, as they are unless overridden; no sample depends on those beside it.

        Draws no random numbers, or from a generator that a sample's own values seed.
        """
        return features

    @property
    def ready(self) -> bool:
        """False while `for_inference` needs a training batch first; it is then shown one, and nothing of it is kept."""
        return True

    def on_device(self) -> NamedPart | None:
        """Device counterpart of `for_inference`, for the bundle; None where there is nothing to do.

        Raises UserError when a device cannot apply the stage: that is so unless this is overridden with it.
        """
        if type(self).for_inference is Stage.for_inference:
            return None
        raise UserError(
            f"the stage {type(self).__name__} cannot be applied on a device: name its counterpart (Stage.on_device), "
            "or leave it out of tiers.*.stages"
        )

    def feature_bytes(self, feature_shape: Sequence[int], samples: int) -> int | None:
        """Bytes of a coded batch, for windows and simulated time; None unless they are other than the codec's."""
        return None


class Half(Stage):
    """The codec fp16."""

    codec = FeatureCodec("fp16")

    def for_training(self, features: Array, axis: int, rng: np.random.Generator) -> Coded:
        return self.for_inference(features, axis)

    def for_inference(self, features: Array, axis: int) -> Coded:
        return _coded(self.codec, features, axis)


class Int8(Stage):
    """The codec int8: a training batch is coded in its own range, samples that come one by one in an average of those.

    Exponential moving averages of the lowest and highest values of each training batch (Jacob et al. 2018,
    arXiv:1712.05877, section 3.1); the first batch sets them.
    """

    MOMENTUM = 0.1
    """Weight of the newest batch."""

    low_C: torch.Tensor
    high_C: torch.Tensor
    batches: torch.Tensor

    def __init__(self, options: Any, feature_shape: Sequence[int]) -> None:
        super().__init__(options, feature_shape)
        channels = feature_shape[channel_axis(len(feature_shape) + 1) - 1]
        self.register_buffer("low_C", torch.zeros(channels))
        self.register_buffer("high_C", torch.zeros(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def for_training(self, features: Array, axis: int, rng: np.random.Generator) -> Coded:
        batch = channel_range(features, axis)
        self.observe(batch)
        return _coded(FeatureCodec("int8", batch), features, axis)

    def for_inference(self, features: Array, axis: int) -> Coded:
        return _coded(self.codec, features, axis)

    def observe(self, batch: ChannelRange) -> None:
        """Takes the range of one batch in."""
        weight = self.MOMENTUM if self.ready else 1.0
        for kept_C, new_C in ((self.low_C, batch.low_C), (self.high_C, batch.high_C)):
            kept_C.mul_(1 - weight).add_(torch.from_numpy(new_C) * weight)
        self.batches += 1

    @property
    def ready(self) -> bool:
        """Whether a batch has been seen."""
        return bool(self.batches > 0)

    @property
    def codec(self) -> FeatureCodec:
        """With the averages."""
        return FeatureCodec("int8", ChannelRange(self.low_C.numpy().copy(), self.high_C.numpy().copy()))


def _coded(codec: FeatureCodec, features: Array, axis: int) -> Coded:
    return Coded(codec.encode(features, axis), codec)
