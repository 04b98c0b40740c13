"""From uint8 images to the float32 tensor that enters a step.

Shapes: B samples of a batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


def normalise(
    images_BHWC: npt.NDArray[np.uint8],
    mean_C: Sequence[float],
    std_C: Sequence[float],
    memory_format: torch.memory_format,
) -> torch.Tensor:
    """(x / 255 - mean) / std as float32 (B, C, H, W) in `memory_format`, in memory of its own.

    One multiplication and one addition for each value, so its bits depend neither on the memory format nor on
    threads. torch aligns what it allocates to 64 bytes, which numpy does not.
    """
    samples, height, width, channels = images_BHWC.shape
    scale_C = (1 / (255 * np.asarray(std_C))).astype(np.float32)
    shift_C = (-np.asarray(mean_C) / np.asarray(std_C)).astype(np.float32)
    result = torch.empty((samples, channels, height, width), memory_format=memory_format)
    if memory_format == torch.channels_last:
        # Whole rows at once: a loop over three channels would be slower than the arithmetic.
        values = result.permute(0, 2, 3, 1).numpy().reshape(samples, height, width * channels)
        values[:] = images_BHWC.reshape(samples, height, width * channels)
        scale, shift = np.tile(scale_C, width), np.tile(shift_C, width)
    else:
        values = result.numpy()
        values[:] = images_BHWC.transpose(0, 3, 1, 2)
        scale, shift = scale_C[:, None, None], shift_C[:, None, None]
    values *= scale
    values += shift
    return result
