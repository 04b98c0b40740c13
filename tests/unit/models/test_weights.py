"""Model files are written whole or not at all, and their digest is what the page on determinism says."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hsee_ray.models.weights import digest_lines, weights_sha256, write_model
from hsee_ray.storage import write_whole


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# 1.0 and -2.0 as little-endian float32, and 3 as little-endian int64.
WEIGHT = np.array([[1.0, -2.0]], np.float32)
WEIGHT_LINE = f"client-000/stem.weight {sha256(bytes.fromhex('0000803f000000c0'))}"
COUNT_LINE = f"client-000/stem.count {sha256(bytes.fromhex('0300000000000000'))}"


def test_digest_lines_by_hand() -> None:
    tensors = {"stem.weight": WEIGHT, "stem.count": np.array(3, np.int64)}
    assert digest_lines("client-000", tensors) == (COUNT_LINE, WEIGHT_LINE)


@pytest.mark.parametrize(
    "same",
    [
        WEIGHT.astype(">f4"),
        np.asfortranarray(WEIGHT),
        np.array([[1.0, 7.0, -2.0]], np.float32)[:, ::2],
        np.array([[-2.0, 1.0]], np.float32)[:, ::-1],
        np.array([[1.0], [-2.0]], ">f4").T,
    ],
)
def test_digest_of_the_same_values_in_another_layout(same: np.ndarray) -> None:
    assert digest_lines("client-000", {"stem.weight": same}) == (WEIGHT_LINE,)


def test_digest_tells_a_transposed_array_apart() -> None:
    square = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    assert digest_lines("m", {"w": square}) != digest_lines("m", {"w": square.T})
    assert digest_lines("m", {"w": np.asfortranarray(square)}) == digest_lines("m", {"w": square})


def test_digest_over_all_lines_by_hand() -> None:
    expected = sha256(f"{COUNT_LINE}\n{WEIGHT_LINE}\n".encode())
    assert weights_sha256([WEIGHT_LINE, COUNT_LINE]) == expected
    assert weights_sha256(iter([COUNT_LINE, WEIGHT_LINE])) == expected
    assert weights_sha256([WEIGHT_LINE]) != expected


def test_a_model_file_reads_back_equal(tmp_path: Path) -> None:
    tensors = {
        "stem.weight": WEIGHT,
        "stem.count": np.array(3, np.int64),
        "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "head.bias": np.arange(6, dtype=">f4"),
    }
    lines = write_model(str(tmp_path / "final"), "client-000", tensors)
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["client-000.safetensors"]
    loaded = load_file(tmp_path / "final" / "client-000.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].shape == array.shape
    assert lines == digest_lines("client-000", tensors) == digest_lines("client-000", loaded)


@pytest.mark.parametrize("array", [np.float32([[1, 2], [3, 4]]).T, np.float32([1, 2, 3, 4])[::2]])
def test_a_model_file_of_arrays_in_another_layout_reads_back_equal(tmp_path: Path, array: np.ndarray) -> None:
    lines = write_model(str(tmp_path), "server", {"w": array})
    assert digest_lines("server", load_file(tmp_path / "server.safetensors")) == lines


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, b"a long first content")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
