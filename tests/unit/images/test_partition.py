"""Dealing samples out: every row once, the same for the same seed, and refused where it cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hsee_ray.config.schema import DataConfig
from hsee_ray.data import ClientIndices, class_counts, partition, select
from hsee_ray.errors import DataError

LABELS = np.arange(100, dtype=np.int64) % 4
ROWS = np.arange(100, dtype=np.int64)


def deal(
    n_clients: int, labels: np.ndarray = LABELS, rows: np.ndarray = ROWS, seed: int = 0, **keys: Any
) -> tuple[ClientIndices, ...]:
    settings = {"calibration_fraction": 0, **keys}
    return partition(labels, rows, n_clients, int(labels.max()) + 1, DataConfig(**settings), seed)


def dealt_rows(parts: tuple[ClientIndices, ...]) -> list[int]:
    return sorted(int(row) for part in parts for row in (*part.train, *part.calibration))


def test_all_samples_keep_the_order_of_the_file() -> None:
    assert select(np.zeros(3, np.int64), None, 0, "train").tolist() == [0, 1, 2]


def test_a_subset_is_chosen_by_seed_and_split() -> None:
    chosen = select(LABELS, 10, 0, "train")
    assert len(set(chosen.tolist())) == 10
    assert chosen.tolist() == sorted(chosen.tolist()) and chosen.dtype == np.int64
    assert np.array_equal(chosen, select(LABELS, 10, 0, "train"))
    assert not np.array_equal(chosen, select(LABELS, 10, 1, "train"))
    assert not np.array_equal(chosen, select(LABELS, 10, 0, "test"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_more_samples_than_there_are(split: str) -> None:
    with pytest.raises(DataError, match=rf"data\.{split}_samples is 101.* {split} split has 100 samples"):
        select(LABELS, 101, 0, split)


KINDS: list[dict[str, Any]] = [
    {"kind": "iid"},
    {"kind": "dirichlet", "alpha": 0.3, "min_samples": 2},
    {"kind": "shards", "shards_per_client": 3},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["kind"]))
def test_every_selected_row_is_dealt_once(kind: dict[str, Any]) -> None:
    rows = ROWS[3:90:2]
    parts = deal(5, rows=rows, partition=kind, calibration_fraction=0.2)
    assert len(parts) == 5
    assert dealt_rows(parts) == rows.tolist()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["kind"]))
def test_the_seed_decides(kind: dict[str, Any]) -> None:
    first, again, other = (deal(3, partition=kind, seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a.train, b.train) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a.train, b.train) for a, b in zip(first, other, strict=True))


def test_iid_sizes_differ_by_at_most_one() -> None:
    assert [len(part.train) for part in deal(7)] == [15, 15, 14, 14, 14, 14, 14]


def test_shards_are_equal_and_pure() -> None:
    """100 samples of 4 classes in 4 clients x 1 shard: every client holds one class, all 25 of it."""
    parts = deal(4, partition={"kind": "shards", "shards_per_client": 1})
    counts = class_counts(LABELS, [part.train for part in parts], 4)
    assert sorted(counts.tolist()) == [[0, 0, 0, 25], [0, 0, 25, 0], [0, 25, 0, 0], [25, 0, 0, 0]]


def test_a_remainder_goes_to_the_last_shards() -> None:
    """11 samples in 4 shards: 2, 3, 3, 3 along the labels 0 0 0 1 1 1 2 2 2 2 2."""
    labels = np.array([2, 2, 1, 0, 1, 0, 2, 2, 2, 1, 0], np.int64)
    parts = deal(4, labels, np.arange(11), partition={"kind": "shards", "shards_per_client": 1})
    counts = class_counts(labels, [part.train for part in parts], 3)
    assert sorted(counts.tolist()) == [[0, 0, 3], [0, 1, 2], [1, 2, 0], [2, 0, 0]]


def test_dirichlet_goes_from_even_to_skewed() -> None:
    labels = np.arange(4000, dtype=np.int64) % 4
    rows = np.arange(4000)

    def counts(alpha: float) -> np.ndarray:
        parts = deal(4, labels, rows, partition={"kind": "dirichlet", "alpha": alpha, "min_samples": 2})
        return class_counts(labels, [part.train for part in parts], 4)

    even, skewed = counts(1e6), counts(0.05)
    assert even.sum(axis=0).tolist() == [1000] * 4
    assert abs(even - 250).max() <= 5
    assert skewed.sum(axis=0).tolist() == [1000] * 4
    assert skewed.max(axis=0).min() > 500


def test_dirichlet_draws_until_everyone_has_enough() -> None:
    parts = deal(5, partition={"kind": "dirichlet", "alpha": 0.3, "min_samples": 12})
    assert min(len(part.train) for part in parts) >= 12


def test_dirichlet_gives_up_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"raise data\.partition\.alpha .*lower data\.partition\.min_samples"):
        deal(5, partition={"kind": "dirichlet", "alpha": 0.1, "min_samples": 21})


def test_calibration_is_set_aside_before_training() -> None:
    with_calibration = deal(4, calibration_fraction=0.2)
    without = deal(4)
    for part, whole in zip(with_calibration, without, strict=True):
        assert (len(part.train), len(part.calibration)) == (20, 5)
        assert sorted([*part.train, *part.calibration]) == whole.train.tolist()
        assert len(whole.calibration) == 0


def test_more_clients_than_samples() -> None:
    with pytest.raises(DataError, match=r"101 clients cannot share 100 training samples: use fewer clients"):
        deal(101)


def test_more_shards_than_samples() -> None:
    with pytest.raises(DataError, match=r"need 120 training samples, and there are 100.*shards_per_client"):
        deal(60, partition={"kind": "shards", "shards_per_client": 2})


def test_a_client_with_a_single_training_sample() -> None:
    """5 samples over 2 clients, half of them set aside: client 0 keeps 1 of 3 (round(1.5) is 2)."""
    with pytest.raises(DataError, match=r"client 0 is left with 1 training samples.*calibration_fraction"):
        deal(2, LABELS[:5], ROWS[:5], calibration_fraction=0.5)


def test_class_counts_by_hand() -> None:
    labels = np.array([0, 2, 2, 1])
    assert class_counts(labels, [np.array([0, 1, 2]), np.array([3])], 4).tolist() == [
        [1, 0, 2, 0],
        [0, 1, 0, 0],
    ]
