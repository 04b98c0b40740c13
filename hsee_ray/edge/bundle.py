"""A bundle: one client's network as files that run without torch, Ray or this project's configuration.

An export has a directory for each client, which is what its device needs, and two that the clients share:

    client-003/bundle.json              this file's content: everything below
    client-003/client.onnx              uint8 images (N, H, W, C) -> exit logits (N, K), features (N, ...)
    server/client-003.onnx              features -> logits; its weights lie in weights.safetensors
    server/<cut>.pt2                    torch.export program (features, tensors by name) -> logits, without weights
    server/weights.safetensors          every tensor of all server parts once
    networks/client-003.safetensors     state dict of the whole network, from image to server's answer; without a
                                        server, of the client's units and its exit

A client without a server has no features and no server part: client.onnx gives logits only. Features travel as `codec`
says: as float32, float16, or one byte each, within a range of each channel that was fixed in training; before that the
device puts them through `stages`, where there are any. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hsee_ray.edge.codecs import UNCODED, ChannelRange, FeatureCodec, channel_axis
from hsee_ray.edge.gate import Gate
from hsee_ray.edge.named import NamedPart
from hsee_ray.errors import DataError

BUNDLE_FILE = "bundle.json"
CLIENT_MODEL = "client.onnx"
FORMAT_VERSION = 2
CLASSIFICATION = NamedPart("hsee_ray.edge.task:Classification")
_NESTED = ("gate", "server", "codec", "stages", "task")
"""Fields that JSON does not hold as they are."""


@dataclass(frozen=True)
class ServerPart:
    """Files of a client's server part; paths are relative to the client's directory."""

    onnx: str
    program: str
    weights: str
    tensors: Mapping[str, str]
    """Names in the weights' file of the tensors that the program takes, by the program's own names.

    In the program's order: it takes a dictionary of them, and goes by the place of each in it.
    """


@dataclass(frozen=True)
class Bundle:
    """Content of `bundle.json`."""

    network: str
    """The run's `weights_sha256`: device and server must agree on it."""
    run: str
    client: int
    tier: str
    image_shape: tuple[int, int, int]
    """Height, width, channels of a uint8 image."""
    class_names: tuple[str, ...]
    cut: str
    cut_index: int
    gate: Gate
    calibrated_for: str | None
    """The target that tau was calibrated to; None where it was given by hand."""
    feature_shape: tuple[int, ...] | None
    """Of one sample at the cut, float32 before it is coded; None without a server."""
    server: ServerPart | None
    network_file: str
    files: Mapping[str, str]
    """SHA-256 of each file, by its path relative to the client's directory."""
    codec: FeatureCodec = UNCODED
    """How the features travel."""
    stages: tuple[NamedPart, ...] = ()
    """Stages that the device applies before the codec."""
    task: NamedPart = CLASSIFICATION
    """How logits are read: a Task."""
    image_bits: int | None = None
    """Bits in use of images with more than 8 per value; None where it was trained on none."""


def write_bundle(directory: Path, bundle: Bundle) -> None:
    """Writes `bundle.json`, after everything that it names."""
    server = None if bundle.server is None else vars(bundle.server)
    content = {
        "format_version": FORMAT_VERSION,
        **{name: value for name, value in vars(bundle).items() if name not in _NESTED},
        "input_type": "uint8",
        "gate": vars(bundle.gate),
        "task": vars(bundle.task),
        "codec": _codec_json(bundle.codec),
        "server": server,
        **({"stages": [vars(stage) for stage in bundle.stages]} if bundle.stages else {}),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / BUNDLE_FILE).write_text(f"{text}\n", encoding="utf-8")


def load_bundle(directory: Path) -> Bundle:
    """Bundle of one client. Raises DataError when it is missing, damaged or of another version."""
    path = directory / BUNDLE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version == FORMAT_VERSION:
            return _from_json(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name the directory of one client") from None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error}); export it again") from None
    raise DataError(f"{path}: has format version {version!r}, and this version reads {FORMAT_VERSION}; export it again")


def checked_file(directory: Path, bundle: Bundle, name: str) -> Path:
    """Path of a file of the bundle. Raises DataError when it is missing or is not what the bundle says."""
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve().parent):
        raise DataError(f"{path}: lies outside of the export; export it again")
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); copy the bundle again") from None
    if digest.hexdigest() != bundle.files.get(name):
        raise DataError(f"{path}: is not the file that {BUNDLE_FILE} names; copy the bundle again")
    return path


def _codec_json(codec: FeatureCodec) -> dict[str, Any]:
    """float32 numbers come back from their decimal digits as they were."""
    bounds = codec.bounds
    if bounds is None:
        return {"name": codec.name}
    return {"name": codec.name, "low": bounds.low_C.tolist(), "high": bounds.high_C.tolist()}


def _codec(content: Mapping[str, Any], feature_shape: list[int] | None) -> FeatureCodec:
    bounds = None
    if "low" in content:
        bounds = ChannelRange(np.array(content["low"], np.float32), np.array(content["high"], np.float32))
        if feature_shape is None or len(bounds.low_C) != feature_shape[channel_axis(len(feature_shape) + 1) - 1]:
            raise ValueError("the codec's range is not that of the features' channels")
    return FeatureCodec(content["name"], bounds).checked()


def _part(content: Mapping[str, Any]) -> NamedPart:
    return NamedPart(str(content["name"]), dict(content["options"]))


def _from_json(content: Mapping[str, Any]) -> Bundle:
    """Raises KeyError, TypeError or ValueError for what no export writes."""
    height, width, channels = (int(size) for size in content["image_shape"])
    shape, server = content["feature_shape"], content["server"]
    gate = Gate(content["gate"]["kind"], float(content["gate"]["tau"]), float(content["gate"]["temperature"]))
    classes = content["class_names"]
    if not isinstance(classes, list) or len(classes) < 2:
        raise ValueError(f"class_names is {classes!r}")
    if min(height, width, channels, *(shape or [1])) < 1 or not 0 <= int(content["client"]) < 1 << 32:
        raise ValueError("a size or the client's number is out of range")
    bits = content.get("image_bits", 16)  # as bundles without it were trained
    if bits is not None and not 8 < int(bits) <= 32:
        raise ValueError(f"image_bits is {bits!r}")
    if (shape is None) != (server is None):
        raise ValueError("features and server part belong together")
    if server is not None and not all(isinstance(server[name], str) for name in ("onnx", "program", "weights")):
        raise TypeError("a path is no text")
    return Bundle(
        network=bytes.fromhex(content["network"]).hex(),
        run=str(content["run"]),
        client=int(content["client"]),
        tier=str(content["tier"]),
        image_shape=(height, width, channels),
        class_names=tuple(map(str, content["class_names"])),
        cut=str(content["cut"]),
        cut_index=int(content["cut_index"]),
        gate=gate,
        calibrated_for=content["calibrated_for"],
        feature_shape=None if shape is None else tuple(int(size) for size in shape),
        server=None if server is None else ServerPart(**server),
        network_file=str(content["network_file"]),
        files=dict(content["files"]),
        codec=_codec(content["codec"], shape),
        stages=tuple(_part(stage) for stage in content.get("stages", ())),
        task=_part(content["task"]) if "task" in content else CLASSIFICATION,
        image_bits=bits,
    )
