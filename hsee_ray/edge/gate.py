"""Exit heads' confidences, and the gate that decides who answers. Needs numpy only: a device has no torch.

Legend: B batch, K classes. Confidences lie in [0, 1]; a client answers alone where confidence > tau.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from hsee_ray.edge.task import Confidence, Task

Array = np.ndarray[Any, Any]

NEVER_SENDS = -1.0
"""A tau below every confidence: the client answers everything."""
SENDS_ALL = 1.0
"""A tau that no confidence exceeds: the server answers everything."""


@dataclass(frozen=True)
class Gate:
    """Decides who answers: the client where the confidence of its exit exceeds tau, else the server."""

    kind: Confidence
    tau: float
    temperature: float = 1.0
    """Logits are divided by it first; above 1 it makes an exit less sure (Guo et al. 2017, arXiv:1706.04599)."""

    def __post_init__(self) -> None:
        """Raises ValueError for what no gate can be."""
        if self.kind not in get_args(Confidence):
            raise ValueError(f"there is no confidence {self.kind!r}")
        if not NEVER_SENDS <= self.tau <= SENDS_ALL:
            raise ValueError(f"tau is {self.tau}; it lies from {NEVER_SENDS:g} to {SENDS_ALL:g}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature is {self.temperature}; it is above 0")

    def confidence(self, logits_BK: Array, task: Task) -> Array:
        """Confidence (B,) of logits (B, K), as the task reads them."""
        return task.confidence(logits_BK, self.kind, self.temperature)

    def exits_B(self, logits_BK: Array, task: Task) -> Array:
        """Whether the client answers each sample (B,) alone."""
        exited_B: Array = self.confidence(logits_BK, task) > self.tau
        return exited_B
