"""Streams of random numbers: the same key gives the same numbers, and every other key gives others."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from hsee_ray.rng import generator, key_seed, torch_seed


def test_the_seed_is_the_first_half_of_a_digest() -> None:
    digest = hashlib.sha256(b"7\x1forder\x1fint:3\x1fstr:layer1").digest()
    assert key_seed(7, "order", 3, "layer1") == int.from_bytes(digest[:16], "little")


def test_the_same_key_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = generator(0, "order", 1, 2).permutation(50)
    generator(0, "augmentation", 1, 2).random(1000)
    np.random.default_rng().random(10)
    np.testing.assert_array_equal(generator(0, "order", 1, 2).permutation(50), first)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "order", 1, 2), (1, "order", 1, 2)),
        ((0, "order", 1, 2), (0, "augmentation", 1, 2)),
        ((0, "order", 1, 2), (0, "order", 2, 1)),
        ((0, "order", 1, 2), (0, "order", 1)),
        ((0, "order", 1), (0, "order", "1")),
        ((0, "order", 12), (0, "order", 1, 2)),
        ((0, "order", "ab"), (0, "order", "a", "b")),
        ((1, "1order"), (11, "order")),
    ],
)
def test_another_key_is_another_stream(one: tuple[int, str], other: tuple[int, str]) -> None:
    assert key_seed(*one) != key_seed(*other)
    assert generator(*one).random() != generator(*other).random()


def test_torch_takes_the_low_63_bits() -> None:
    seeds = [torch_seed(0, "exit", number) for number in range(64)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [key_seed(0, "exit", number) % 2**63 for number in range(64)]
    assert len(set(seeds)) == 64
