"""How features travel: as they are, in half precision, or in a byte each. Needs numpy only: a device has no torch.

Legend: B samples, C channels, x a value, q its code, x' what is decoded of it. Features are (B, C, H, W), channels-last
(B, H, W, C), tokens (B, T, C), or (B, C); `channel_axis` tells which axis has the channels. All arithmetic is by
element and in float32, in single operations that IEEE 754 rounds in one way only: a code depends on its value and its
channel's range, on nothing else in the batch, and not on the order in memory.

    none   x' = x
    fp16   q = float16(clip(x, -65504, 65504));  |x - x'| <= max(2**-11 |x|, 2**-25) for |x| <= 65504
    int8   scale_C = (high_C - low_C) / 255, rounded once from float64
           q = clip(rint((x - low_C) / scale_C), 0, 255), a uint8;  x' = low_C + q scale_C
           |x - x'| <= scale_C / 2 + 2**-21 max(|low_C|, |high_C|) for low_C <= x <= high_C

The second term of int8 is float32's own rounding. The scheme is that of Jacob et al. 2018, arXiv:1712.05877, with a
range for each channel, at most 2**127 wide. A channel whose range is 0, or so small that its scale would be no normal
number, is coded as its low. Values out of the range, infinite ones too, take the nearest end. fp16 keeps NaN; int8 has
no code for it and makes it the low.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Array = np.ndarray[Any, Any]
Codec = Literal["none", "fp16", "int8"]

CODE_TYPES: dict[Codec, np.dtype[Any]] = {
    "none": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.uint8),
}
LARGEST_HALF = 65504.0
_LARGEST_CODE = 255
_SMALLEST_SCALE = float(np.finfo(np.float32).smallest_normal)
ALIGNMENT_BYTES = 64
"""Of decoded features: torch's linear layers give other bits for data that is aligned to less than 16."""
_BLOCK = 1 << 16
"""Elements that are worked on together: what lies between the steps stays in a core's cache."""


@dataclass(frozen=True, eq=False)
class ChannelRange:
    """Lowest and highest value of each channel that int8 can tell; both ends of a link derive the same scale of it."""

    low_C: Array
    high_C: Array
    """float32, as `low_C`."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelRange):
            return NotImplemented
        return np.array_equal(self.low_C, other.low_C) and np.array_equal(self.high_C, other.high_C)

    @property
    def scale_C(self) -> Array:
        """Distance of two neighbouring codes in float32; 0 for a channel that is coded as its low."""
        scale_C = ((self.high_C.astype(np.float64) - self.low_C) / _LARGEST_CODE).astype(np.float32)
        return np.where(scale_C < _SMALLEST_SCALE, np.float32(0), scale_C)

    @property
    def nbytes(self) -> int:
        return self.low_C.nbytes + self.high_C.nbytes


@dataclass(frozen=True)
class FeatureCodec:
    """How features travel: what both ends of a link agree on."""

    name: Codec = "none"
    bounds: ChannelRange | None = None
    """Of int8 only."""

    def checked(self) -> FeatureCodec:
        """The codec itself, which comes from outside. Raises ValueError for what no codec can be."""
        if self.name not in get_args(Codec):
            raise ValueError(f"there is no codec {self.name!r}")
        if (self.name == "int8") != (self.bounds is not None):
            raise ValueError("int8 has a range, and nothing else has one")
        if self.bounds is not None:
            low_C, high_C = self.bounds.low_C, self.bounds.high_C
            if low_C.shape != high_C.shape or low_C.ndim != 1 or not (low_C <= high_C).all():
                raise ValueError("a channel's range has no two ends")
            if not np.isfinite([low_C, high_C]).all():
                raise ValueError("a channel's range is infinite")
        return self

    @property
    def dtype(self) -> np.dtype[Any]:
        return CODE_TYPES[self.name]

    @property
    def nbytes(self) -> int:
        """Bytes of what codes are decoded with."""
        return 0 if self.bounds is None else self.bounds.nbytes

    def encode(self, features: Array, axis: int | None = None) -> Array:
        """Codes of float32 features in their shape; without `axis` their layout is not channels-last."""
        return encode(self.name, features, self.bounds, channel_axis(features.ndim) if axis is None else axis)

    def decode(self, codes: Array, axis: int | None = None) -> Array:
        """float32 features of codes."""
        return decode(self.name, codes, self.bounds, channel_axis(codes.ndim) if axis is None else axis)


UNCODED = FeatureCodec()


def channel_axis(dimensions: int, channels_last: bool = False) -> int:
    """Axis of the channels in a batch of so many dimensions: 1 for images (B, C, H, W), else the last."""
    return dimensions - 1 if channels_last or dimensions <= 3 else 1


def channel_range(features: Array, axis: int) -> ChannelRange:
    """The exact ends of every channel in a batch."""
    ends = []
    for reduce in (np.minimum.reduce, np.maximum.reduce):
        # Over the batch first: rows as long as a sample are quick, the few values of a pixel are not.
        of_sample = reduce(features, axis=0)
        others = tuple(other for other in range(of_sample.ndim) if other != axis % features.ndim - 1)
        # Which of -0 and 0 is the smaller depends on the order; the sum is always 0.
        ends.append(np.asarray(reduce(of_sample, axis=others) + np.float32(0)))
    return ChannelRange(*ends)


def encode(codec: Codec, features: Array, bounds: ChannelRange | None, axis: int) -> Array:
    """Codes of float32 features, contiguous and in their shape; `bounds` are int8's."""
    if codec == "none":
        return np.ascontiguousarray(features)
    codes = np.empty(features.shape, CODE_TYPES[codec])
    if codec == "fp16":
        for values, out, scratch in _blocks(features, codes):
            np.clip(values, -LARGEST_HALF, LARGEST_HALF, out=scratch)
            out[...] = scratch
        return codes
    assert bounds is not None
    scale_C = bounds.scale_C
    # Where there is only the low, every code decodes to it: dividing by a lot takes them to 0 without a warning.
    divisor_C = np.where(scale_C == 0, np.finfo(np.float32).max, scale_C)
    low, divisor = _of_sample(bounds.low_C, features, axis), _of_sample(divisor_C, features, axis)
    for values, out, scratch in _blocks(features, codes):
        np.subtract(values, low, out=scratch)
        np.divide(scratch, divisor, out=scratch)
        np.rint(scratch, out=scratch)
        np.clip(scratch, 0, _LARGEST_CODE, out=scratch)
        if np.isnan(scratch.max()):
            scratch[np.isnan(scratch)] = 0
        np.copyto(out, scratch, casting="unsafe")
    return codes


