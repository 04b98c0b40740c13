"""Files of trained models: safetensors, written whole or not at all, and the digest over them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from hsee_ray.errors import DataError
from hsee_ray.storage import Storage

Array = np.ndarray[Any, Any]


def write_model(place: str, stem: str, tensors: Mapping[str, Array]) -> tuple[str, ...]:
    """Writes `<stem>.safetensors` in a directory or storage, whole or not at all; returns its digest lines."""
    content = save({name: np.require(array, requirements="C") for name, array in tensors.items()})
    Storage.at(place).write(f"{stem}.safetensors", content)
    return digest_lines(stem, tensors)


def read_model(path: Path) -> dict[str, Array]:
    """Tensors of a file that `write_model` wrote. Raises DataError when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy the run directory again") from None


def digest_lines(stem: str, tensors: Mapping[str, Array]) -> tuple[str, ...]:
    """`<stem>/<tensor name> <SHA-256 of its little-endian bytes in row-major logical order>`, one line a tensor."""
    return tuple(
        f"{stem}/{name} {hashlib.sha256(_little_endian(array).tobytes(order='C')).hexdigest()}"
        for name, array in sorted(tensors.items())
    )


def weights_sha256(lines: Iterable[str]) -> str:
    """SHA-256 over the sorted digest lines of all models, each ended by a newline."""
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


def _little_endian(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
