"""A task: grades in order, such as 1 to 5 stars. An answer counts as right when it is at most `within` off.

On a device it needs numpy only. In a configuration:
    task: {name: "tests.extensions.grades:Grades", options: {within: 1}}
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hsee_ray.edge.task import Array, Confidence, Task, log_softmax


@dataclass(frozen=True)
class Grades(Task):
    """The answer is the median grade; how sure it is, the probability of the grades that would be right."""

    within: int = 1

    def __post_init__(self) -> None:
        if self.within < 0:
            raise ValueError(f"within is {self.within}; it is 0 or more")

    def predict(self, logits_BK: Array) -> Array:
        below_BK = np.exp(log_softmax(logits_BK)).cumsum(axis=1)
        return np.asarray((below_BK < 0.5).sum(axis=1).clip(0, logits_BK.shape[1] - 1), np.int64)

    def right(self, prediction_B: Array, labels_B: Array) -> Array:
        return np.asarray((prediction_B >= 0) & (abs(prediction_B - labels_B) <= self.within))

    def confidence(self, logits_BK: Array, kind: Confidence, temperature: float = 1.0) -> Array:
        p_BK = np.exp(log_softmax(logits_BK, temperature))
        near_BK = abs(np.arange(logits_BK.shape[1]) - self.predict(logits_BK)[:, np.newaxis]) <= self.within
        return np.nan_to_num(np.where(near_BK, p_BK, 0.0).sum(axis=1)).clip(0.0, 1.0)

    def log_likelihood(self, logits_BK: Array, labels_B: Array, temperature: float) -> Array:
        return np.asarray(log_softmax(logits_BK, temperature)[np.arange(len(labels_B)), labels_B])
