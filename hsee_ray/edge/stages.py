"""Feature stages on a device, named by its bundle and applied before the codec. Needs numpy only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class DeviceStage(ABC):
    """Does on a device what a stage of the configuration does in inference; its options come by keyword."""

    @abstractmethod
    def __call__(self, features: Array) -> Array:
        """float32 features in the shape of those that are given, (B, C, H, W) or (B, ...), which stay as they are."""
