"""Wire format between a device and a server. Needs numpy only.

A request's body is a header of fixed size and the features behind it, coded as the client's bundle says (`codecs.py`),
little-endian, in row-major order:

| bytes | type | what |
|---|---|---|
| 0-3 | bytes | `HSEE` |
| 4-5 | uint16 | version of this format |
| 6 | uint8 | type of the features: 1 for float32, 2 for float16, 3 for uint8 |
| 7 | uint8 | number of dimensions, the batch included |
| 8-11 | uint32 | number of the client |
| 12-31 | 5 x uint32 | the dimensions, the batch first; 0 where there is none |
| 32-39 | bytes | the first 8 bytes of the run's `weights_sha256` |
| 40-43 | uint32 | CRC-32 of the 40 bytes before it and the features |

The answer is JSON: `{"labels": [3, 5]}`, or `{"error": "..."}` with a status of 400 or above.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsee_ray.edge.codecs import CODE_TYPES, Codec
from hsee_ray.errors import UserError

Array = np.ndarray[Any, Any]

MAGIC = b"HSEE"
VERSION = 1
TYPE_NUMBERS = {np.dtype(np.float32): 1, np.dtype(np.float16): 2, np.dtype(np.uint8): 3}
MOST_DIMENSIONS = 5
PATH = "/answer"
READY_PATH = "/ready"
MEDIA_TYPE = "application/octet-stream"
_BETWEEN_LABELS = 16
_MOST_SAID = 200

_HEADER = struct.Struct(f"<4sHBBI{MOST_DIMENSIONS}I8s")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size


class BadRequest(UserError):
    """A body that cannot be answered; the message is one sentence for whoever sent it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status, from 400 to 499; 503 where another time is better."""

    def __reduce__(self) -> tuple[type[BadRequest], tuple[int, str]]:
        return BadRequest, (self.status, str(self))


@dataclass(frozen=True)
class SentFeatures:
    """Shape and codec of one client's features."""

    shape: tuple[int, ...]
    codec: Codec = "none"


@dataclass(frozen=True)
class Offload:
    """The unsure samples of one client."""

    client: int
    features: Array
    """As they were sent, (B, C, H, W) or (B, ...), of the codec's type: read-only where it lies over the body."""


def encode(client: int, network: str, features: Array) -> bytes:
    """Body of a request with coded features; `network` is the run's `weights_sha256` in hexadecimal digits.

    Raises ValueError for features of another type or with too many dimensions.
    """
    kind = TYPE_NUMBERS.get(features.dtype)
    if kind is None or not 2 <= features.ndim <= MOST_DIMENSIONS:
        raise ValueError(f"features of type {features.dtype} and shape {features.shape} cannot be sent")
    dimensions = [*features.shape, *[0] * (MOST_DIMENSIONS - features.ndim)]
    head = _HEADER.pack(MAGIC, VERSION, kind, features.ndim, client, *dimensions, _network_bytes(network))
    payload = np.ascontiguousarray(features, features.dtype.newbyteorder("<")).tobytes()
    return head + _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def decode(body: bytes | memoryview, network: str, served: Mapping[int, SentFeatures]) -> Offload:
    """The samples in a request's body, still coded; `served` says what every client that is served here sends.

    Raises BadRequest for whatever is wrong with it.
    """
    view = memoryview(body)
    if len(view) < HEADER_BYTES:
        raise BadRequest(400, f"the body has {len(view)} bytes, and its header alone has {HEADER_BYTES}")
    magic, version, kind, n_dimensions, client, *dimensions, sender = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise BadRequest(400, f"the body begins with {magic!r}, not with {MAGIC!r}: it is no request of a device")
    if version != VERSION:
        raise BadRequest(400, f"the body has format version {version}; this server reads {VERSION}")
    if client not in served:
        raise BadRequest(404, f"client {client} is not served here")
    if sender != _network_bytes(network):
        raise BadRequest(409, f"the device has a network {sender.hex()}..., this server has {network[:16]}...")
    wanted, dtype = served[client].shape, CODE_TYPES[served[client].codec]
    if kind != TYPE_NUMBERS[dtype]:
        raise BadRequest(415, f"the features have type {kind}; client {client} sends {TYPE_NUMBERS[dtype]}, {dtype}")
    shape = tuple(dimensions[:n_dimensions])
    if n_dimensions != len(wanted) + 1 or shape[1:] != wanted or any(dimensions[n_dimensions:]):
        raise BadRequest(422, f"the features have shape {tuple(dimensions)}; client {client} sends (batch, *{wanted})")
    if shape[0] < 1:
        raise BadRequest(422, "the request has no samples")
    length = HEADER_BYTES + dtype.itemsize * math.prod(shape)
    if len(view) != length:
        raise BadRequest(400, f"the body has {len(view)} bytes; its header announces {length}")
    payload = view[HEADER_BYTES:]
    (checksum,) = _CHECKSUM.unpack_from(view, _HEADER.size)
    if checksum != zlib.crc32(payload, zlib.crc32(view[: _HEADER.size])):
        raise BadRequest(400, "the body was damaged on its way: its checksum does not fit")
    features: Array = np.frombuffer(payload, dtype.newbyteorder("<")).reshape(shape)
    if not np.isfinite(features).all():
        raise BadRequest(422, "the features hold values that are NaN or infinite")
    return Offload(client, features)


def encode_answer(labels_B: Iterable[int]) -> bytes:
    return json.dumps({"labels": [int(label) for label in labels_B]}).encode()


def encode_error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


def decode_answer(body: bytes, samples: int, n_classes: int) -> Array:
    """Labels (B,) int64 of an answer. Raises ValueError when it is not one for so many samples and classes."""
    try:
        answer = json.loads(body)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    labels = answer.get("labels") if isinstance(answer, dict) else None
    if not isinstance(labels, list) or len(labels) != samples:
        raise ValueError(f"the answer has no labels for {samples} samples")
    if not all(type(label) is int and 0 <= label < n_classes for label in labels):
        raise ValueError(f"the answer has labels outside of 0 to {n_classes - 1}")
    return np.array(labels, np.int64)


def most_answer_bytes(samples: int, n_classes: int) -> int:
    """The longest answer with so many labels, however a server sets its JSON."""
    return samples * (len(str(n_classes)) + _BETWEEN_LABELS)


def error_of(body: bytes) -> str:
    """The sentence in an answer with an error status, or what stands there instead; its beginning, if it is long."""
    try:
        return str(json.loads(body)["error"])[:_MOST_SAID]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:_MOST_SAID].decode(errors="replace").strip() or "no reason given"


def is_token(token: object) -> bool:
    """Whether a header can carry it as a token."""
    return isinstance(token, str) and bool(token) and token.isascii() and token.isprintable() and " " not in token


def _network_bytes(network: str) -> bytes:
    return bytes.fromhex(network[:16])
