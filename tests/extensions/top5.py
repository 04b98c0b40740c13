"""Top-k accuracy: whether the right class is among the k largest logits.

    evaluation: {figures: [{name: "tests.extensions.top5:TopK", options: {k: 5}}]}

Legend: B samples of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from hsee_ray.config.plugins import Pluggable
from hsee_ray.method.figures import Metric

Array = np.ndarray[Any, Any]


class TopK(Metric):
    """Share of samples whose label is among the k best; with fewer classes than k it is 1."""

    class Options(Pluggable.Options):
        k: int = Field(5, ge=1)

    @property
    def name(self) -> str:
        return f"top{self.options.k}"

    def count(self, logits_BK: Array, labels_B: Array) -> Mapping[str, float]:
        right_B = np.take_along_axis(logits_BK, labels_B[:, None], axis=1)
        return {self.name: ((logits_BK > right_B).sum(axis=1) < self.options.k).sum()}

    def figure(self, counts: Mapping[str, float], samples: int) -> Mapping[str, float]:
        return {self.name: counts[self.name] / samples}
