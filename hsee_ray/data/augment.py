"""Training images changed at random: mirrored, shifted, and by torchvision's transforms or the user's own.

Shapes: B samples of a batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view

from hsee_ray.config.plugins import imported
from hsee_ray.config.schema import AugmentConfig
from hsee_ray.errors import ConfigError

Images = npt.NDArray[np.uint8]
Transform = Callable[[torch.Tensor], torch.Tensor]
"""Of one image (C, H, W), uint8; what is random comes from torch's global generator, which is seeded for the batch."""


class Augment:
    """What `data.augment` does to the images of a batch, each image by draws of its own."""

    def __init__(self, config: AugmentConfig, mean_C: Sequence[float]) -> None:
        """`mean_C`: mean colour of the training images, in [0, 1]. Raises ConfigError for a transform that is none."""
        self.config = config
        self.mean_C = np.rint(255 * np.asarray(mean_C)).astype(np.uint8)
        self.transforms = [_transform(config, index) for index in range(len(config.transforms))]

    def __call__(self, images_BHWC: Images, rng: np.random.Generator) -> Images:
        """A changed copy of the batch, which depends on the images and the generator alone."""
        samples, height, _, _ = images_BHWC.shape
        border = int(height * self.config.shift)
        mirrored_B = rng.random(samples) < 0.5
        tops_B, lefts_B = rng.integers(0, 2 * border + 1, (2, samples))
        changed = images_BHWC.copy()
        if self.config.flip:
            changed[mirrored_B] = images_BHWC[mirrored_B, :, ::-1]
        changed = self._shifted(changed, border, tops_B, lefts_B)
        if self.transforms:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(1 << 63)))
                for image_HWC in changed:
                    image_HWC[:] = self._transformed(image_HWC)
        return changed

    def _shifted(
        self, images_BHWC: Images, border: int, tops_B: npt.NDArray[np.int64], lefts_B: npt.NDArray[np.int64]
    ) -> Images:
        """The crops that begin at these rows and columns of the images with their border."""
        samples, height, width, channels = images_BHWC.shape
        around = ((0, 0), (border, border), (border, border), (0, 0))
        if self.config.border == "reflect":
            padded = np.pad(images_BHWC, around, mode="reflect")
        else:
            padded = np.zeros((samples, height + 2 * border, width + 2 * border, channels), np.uint8)
            if self.config.border == "mean":
                padded[:] = self.mean_C
            padded[:, border : border + height, border : border + width] = images_BHWC
        # One row of pixels and channels is one run of bytes, so that the gather below copies whole rows.
        rows = padded.reshape(samples, height + 2 * border, -1)
        windows = sliding_window_view(rows, (height, width * channels), axis=(1, 2))
        cropped: Images = windows[np.arange(samples), tops_B, lefts_B * channels]
        return cropped.reshape(images_BHWC.shape)

    def _transformed(self, image_HWC: Images) -> Images:
        # A copy in memory of torch's own: the address of what enters an operator must not decide about its bits.
        image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
        for transform in self.transforms:
            image_CHW = transform(image_CHW)
        result: Images = image_CHW.permute(1, 2, 0).numpy()
        return result


def check_augment(config: AugmentConfig, image_shape: tuple[int, int, int]) -> None:
    """Tries every transform on an image of shape (H, W, C).

    Raises ConfigError for one that fails, changes the shape or the type, or draws from another generator than torch's.
    """
    height, width, channels = image_shape
    image_CHW = torch.arange(height * width * channels).remainder(251).reshape(channels, height, width).byte()
    for index, plugin in enumerate(config.transforms):
        transform, where = (
            _transform(config, index),
            f"data.augment.transforms.{index} is {plugin.name!r}: on an image it",
        )
        try:
            results = [_seeded(transform, image_CHW, seed) for seed in (0, 1, 2, 0, 1, 2)]
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ConfigError(f"{where} fails: {(str(error) or repr(error)).splitlines()[0]}") from error
        for result in results:
            if not isinstance(result, torch.Tensor) or result.dtype != torch.uint8 or result.shape != image_CHW.shape:
                is_tensor = isinstance(result, torch.Tensor)
                found = f"{result.dtype} {tuple(result.shape)}" if is_tensor else type(result).__name__
                raise ConfigError(f"{where} gives {found}; it must give uint8 {tuple(image_CHW.shape)}")
        if not all(torch.equal(first, again) for first, again in zip(results[:3], results[3:], strict=True)):
            raise ConfigError(f"{where} gives other values for the same seed: it may draw from torch's generator alone")


def _seeded(transform: Transform, image_CHW: torch.Tensor, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transform(image_CHW.clone())


def _transform(config: AugmentConfig, index: int) -> Transform:
    """A transform of torchvision's second version by its name, or the user's own; made with its options."""
    plugin, key = config.transforms[index], f"data.augment.transforms.{index}"
    own = ":" in plugin.name
    make = imported(key, plugin.name if own else f"torchvision.transforms.v2:{plugin.name}")
    try:
        transform: Transform = make(**plugin.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}.options: {plugin.name} refuses them: {str(error).splitlines()[0]}") from error
    return transform
