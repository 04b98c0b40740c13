"""Batches: their bounds, and the tensor that enters a step."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hsee_ray.data.batches import normalise
from hsee_ray.method.schedule import batch_bounds
from tests.tiny_data import make_images

FORMATS = [torch.channels_last, torch.contiguous_format]


@pytest.mark.parametrize(
    ("n_samples", "batch_size", "bounds"),
    [
        (6, 3, [(0, 3), (3, 6)]),
        (5, 3, [(0, 3), (3, 5)]),
        (7, 3, [(0, 3), (3, 7)]),
        (2, 3, [(0, 2)]),
        (1, 3, [(0, 1)]),
        (4, 3, [(0, 4)]),
        (0, 3, []),
    ],
)
def test_a_last_batch_of_one_joins_the_one_before(
    n_samples: int, batch_size: int, bounds: list[tuple[int, int]]
) -> None:
    assert batch_bounds(n_samples, batch_size) == bounds


@pytest.mark.parametrize("memory_format", FORMATS)
def test_normalised_values_by_hand(memory_format: torch.memory_format) -> None:
    """(0 - 0.5) / 0.25 = -2 and (1 - 0.5) / 0.25 = 2; (0.2 - 0.2) / 0.1 = 0 and (1 - 0.2) / 0.1 = 8."""
    images = np.array([[[[0, 51], [255, 255]]]], np.uint8)
    x_BCHW = normalise(images, (0.5, 0.2), (0.25, 0.1), memory_format)
    assert x_BCHW.dtype == torch.float32
    assert x_BCHW.shape == (1, 2, 1, 2)
    torch.testing.assert_close(x_BCHW, torch.tensor([[[[-2.0, 2.0]], [[0.0, 8.0]]]]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_memory_of_the_tensor(memory_format: torch.memory_format, channels: int) -> None:
    images = make_images(3, 8, 6, channels)
    x_BCHW = normalise(images, (0.5,) * channels, (0.2,) * channels, memory_format)
    like = torch.empty((3, channels, 8, 6), memory_format=memory_format)
    assert x_BCHW.stride() == like.stride()
    assert x_BCHW.data_ptr() % 64 == 0
    assert not np.shares_memory(x_BCHW.numpy(), images)


def test_both_formats_give_the_same_bits() -> None:
    images = make_images(5, 8, 8)
    mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    rows, planes = (normalise(images, mean, std, memory_format) for memory_format in FORMATS)
    assert torch.equal(rows, planes)
    alone = normalise(images[3:4], mean, std, torch.channels_last)
    assert torch.equal(alone[0], rows[3]), "an image's bits do not depend on its batch"


def test_mapped_images_are_read_without_a_warning() -> None:
    images = make_images(2)
    images.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalise(images, (0.5,) * 3, (0.2,) * 3, torch.channels_last)
