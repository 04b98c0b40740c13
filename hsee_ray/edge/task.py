"""Tasks: what a network's logits mean. Numpy only, so that a device reads its exit as the servers do.

One of your own is a frozen dataclass derived from Task: `task: package.module:Name` (docs/extend.md).
Legend: B samples, K classes. Labels are class numbers, int64 from 0 to K - 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Confidence = Literal["entropy", "max_prob", "margin"]


@dataclass(frozen=True)
class Task(ABC):
    """Reads logits; its fields are its options. float32 logits (B, K), float64 results."""

    objective: ClassVar[str] = "cross_entropy"
    """Objective of both sides unless `training.objective` names another."""

    @abstractmethod
    def predict(self, logits_BK: Array) -> Array:
        """The answer to each sample: a label (B,), int64."""

    @abstractmethod
    def right(self, prediction_B: Array, labels_B: Array) -> Array:
        """Whether each answer (B,) is right; -1 stands for no answer, which is never right."""

    @abstractmethod
    def confidence(self, logits_BK: Array, kind: Confidence, temperature: float = 1.0) -> Array:
        """How sure the exit is of its answers (B,), in [0, 1]; 0 where logits are NaN or infinite.

        `kind` is the configuration's `exits.confidence`. `max_prob` is the probability that the answer is right.
        """

    @abstractmethod
    def log_likelihood(self, logits_BK: Array, labels_B: Array, temperature: float) -> Array:
        """ln of the probability (B,) that logits / temperature give to the labels: what a temperature is fitted to."""


@dataclass(frozen=True)
class Classification(Task):
    """One class for each sample: p = softmax(logits / temperature)."""

    def predict(self, logits_BK: Array) -> Array:
        label_B: Array = logits_BK.argmax(axis=1)
        return label_B

    def right(self, prediction_B: Array, labels_B: Array) -> Array:
        right_B: Array = prediction_B == labels_B
        return right_B

    def confidence(self, logits_BK: Array, kind: Confidence, temperature: float = 1.0) -> Array:
        """entropy: 1 - H(p)/ln K with H in nats (BranchyNet, arXiv:1709.01686, normalised to [0, 1]);
        max_prob: the largest probability; margin: the difference of the two largest.
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
        clamped_B: Array = np.where(np.isfinite(logits_BK).all(axis=1), value_B.clip(0.0, 1.0), 0.0)
        return clamped_B

    def log_likelihood(self, logits_BK: Array, labels_B: Array, temperature: float) -> Array:
        value_B: Array = log_softmax(logits_BK, temperature)[np.arange(len(labels_B)), labels_B]
        return value_B


def log_softmax(logits_BK: Array, temperature: float = 1.0) -> Array:
    """ln softmax(logits / temperature), (B, K) in float64; NaN in a row that holds NaN or infinity."""
    scaled_BK = logits_BK.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):
        scaled_BK -= scaled_BK.max(axis=1, keepdims=True)
        log_p_BK: Array = scaled_BK - np.log(np.exp(scaled_BK).sum(axis=1, keepdims=True))
    return log_p_BK
