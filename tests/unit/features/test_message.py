"""What crosses the cut arrives as it was sent, aligned, and without a copy where none is needed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from hsee_ray.edge.codecs import ALIGNMENT_BYTES, ChannelRange, Codec
from hsee_ray.features.message import FeatureBatch, aligned_tensor, decode, encode
from tests.coded import coded, range_of

CPU = torch.device("cpu")
LABELS = torch.tensor([3, 1])


def features(shape: tuple[int, ...], memory_format: torch.memory_format) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape).to(memory_format=memory_format)


def at_offset(array: np.ndarray, offset: int) -> np.ndarray:
    """A copy of the array whose memory begins `offset` bytes after a multiple of 64."""
    memory = np.zeros(array.nbytes + 2 * ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES + offset
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize(
    ("shape", "memory_format", "channels_last", "sent_shape"),
    [
        ((2, 3, 4, 5), torch.channels_last, True, (2, 4, 5, 3)),
        ((2, 3, 4, 5), torch.contiguous_format, False, (2, 3, 4, 5)),
        ((2, 6), torch.contiguous_format, False, (2, 6)),
        ((2, 3, 4), torch.contiguous_format, False, (2, 3, 4)),
    ],
)
def test_features_arrive_as_they_were_sent(
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
    channels_last: bool,
    sent_shape: tuple[int, ...],
) -> None:
    h = features(shape, memory_format)
    batch = encode(h, LABELS)
    assert batch.channels_last is channels_last
    assert batch.features.shape == sent_shape
    assert batch.features.flags.c_contiguous
    received, labels_B = decode(batch, CPU)
    assert torch.equal(received, h)
    assert received.stride() == h.stride()
    assert received.dtype == torch.float32
    assert torch.equal(labels_B, LABELS)
    assert labels_B.dtype == torch.int64


def test_features_in_no_memory_format_are_laid_out() -> None:
    h = torch.arange(24.0).reshape(4, 6).T
    received, _ = decode(encode(h, LABELS), CPU)
    assert torch.equal(received, h)
    assert received.is_contiguous()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_nothing_is_copied_on_the_way(memory_format: torch.memory_format) -> None:
    h = features((2, 3, 4, 5), memory_format)
    received, labels_B = decode(encode(h, LABELS), CPU)
    assert received.data_ptr() == h.data_ptr()
    assert labels_B.data_ptr() == LABELS.data_ptr()


def test_aligned_memory_is_used_as_it_is() -> None:
    array = at_offset(np.float32([1, 2, 3]), 0)
    assert aligned_tensor(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize("offset", [4, 8, 16, 32])
def test_other_memory_is_copied_to_where_it_is_aligned(offset: int) -> None:
    array = at_offset(np.float32([[1, 2, 3]]), offset)
    tensor = aligned_tensor(array)
    assert tensor.data_ptr() % ALIGNMENT_BYTES == 0
    assert tensor.tolist() == [[1.0, 2.0, 3.0]]


def test_a_message_at_a_bad_address_is_aligned_when_it_is_decoded() -> None:
    sent = encode(features((2, 3, 4, 5), torch.channels_last), LABELS)
    moved = FeatureBatch(at_offset(sent.features, 8), True, at_offset(sent.labels_B, 8))
    h, labels_B = decode(moved, CPU)
    assert h.data_ptr() % ALIGNMENT_BYTES == 0
    assert labels_B.data_ptr() % ALIGNMENT_BYTES == 0
    assert torch.equal(h, features((2, 3, 4, 5), torch.channels_last))
    assert h.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("codec", "width"), [("fp16", 2), ("int8", 1)])
def test_coded_features_arrive_rounded_and_aligned(
    codec: Codec, width: int, memory_format: torch.memory_format
) -> None:
    h = torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    batch = coded(encode(h, LABELS), codec)
    assert batch.feature_bytes == width * h.numel()
    # The range of each of the 3 channels, and 2 labels.
    assert batch.sent_bytes == batch.feature_bytes + (3 * 8 if codec == "int8" else 0) + 2 * 8
    received, labels_B = decode(batch, CPU)
    assert received.stride() == h.stride()
    assert received.dtype == torch.float32
    assert received.data_ptr() % ALIGNMENT_BYTES == 0
    contiguous, _ = decode(coded(encode(h.contiguous(), LABELS), codec), CPU)
    assert torch.equal(received, contiguous)
    assert 0 < (received - h).abs().max() < 0.02
    assert torch.equal(labels_B, LABELS)


@pytest.mark.parametrize(("shape", "channels"), [((2, 6), 6), ((2, 3, 4), 4), ((2, 3, 4, 5), 3), ((2, 3, 1, 4, 5), 3)])
def test_tokens_have_their_channels_last_and_images_first(shape: tuple[int, ...], channels: int) -> None:
    h = features(shape, torch.contiguous_format)
    batch = coded(encode(h, LABELS), "int8")
    bounds = range_of(batch)
    assert bounds is not None and bounds.low_C.shape == (channels,)
    others = [axis for axis in range(len(shape)) if axis != batch.axis]
    assert bounds.high_C.tolist() == h.amax(dim=others).tolist()
    received, _ = decode(batch, CPU)
    assert (received - h).abs().max() <= 0.51 * bounds.scale_C.max()


def test_what_is_decoded_depends_on_no_other_sample_where_the_range_is_given() -> None:
    h = features((2, 3, 4, 5), torch.channels_last)
    bounds = ChannelRange(np.float32([0, 0, 0]), np.float32([100, 200, 300]))
    together = coded(encode(h, LABELS), "int8", bounds)
    alone = coded(encode(h, LABELS).rows(np.array([1])), "int8", bounds)
    assert torch.equal(decode(together, CPU)[0][1:], decode(alone, CPU)[0])


def test_bytes_by_hand() -> None:
    batch = encode(features((2, 3, 4, 5), torch.channels_last), LABELS)
    assert batch.feature_bytes == 4 * 2 * 3 * 4 * 5
    assert batch.sent_bytes == 480 + 2 * 8


def test_read_only_features_are_decoded_without_a_word() -> None:
    # In a process of its own: torch warns once per process, and pytest changes the filters.
    script = """
import numpy as np, torch
from hsee_ray.features.message import FeatureBatch, decode
features, labels = np.ones((2, 3), np.float32), np.zeros(2, np.int64)
features.setflags(write=False)
labels.setflags(write=False)
h, labels_B = decode(FeatureBatch(features, False, labels), torch.device("cpu"))
print(h.sum().item(), labels_B.sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "6.0 0\n"
    assert done.stderr == ""
