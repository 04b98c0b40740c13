"""A picture becomes uint8 pixels, in the same way for training and on a device. Needs Pillow and numpy."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hsee_ray.errors import DataError

# What Pillow raises for damaged files, depending on the format and on where the damage is.
_DECODE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
    Image.DecompressionBombError,
)
_FORMATS = {"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
_BACKGROUND = "white"
_ORIENTATION = 0x0112
"""The EXIF tag."""


def first_line(error: BaseException) -> str:
    """A library's error message, cut to one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def image_suffixes() -> set[str]:
    """Suffixes of image files, in lower case, that this installation of Pillow reads."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in _FORMATS}


def pixels(
    picture: bytes | Path | npt.NDArray[np.uint8],
    where: str,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    bits: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> npt.NDArray[np.uint8]:
    """Pixels (H, W, C) of an encoded image, of its file, or of pixels (H, W) or (H, W, 3).

    With 1 or 3 channels, or as many as it has itself; resized to (height, width) where a size is given, without
    keeping its proportions. It is turned as its EXIF orientation says, transparent parts are laid on white, and of
    several frames the first is taken. Of a picture with more than 8 bits per value, `bits` are in use, and the upper 8
    of those are taken. `tell` is told of each of these. Raises DataError, which says where it lies, for an image that
    does not decode, or whose values have no known range.
    """
    try:
        with _open(picture) as opened:
            if getattr(opened, "is_animated", False):
                tell("with several frames: the first is taken")
            raw_modes = "" if opened.mode[0] == "I" else str(getattr(opened, "tile", ""))
            colour_is_deep = ";16" in raw_modes
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if opened.getexif().get(_ORIENTATION, 1) != 1:
                tell("turned as their EXIF orientation says")
            image = _opaque(_eight_bits(image, colour_is_deep, where, bits, tell), tell)
            channels = channels or (1 if opened.mode in ("1", "L") or opened.mode[0] == "I" else 3)
            image = _with_channels(image, channels, tell)
    except _DECODE_ERRORS as error:
        raise DataError(f"{where} does not decode ({first_line(error)}): replace or remove it") from error
    if size is not None and (image.height, image.width) != size:
        if image.height * size[1] != image.width * size[0]:
            tell("stretched to the proportions of data.image_size")
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _open(picture: bytes | Path | npt.NDArray[np.uint8]) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    # No others: Pillow would run Ghostscript for a PostScript file, whatever its name.
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=sorted(_FORMATS))


def _eight_bits(
    image: Image.Image, colour_is_deep: bool, where: str, bits: int | None, tell: Callable[[str], None]
) -> Image.Image:
    """An image of 8 bits per value. Raises DataError where it has more, and nobody has said how many are in use."""
    if image.mode == "F":
        raise DataError(f"{where} holds floating-point numbers, whose range is not known: convert it to 8 or 16 bits")
    if colour_is_deep:
        # Pillow has read the upper 8 of 16 bits of each colour, and keeps nothing of the others.
        if bits != 16:
            raise DataError(
                f"{where} has 16 bits per colour: convert it to 8, or train with data.bits=16 if all of them are used"
            )
        tell("reduced from 16 to 8 bits")
    if image.mode[0] != "I":
        return image
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if bits is None or low < 0 or high >> bits:
        used = max(9, high.bit_length())
        raise DataError(
            f"{where} has more than 8 bits per pixel (its values go from {low} to {high}): convert it to 8, or train "
            f"with data.bits={used} if {used} are used"
        )
    tell(f"reduced from {bits} to 8 bits")
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _opaque(image: Image.Image, tell: Callable[[str], None]) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() != (255, 255):
        tell(f"with transparency: laid on {_BACKGROUND}")
    background = Image.new("RGBA", image.size, _BACKGROUND)
    background.alpha_composite(image)
    return background.convert("RGB")


def _with_channels(image: Image.Image, channels: int, tell: Callable[[str], None]) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode not in ("1", "L", "P", "RGB"):
        tell(f"converted from {image.mode} to {mode}")
    elif mode == "L" and image.mode != "1":
        tell("made gray")
    return image.convert(mode)
