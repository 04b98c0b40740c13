"""A small export to serve, and the bodies that no server should answer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch

from hsee_ray.deploy.export import export
from hsee_ray.edge.bundle import load_bundle
from hsee_ray.edge.protocol import HEADER_BYTES, encode
from hsee_ray.rundir.run import Run
from tests.run_directories import train_run

CONFIG = {
    "model": {"name": "tests.networks:conv_units"},
    "data": {"name": "synthetic", "train_samples": 96, "test_samples": 8, "image_size": 8, "classes": 4},
    "tiers": [
        {"name": "sensor", "clients": 2, "cut": "stem"},
        {"name": "hub", "clients": 1, "cut": "body.1", "codec": "int8"},
        {"name": "gateway", "clients": 1, "cut": "head"},
    ],
    "training": {"rounds": 6, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
}
"""Clients 0 and 1 have one cut, 2 another, and int8; 3 has the whole network: it is not served."""
SHAPE = (4, 8, 8)
"""Of the features of clients 0 and 1."""


def tiny_export(directory: Path) -> tuple[Run, Path]:
    """A run of four clients, and its export."""
    run = train_run(directory / "run", CONFIG)
    export(run, directory / "export", tau=0.5)
    return run, directory / "export"


def coded_features(run: Run, out: Path, client: int, images_NHWC: np.ndarray) -> np.ndarray:
    """What the trained modules of a client send of images, coded as its bundle says."""
    with torch.no_grad():
        h = run.client(client)(run.preprocess(images_NHWC))
    return load_bundle(out / f"client-{client:03}").codec.encode(h.numpy())


def labels_of(run: Run, out: Path, client: int, codes: np.ndarray) -> list[int]:
    """What the trained modules above the cut make of coded features."""
    h = torch.from_numpy(load_bundle(out / f"client-{client:03}").codec.decode(codes))
    with torch.no_grad():
        labels: list[int] = run.server(client)(h).argmax(dim=1).tolist()
    return labels


def malformed_bodies(network: str, count: int, seed: int) -> Iterator[bytes]:
    """Bodies at random, cut off, with bits turned, and well-formed ones with a wrong word in their header."""
    random = Random(seed)
    floats = np.random.default_rng(seed)
    for index in range(count):
        good = encode(index % 2, network, floats.standard_normal((1 + index % 3, *SHAPE), np.float32))
        kind = index % 5
        if kind == 0:
            yield random.randbytes(random.randrange(2 * HEADER_BYTES))
        elif kind == 1:
            yield good[: random.randrange(len(good))]
        elif kind == 2:
            bad = bytearray(good)
            bad[random.randrange(len(bad))] ^= 1 << random.randrange(8)
            yield bytes(bad)
        elif kind == 3:
            yield good + random.randbytes(1 + random.randrange(100))
        else:
            yield stored_again(good, *random.choice(WRONG_WORDS))


WRONG_WORDS = [
    (0, b"HTTP"),  # magic
    (4, struct.pack("<H", 7)),  # version
    (6, b"\2"),  # type
    (7, b"\0"),  # dimensions
    (7, b"\3"),
    (7, b"\xff"),
    (8, struct.pack("<I", 3)),  # a client that is not served
    (8, struct.pack("<I", 2**32 - 1)),
    (12, struct.pack("<I", 0)),  # samples
    (12, struct.pack("<I", 2**32 - 1)),
    (16, struct.pack("<I", 5)),  # channels
    (28, struct.pack("<I", 1)),  # a dimension that does not count
    (32, bytes(8)),  # network
    (HEADER_BYTES, struct.pack("<f", float("nan"))),
    (HEADER_BYTES, struct.pack("<f", float("-inf"))),
]
"""Where, and what is written there."""


def stored_again(body: bytes, at: int, word: bytes) -> bytes:
    """The body with other bytes at one place, and a checksum that fits."""
    bad = bytearray(body)
    bad[at : at + len(word)] = word
    checksum = zlib.crc32(bad[HEADER_BYTES:], zlib.crc32(bad[: HEADER_BYTES - 4]))
    bad[HEADER_BYTES - 4 : HEADER_BYTES] = struct.pack("<I", checksum)
    return bytes(bad)
