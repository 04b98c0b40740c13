"""Exit heads' confidences, and the gate that decides who answers. Needs numpy only: a device has no torch.

Legend: B batch, K classes. Confidences lie in [0, 1]; a client answers alone where confidence > tau.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Array = np.ndarray[Any, Any]
Confidence = Literal["entropy", "max_prob", "margin"]

NEVER_SENDS = -1.0
"""A tau below every confidence: the client answers everything."""
SENDS_ALL = 1.0
"""A tau that no confidence exceeds: the server answers everything."""


@dataclass(frozen=True)
class Gate:
    """Who answers: the client where the confidence of its exit exceeds tau, else the server."""

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

    def confidence(self, logits_BK: Array) -> Array:
        return confidence(logits_BK, self.kind, self.temperature)

    def exits_B(self, logits_BK: Array) -> Array:
        """Whether the client answers each sample (B,) alone."""
        exited_B: Array = self.confidence(logits_BK) > self.tau
        return exited_B


def confidence(logits_BK: Array, kind: Confidence, temperature: float = 1.0) -> Array:
    """Confidence (B,) in float64 of logits (B, K).

    entropy: 1 - H(p)/ln K with H in nats (BranchyNet, arXiv:1709.01686, normalised to [0, 1]);
    max_prob: the largest probability; margin: the difference of the two largest. p = softmax(logits / temperature).
    It is 0 where logits are no numbers or infinite, so that such a sample is never answered by its exit.
    """
    log_p_BK = log_softmax(logits_BK, temperature)
    p_BK = np.exp(log_p_BK)
    if kind == "entropy":
        # p log p is 0 at p = 0, where log p is -inf.
        entropy_nats_B = -np.multiply(p_BK, log_p_BK, out=np.zeros_like(p_BK), where=p_BK > 0).sum(axis=1)
        value_B = 1.0 - entropy_nats_B / math.log(logits_BK.shape[1])
    elif kind == "max_prob":
        value_B = p_BK.max(axis=1)
    else:
        top_B2 = np.partition(p_BK, -2, axis=1)[:, -2:]
        value_B = top_B2[:, 1] - top_B2[:, 0]
    clamped_B: Array = np.where(np.isnan(log_p_BK).any(axis=1), 0.0, value_B.clip(0.0, 1.0))
    return clamped_B


def log_softmax(logits_BK: Array, temperature: float = 1.0) -> Array:
    """ln softmax(logits / temperature), (B, K) in float64; NaN in a row that holds NaN or infinity."""
    scaled_BK = logits_BK.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):
        scaled_BK -= scaled_BK.max(axis=1, keepdims=True)
        log_p_BK: Array = scaled_BK - np.log(np.exp(scaled_BK).sum(axis=1, keepdims=True))
    return log_p_BK
