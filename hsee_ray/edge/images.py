"""A picture becomes uint8 pixels, in the same way for training and on a device. Needs Pillow and numpy."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from hsee_ray.errors import DataError

# What Pillow raises for damaged files, depending on the format and on where the damage is.
_DECODE_ERRORS = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def first_line(error: BaseException) -> str:
    """A library's error message, cut to one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def pixels(
    picture: bytes | Path | npt.NDArray[np.uint8],
    where: str,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, C) of an encoded image, of its file, or of pixels (H, W) or (H, W, 3).

    With 1 or 3 channels, or as many as it has itself; resized to (height, width) where a size is given, without
    keeping its proportions. Raises DataError, which says where it lies, for an image that does not decode.
    """
    try:
        with _open(picture) as opened:
            opened.load()
            image = _eight_bits(opened)
    except _DECODE_ERRORS as error:
        raise DataError(f"{where} does not decode ({first_line(error)}): replace or remove it") from error
    channels = channels or (1 if image.mode in ("L", "1") else 3)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _open(picture: bytes | Path | npt.NDArray[np.uint8]) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as its upper byte: Pillow's own conversion would clip it to white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
