"""Objects that pass from actor to actor without passing through the driver.

Ray hands results of up to 100 KiB (`max_direct_call_object_size`) to their owner, the driver, and keeps only larger
ones in the nodes' stores. Tensors never go through the driver, so small ones carry padding that lifts them over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

INLINE_LIMIT_BYTES = 102_400

T = TypeVar("T")


@dataclass(frozen=True)
class StoreResident(Generic[T]):
    """A payload of tensors, always larger than what Ray would inline."""

    payload: T
    padding: np.ndarray[Any, Any]


def store_resident(payload: T) -> StoreResident[T]:
    return StoreResident(payload, np.zeros(INLINE_LIMIT_BYTES + 1, np.uint8))
