"""Random numbers by key: every draw of a run comes from a generator that its purpose names.

Two draws with different keys are independent; a draw depends on nothing but its key, so it is the same in one
process, over many actors, after a resume and after a failure that was recovered from.
"""

from __future__ import annotations

import hashlib

import numpy as np

Key = str | int


def key_seed(seed: int, purpose: str, *parts: Key) -> int:
    """128-bit seed of the stream (seed, purpose, parts...), such as (0, "order", client, round)."""
    text = "\x1f".join([str(seed), purpose, *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def generator(seed: int, purpose: str, *parts: Key) -> np.random.Generator:
    """Generator of the stream (seed, purpose, parts...)."""
    return np.random.Generator(np.random.Philox(key=key_seed(seed, purpose, *parts)))


def torch_seed(seed: int, purpose: str, *parts: Key) -> int:
    """63-bit seed of the same stream, for `torch.manual_seed`."""
    return key_seed(seed, purpose, *parts) & (2**63 - 1)
