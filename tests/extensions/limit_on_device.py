"""The half of `limit.py` that is installed on a device: it needs numpy only."""

from __future__ import annotations

import numpy as np

from hsee_ray.edge.stages import Array, DeviceStage


class Limit(DeviceStage):
    def __init__(self, high: float) -> None:
        self.high = np.float32(high)

    def __call__(self, features: Array) -> Array:
        return np.minimum(features, self.high)
