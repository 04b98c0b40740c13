"""A stage of one's own: Gaussian noise on what a device sends, in proportion to how much its features vary.

tiers:
  - {name: sensor, ..., stages: [{name: tests.extensions.noise:Noise, options: {share: 0.1}}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field

from hsee_ray.features.stages import Array, Stage


class Noise(Stage):
    """Adds noise in training. In evaluation and use features travel as they are, so that a device has nothing to do."""

    class Options(Stage.Options):
        share: float = Field(0.1, ge=0)
        """Standard deviation of the noise, as a share of the features' own."""

    spread: torch.Tensor

    def __init__(self, options: Any, feature_shape: Sequence[int]) -> None:
        super().__init__(options, feature_shape)
        self.register_buffer("spread", torch.zeros(()))

    def for_training(self, features: Array, axis: int, rng: np.random.Generator) -> Array:
        now = float(features.std())
        self.spread.copy_(torch.tensor(now if self.spread == 0 else 0.9 * float(self.spread) + 0.1 * now))
        noise = rng.standard_normal(features.shape, np.float32)
        return features + np.float32(self.options.share * float(self.spread)) * noise
