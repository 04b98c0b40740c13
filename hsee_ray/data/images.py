"""The file of a split: one Arrow IPC record batch of uint8 images and int64 labels, mapped without copying.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hsee_ray.data.decode import Note
from hsee_ray.errors import DataError

_METADATA_KEY = b"hsee-ray"
_STATISTICS_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A split as two read-only views of its file."""

    images_NHWC: npt.NDArray[np.uint8]
    labels_N: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageMetadata:
    """Metadata of a file, so that its source is no longer needed."""

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """H, W, C."""
    notes: tuple[Note, ...] = ()
    digest: str = ""
    """SHA-256 of all pixels and labels."""


def write_images(file: BinaryIO, images: ImageSet, metadata: ImageMetadata) -> None:
    """Write a split to an open file. Raises OSError where the file system does."""
    n_samples = len(images.labels_N)
    pixels = pa.array(images.images_NHWC.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(pixels, len(pixels) // n_samples)
    batch = pa.RecordBatch.from_arrays([column, pa.array(images.labels_N)], names=["image", "label"])
    schema = batch.schema.with_metadata({_METADATA_KEY: json.dumps(asdict(metadata))})
    # The pixels of a split are one array, which may hold more than 2^31 of them.
    options = pa.ipc.IpcWriteOptions(allow_64bit=True)
    with pa.ipc.new_file(file, schema, options=options) as writer:
        writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def open_images(path: Path) -> ImageSet:
    """Map a split: nothing is read before it is used, and every process on a machine shares the same memory.

    Raises DataError when the file is missing or damaged.
    """
    reader = _open(path)
    height, width, channels = _metadata(reader).image_shape
    batch = reader.get_batch(0)
    pixels: npt.NDArray[np.uint8] = batch.column("image").values.to_numpy(zero_copy_only=True)
    labels_N: npt.NDArray[np.int64] = batch.column("label").to_numpy(zero_copy_only=True)
    return ImageSet(pixels.reshape(-1, height, width, channels), labels_N)


def read_metadata(path: Path) -> ImageMetadata:
    """Class names and image shape of a split. Raises DataError when the file is missing or damaged."""
    return _metadata(_open(path))


def _open(path: Path) -> pa.ipc.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read {path} ({reason}): delete it, so that it is built again") from error


def _metadata(reader: pa.ipc.RecordBatchFileReader) -> ImageMetadata:
    fields = json.loads(reader.schema.metadata[_METADATA_KEY])
    height, width, channels = fields["image_shape"]
    notes = tuple(Note(**note) for note in fields["notes"])
    return ImageMetadata(tuple(fields["class_names"]), (height, width, channels), notes, fields["digest"])


def channel_statistics(
    images_NHWC: npt.NDArray[np.uint8], indices: npt.NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel over the chosen images, on the [0, 1] scale.

    They come from exact integer sums, so the order of `indices` does not matter. A channel of a single value
    has deviation 1, so that it can be divided by.
    """
    channels = images_NHWC.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    step = max(1, _STATISTICS_CHUNK_BYTES // images_NHWC[0].size)
    for first in range(0, len(indices), step):
        pixels = images_NHWC[indices[first : first + step]]
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[..., channel].reshape(-1), minlength=256)
    moments = [_moments([int(count) for count in row]) for row in counts]
    return tuple(mean for mean, _ in moments), tuple(deviation for _, deviation in moments)


def _moments(counts: list[int]) -> tuple[float, float]:
    """Mean and deviation from how often each of the 256 values occurs; Python integers cannot overflow."""
    total = sum(counts)
    first = sum(count * value for value, count in enumerate(counts))
    second = sum(count * value * value for value, count in enumerate(counts))
    scaled_variance = total * second - first * first
    deviation = float(np.sqrt(scaled_variance / (total * total))) / 255 if scaled_variance else 1.0
    return first / total / 255, deviation
