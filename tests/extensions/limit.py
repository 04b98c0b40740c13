"""A stage of one's own that a device applies, too: values above a limit become the limit.

tiers:
  - {name: sensor, ..., stages: [{name: tests.extensions.limit:Limit, options: {high: 1.0}}]}
"""

from __future__ import annotations

import numpy as np

from hsee_ray.edge.named import NamedPart
from hsee_ray.features.stages import Array, Stage


class Limit(Stage):
    """Limits values in training, in evaluation and in use."""

    class Options(Stage.Options):
        high: float

    def for_training(self, features: Array, axis: int, rng: np.random.Generator) -> Array:
        return self.for_inference(features, axis)

    def for_inference(self, features: Array, axis: int) -> Array:
        return np.minimum(features, np.float32(self.options.high))

    def on_device(self) -> NamedPart:
        return NamedPart("tests.extensions.limit_on_device:Limit", {"high": self.options.high})
