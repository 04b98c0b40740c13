"""Which samples a run takes, and how they are dealt out to its clients (docs/method.md, "Data").

Shapes: N samples of a file. An index is a row of that file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hsee_ray.config.schema import DataConfig, DirichletPartition, IidPartition, ShardsPartition
from hsee_ray.errors import DataError
from hsee_ray.rng import generator

Indices = npt.NDArray[np.int64]

_DIRICHLET_DRAWS = 1000
_LEAST_TRAINING_SAMPLES = 2


@dataclass(frozen=True, eq=False)
class ClientIndices:
    """One client's share: what it trains on, and what is set aside, to calibrate its exit and to find the best round.

    All ascend.
    """

    train: Indices
    calibration: Indices
    validation: Indices


def select(labels_N: npt.NDArray[np.int64], n_samples: int | None, seed: int, split: str) -> Indices:
    """Ascending indices of a seeded subset of the split `train` or `test`, or of all for `n_samples` None.

    Raises DataError when the split has fewer samples.
    """
    if n_samples is None:
        return np.arange(len(labels_N), dtype=np.int64)
    if n_samples > len(labels_N):
        raise DataError(
            f"data.{split}_samples is {n_samples}, and the {split} split has {len(labels_N)} samples: "
            f"ask for at most {len(labels_N)}"
        )
    return np.sort(generator(seed, "subset", split).permutation(len(labels_N))[:n_samples])


def partition(
    labels_N: npt.NDArray[np.int64],
    indices: Indices,
    n_clients: int,
    n_classes: int,
    config: DataConfig,
    seed: int,
) -> tuple[ClientIndices, ...]:
    """Deal the selected rows `indices` out to the clients, each row exactly once.

    Raises DataError when there are more clients than samples, when a client is left with fewer than two
    training samples, or when no Dirichlet draw gives every client `min_samples`.
    """
    if n_clients > len(indices):
        raise DataError(
            f"{n_clients} clients cannot share {len(indices)} training samples: "
            "use fewer clients (tiers) or raise data.train_samples"
        )
    match config.partition:
        case IidPartition():
            parts = _deal_iid(indices, n_clients, seed)
        case DirichletPartition() as dirichlet:
            parts = _deal_dirichlet(labels_N, indices, n_clients, n_classes, dirichlet, seed)
        case ShardsPartition() as shards:
            parts = _deal_shards(labels_N, indices, n_clients, shards.shards_per_client, seed)
    return tuple(_set_aside(part, client, config, seed) for client, part in enumerate(parts))


def class_counts(
    labels_N: npt.NDArray[np.int64],
    parts: Sequence[Indices],
    n_classes: int,
) -> npt.NDArray[np.int64]:
    """Samples (clients, classes) of each class in each part."""
    return np.stack([np.bincount(labels_N[part], minlength=n_classes) for part in parts])


def _deal_iid(indices: Indices, n_clients: int, seed: int) -> list[Indices]:
    return np.array_split(generator(seed, "partition", "iid").permutation(indices), n_clients)


def _deal_dirichlet(
    labels_N: npt.NDArray[np.int64],
    indices: Indices,
    n_clients: int,
    n_classes: int,
    config: DirichletPartition,
    seed: int,
) -> list[Indices]:
    """Spread each class over the clients by a draw from Dirichlet(alpha).

    After Hsu et al. 2019 (arXiv:1909.06335), who draw a mixture of classes for each client; drawn by class, no image
    is used twice or left over.
    """
    class_sizes = np.bincount(labels_N[indices], minlength=n_classes)
    for draw in range(_DIRICHLET_DRAWS):
        rng = generator(seed, "partition", "dirichlet", draw)
        shares = rng.dirichlet(np.full(n_clients, config.alpha), size=n_classes)
        ends = np.rint(np.cumsum(shares, axis=1) * class_sizes[:, None]).astype(np.int64)
        ends[:, -1] = class_sizes
        sizes = np.diff(ends, axis=1, prepend=0).sum(axis=0)
        if sizes.min() >= config.min_samples:
            break
    else:
        raise DataError(
            f"none of {_DIRICHLET_DRAWS} Dirichlet draws gives each of {n_clients} clients "
            f"{config.min_samples} of the {len(indices)} samples: raise data.partition.alpha "
            f"({config.alpha}), lower data.partition.min_samples, or use fewer clients"
        )
    shuffled = generator(seed, "partition", "classes").permutation(indices)
    by_class = [np.split(shuffled[labels_N[shuffled] == k], ends[k, :-1]) for k in range(n_classes)]
    return [np.concatenate([pieces[client] for pieces in by_class]) for client in range(n_clients)]


def _deal_shards(
    labels_N: npt.NDArray[np.int64], indices: Indices, n_clients: int, shards_per_client: int, seed: int
) -> list[Indices]:
    """Cut the samples, sorted by label, into equal shards; the last take one more each where some remain."""
    n_shards = n_clients * shards_per_client
    if n_shards > len(indices):
        raise DataError(
            f"{n_clients} clients with {shards_per_client} shards each need {n_shards} training samples, "
            f"and there are {len(indices)}: lower data.partition.shards_per_client or use fewer clients"
        )
    by_label = indices[np.argsort(labels_N[indices], kind="stable")]
    size, remainder = divmod(len(indices), n_shards)
    sizes = np.full(n_shards, size)
    sizes[n_shards - remainder :] += 1
    shards = np.split(by_label, np.cumsum(sizes)[:-1])
    order = generator(seed, "partition", "shards").permutation(n_shards)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in order.reshape(n_clients, -1)]


def _set_aside(part: Indices, client: int, config: DataConfig, seed: int) -> ClientIndices:
    n_calibration = round(config.calibration_fraction * len(part))
    n_aside = n_calibration + round(config.validation_fraction * len(part))
    if len(part) - n_aside < _LEAST_TRAINING_SAMPLES:
        raise DataError(
            f"client {client} is left with {max(0, len(part) - n_aside)} training samples and needs "
            f"{_LEAST_TRAINING_SAMPLES}: use fewer clients, raise data.train_samples, "
            "or lower data.calibration_fraction or data.validation_fraction"
        )
    shuffled = generator(seed, "calibration", client).permutation(part)
    return ClientIndices(
        train=np.sort(shuffled[n_aside:]),
        calibration=np.sort(shuffled[:n_calibration]),
        validation=np.sort(shuffled[n_calibration:n_aside]),
    )