def decode(codec: Codec, codes: Array, bounds: ChannelRange | None, axis: int) -> Array:
    """float32 features of codes, aligned to 64 bytes where they are not the codes themselves."""
    if codec == "none":
        return codes
    features = _aligned(codes.shape)
    if codec == "fp16":
        features[...] = codes
        return features
    assert bounds is not None
    low, scale = _of_sample(bounds.low_C, codes, axis), _of_sample(bounds.scale_C, codes, axis)
    for coded, values, _ in _blocks(codes, features):
        np.multiply(coded, scale, out=values)
        np.add(values, low, out=values)
    return features


def feature_bytes(codec: Codec, sample_shape: Sequence[int], samples: int) -> int:
    """Bytes of a batch in training: a code for each value, and with int8 the range of each channel (no labels)."""
    channels = sample_shape[channel_axis(len(sample_shape) + 1) - 1]
    constants = 2 * 4 * channels if codec == "int8" else 0
    return samples * math.prod(sample_shape) * CODE_TYPES[codec].itemsize + constants


def _aligned(shape: tuple[int, ...]) -> Array:
    """A new float32 array at an address that `ALIGNMENT_BYTES` divides, as numpy's own are not."""
    memory = np.empty(4 * math.prod(shape) + ALIGNMENT_BYTES, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[first : first + 4 * math.prod(shape)].view(np.float32).reshape(shape)


def _of_sample(values_C: Array, features: Array, axis: int) -> Array:
    """One row as long as a sample, with each channel's value where the channel is."""
    shape = [1] * features.ndim
    shape[axis] = -1
    return np.broadcast_to(values_C.reshape(shape), (1, *features.shape[1:])).reshape(-1)


def _blocks(source: Array, target: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Some samples at a time, flat: of the source, of the target, and float32 scratch memory of their size."""
    rows = len(source), math.prod(source.shape[1:])
    source_BS, target_BS = source.reshape(rows), target.reshape(rows)
    together = max(1, _BLOCK // rows[1])
    scratch = np.empty((min(together, rows[0]), rows[1]), np.float32)
    for first in range(0, rows[0], together):
        block = source_BS[first : first + together]
        yield block, target_BS[first : first + together], scratch[: len(block)]
