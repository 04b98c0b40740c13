"""A picture of any kind becomes the pixels that it shows, or one line that says why not; what was done is told."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hsee_ray.edge.images import pixels
from hsee_ray.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **keys: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **keys)
    return file.getvalue()


def read(picture: bytes, **keys: Any) -> tuple[np.ndarray, list[str]]:
    told: list[str] = []
    return pixels(picture, "it", tell=told.append, **keys), told


def refusal(picture: bytes, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        pixels(picture, "it", **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


WHITE, RED = [255, 255, 255], [255, 0, 0]


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    found, told = read(encoded(image))
    assert found[0].tolist() == [RED, WHITE] and told == ["with transparency: laid on white"]
    found, told = read(encoded(Image.new("RGBA", (2, 1), (255, 0, 0, 255))))
    assert found[0].tolist() == [RED, RED] and told == []


@pytest.mark.parametrize("mode", ["LA", "P", "L"])
def test_transparency_in_other_modes(mode: str) -> None:
    image = Image.new(mode, (1, 1), (0, 0) if mode == "LA" else 0)
    keys = {} if mode == "LA" else {"transparency": 0}
    found, told = read(encoded(image, **keys), channels=3)
    assert found[0].tolist() == [WHITE] and told[0] == "with transparency: laid on white"


def test_a_picture_is_turned_as_its_orientation_says() -> None:
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 3
    found, told = read(encoded(image, exif=exif))
    assert found[0, 1].tolist() == RED and told == ["turned as their EXIF orientation says"]
    exif[0x0112] = 6
    found, told = read(encoded(image, exif=exif))
    assert found.shape == (2, 1, 3) and told == ["turned as their EXIF orientation says"]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_of_more_than_8_bits(kind: str) -> None:
    """12 bits of data in 16: 4 bits of each are lost, and not 8 of 12."""
    picture = encoded(Image.fromarray(np.array([[0, 16, 4095]], np.uint16)), kind)
    assert "its values go from 0 to 4095" in refusal(picture) and "data.bits=12 if 12 are used" in refusal(picture)
    found, told = read(picture, bits=12)
    assert found[0, :, 0].tolist() == [0, 1, 255] and told == ["reduced from 12 to 8 bits"]
    assert "data.bits=12" in refusal(picture, bits=10)


def test_32_bits_and_floating_point() -> None:
    deep = encoded(Image.fromarray(np.array([[0, 1 << 20]], np.int32)), "TIFF")
    assert "data.bits=21" in refusal(deep)
    assert read(deep, bits=21)[0][0, :, 0].tolist() == [0, 128]
    assert "its values go from -1 to" in refusal(
        encoded(Image.fromarray(np.array([[-1, 1]], np.int32)), "TIFF"), bits=16
    )
    assert "floating-point" in refusal(encoded(Image.fromarray(np.ones((1, 1), np.float32)), "TIFF"))


def test_16_bits_of_colour_are_not_taken_for_8() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        import struct
        import zlib

        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    import zlib

    header = bytes([0, 0, 0, 1, 0, 0, 0, 1, 16, 2, 0, 0, 0])
    rows = zlib.compress(b"\0" + bytes([255, 1, 128, 2, 0, 3]))
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert "16 bits per colour" in refusal(picture)
    found, told = read(picture, bits=16)
    assert found[0, 0].tolist() == [255, 128, 0] and told == ["reduced from 16 to 8 bits"]


def test_what_else_is_told() -> None:
    frames = [Image.new("L", (2, 2), value) for value in (0, 255)]
    found, told = read(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert not found.any() and told == ["with several frames: the first is taken"]
    assert read(encoded(Image.new("CMYK", (2, 2)), "JPEG"))[1] == ["converted from CMYK to RGB"]
    assert read(encoded(Image.new("RGB", (2, 2))), channels=1)[1] == ["made gray"]
    assert read(encoded(Image.new("RGB", (2, 4))), size=(2, 2))[1] == [
        "stretched to the proportions of data.image_size"
    ]
    assert read(encoded(Image.new("L", (2, 2))), channels=3)[1] == []


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
KINDS = ["PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM", "JPEG2000", "TGA"]


@pytest.mark.long
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mode=st.sampled_from(MODES),
    kind=st.sampled_from(KINDS),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([None, 1, 3]),
    wanted=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bits=st.none() | st.integers(9, 32),
    damage=st.none() | st.tuples(st.integers(0, 2000), st.integers(0, 255)),
    orientation=st.none() | st.integers(0, 9),
)
def test_no_picture_ends_in_a_traceback(
    mode: str,
    kind: str,
    size: tuple[int, int],
    channels: int | None,
    wanted: tuple[int, int] | None,
    bits: int | None,
    damage: tuple[int, int] | None,
    orientation: int | None,
) -> None:
    try:
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        content = bytearray(encoded(Image.new(mode, size), kind, exif=exif))
    except (OSError, ValueError, KeyError):  # a format that has no such mode
        return
    if damage is not None:
        content[damage[0] % len(content)] = damage[1]
    try:
        found = pixels(bytes(content), "it", channels, wanted, bits)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == (channels or found.shape[2])
