"""bundle.json written and read back, and what is said of bundles that are damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsee_ray.edge.bundle import (
    BUNDLE_FILE,
    Bundle,
    ServerPart,
    checked_file,
    load_bundle,
    write_bundle,
)
from hsee_ray.edge.codecs import UNCODED, ChannelRange, FeatureCodec
from hsee_ray.edge.gate import NEVER_SENDS, Gate
from hsee_ray.edge.named import NamedPart
from hsee_ray.errors import DataError

BUNDLE = Bundle(
    network="ab" * 32,
    run="first",
    client=3,
    tier="hub",
    image_shape=(8, 12, 3),
    class_names=("kätzchen", "dog"),
    cut="layer1.1",
    cut_index=3,
    gate=Gate("margin", 0.625, 1.5),
    calibrated_for="offload<=0.3",
    feature_shape=(16, 4, 6),
    server=ServerPart("../server/client-003.onnx", "../server/layer1.1.pt2", "../server/w", {"b": "a.b", "a": "a"}),
    network_file="../networks/client-003.safetensors",
    files={"client.onnx": hashlib.sha256(b"a graph").hexdigest()},
    codec=FeatureCodec(
        "int8", ChannelRange(np.linspace(-0.1, 0, 16, dtype=np.float32), np.full(16, 1 / 3, np.float32))
    ),
)
WHOLE = dataclasses.replace(
    BUNDLE, gate=Gate("entropy", NEVER_SENDS), calibrated_for=None, feature_shape=None, server=None, codec=UNCODED
)
HALF = dataclasses.replace(BUNDLE, codec=FeatureCodec("fp16"))
STAGED = dataclasses.replace(BUNDLE, stages=(NamedPart("package.module:Name", {"high": 0.5}), NamedPart("a:b")))


@pytest.mark.parametrize("bundle", [BUNDLE, WHOLE, HALF, STAGED])
def test_read_back(bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(tmp_path, bundle)
    assert load_bundle(tmp_path) == bundle
    content = json.loads((tmp_path / BUNDLE_FILE).read_text(encoding="utf-8"))
    assert (content["format_version"], content["input_type"]) == (2, "uint8")
    assert ("stages" in content) == bool(bundle.stages), "a bundle without stages reads as those of before"


def test_the_order_of_the_tensors_is_kept(tmp_path: Path) -> None:
    write_bundle(tmp_path, BUNDLE)
    server = load_bundle(tmp_path).server
    assert server is not None
    assert list(server.tensors) == ["b", "a"]


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bundle\.json: cannot be read .*; name the directory of one client"):
        load_bundle(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be read"):
        load_bundle(tmp_path / "file")


def test_another_version(tmp_path: Path) -> None:
    (tmp_path / BUNDLE_FILE).write_text('{"format_version": 1}')
    with pytest.raises(DataError, match="has format version 1, and this version reads 2; export it again"):
        load_bundle(tmp_path)


DAMAGE: dict[str, Any] = {
    "network": "no hexadecimal digits",
    "client": None,
    "image_shape": [8, 12],
    "class_names": None,
    "cut_index": "third",
    "feature_shape": 3,
    "server": {"onnx": "server.onnx"},
    "files": ["client.onnx"],
    "gate": {"kind": "entropy", "tau": 0.5},
    "codec": None,
}
RANGE = {"low": [0.0] * 16, "high": [1.0] * 16}
CODECS: list[Any] = [
    {},
    {"name": "int4"},
    {"name": "int8"},
    {"name": "int8", "low": [0.0] * 16},
    {"name": "none", **RANGE},
    {"name": "int8", "low": [0.0] * 15, "high": [1.0] * 15},
    {"name": "int8", **RANGE, "high": [1.0] * 15},
    {"name": "int8", **RANGE, "high": [-1.0] * 16},
    {"name": "int8", **RANGE, "high": [float("inf")] * 16},
    {"name": "int8", **RANGE, "high": 1.0},
]
GATES = [{"kind": "hope"}, {"tau": 1.5}, {"tau": -2}, {"tau": float("nan")}, {"temperature": 0}, {"tau": None}]
WRONG = [
    ("cut_index", math.inf),  # 1e400 in JSON
    ("task", {"name": "a:b"}),
    ("image_bits", 8),
    ("image_bits", "many"),
    *DAMAGE.items(),
    *[("gate", vars(BUNDLE.gate) | gate) for gate in GATES],
    *[("codec", codec) for codec in CODECS],
    *[("stages", stages) for stages in (None, 3, ["a:b"], [{"name": "a:b"}], [{"name": "a:b", "options": 1}])],
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value(key: str, value: Any, tmp_path: Path) -> None:
    write_bundle(tmp_path, BUNDLE)
    path = tmp_path / BUNDLE_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {key: value}))
    assert_damaged(tmp_path)


def test_a_key_is_missing(tmp_path: Path) -> None:
    write_bundle(tmp_path, BUNDLE)
    path = tmp_path / BUNDLE_FILE
    content = json.loads(path.read_text(encoding="utf-8"))
    for key in content.keys() - {"input_type", "task", "image_bits"}:  # bundles of 0.1 have no task and no bits
        path.write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        assert_damaged(tmp_path)


def test_a_file_cut_short(tmp_path: Path) -> None:
    write_bundle(tmp_path, BUNDLE)
    path = tmp_path / BUNDLE_FILE
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        assert_damaged(tmp_path)
    for text in ("[]", "null", "3", '"text"'):
        path.write_text(text)
        assert_damaged(tmp_path)


def assert_damaged(directory: Path) -> None:
    with pytest.raises(DataError, match=r"bundle\.json: is damaged .*; export it again") as raised:
        load_bundle(directory)
    assert "\n" not in str(raised.value)


def test_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "client.onnx"
    path.write_bytes(b"a graph")
    assert checked_file(tmp_path, BUNDLE, "client.onnx") == path
    for content in (b"a grapf", b"a grap", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(f"{path}: is not the file that bundle.json names")):
            checked_file(tmp_path, BUNDLE, "client.onnx")
    path.unlink()
    with pytest.raises(DataError, match=re.escape(f"{path}: cannot be read")):
        checked_file(tmp_path, BUNDLE, "client.onnx")
    (tmp_path / "other").write_bytes(b"a graph")
    with pytest.raises(DataError, match=r"other: is not the file that bundle\.json names"):
        checked_file(tmp_path, BUNDLE, "other")
