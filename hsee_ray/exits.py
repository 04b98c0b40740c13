"""Exit heads' confidences, and the gate that decides who answers.

Legend: B batch, K classes. Confidences lie in [0, 1]; a client answers alone where confidence > tau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from hsee_ray.reports import CONFIDENCE_BINS, EvaluationReport

Array = np.ndarray[Any, Any]


def confidence(logits_BK: torch.Tensor, kind: Literal["entropy", "max_prob", "margin"]) -> torch.Tensor:
    """Confidence (B,) in float64 of logits (B, K).

    entropy: 1 - H(p)/ln K with H in nats (BranchyNet, arXiv:1709.01686, normalised to [0, 1]);
    max_prob: the largest probability; margin: the difference of the two largest.
    """
    log_p_BK = torch.log_softmax(logits_BK.double(), dim=1)
    p_BK = log_p_BK.exp()
    if kind == "entropy":
        # p log p is 0 at p = 0, where log p is -inf.
        entropy_nats_B = -torch.where(p_BK > 0, p_BK * log_p_BK, 0.0).sum(dim=1)
        value_B = 1.0 - entropy_nats_B / math.log(logits_BK.shape[1])
    elif kind == "max_prob":
        value_B = p_BK.max(dim=1).values
    else:
        top_B2 = p_BK.topk(2, dim=1).values
        value_B = top_B2[:, 0] - top_B2[:, 1]
    return value_B.clamp(0.0, 1.0)


def evaluation_report(
    labels_B: Array,
    n_classes: int,
    client_prediction_B: Array,
    confidence_B: Array,
    server_prediction_B: Array | None,
    taus: Sequence[float],
    sent_bytes: int,
) -> EvaluationReport:
    """Counts of right answers: client alone, server alone, and gated at every tau.

    Without a server (cut L) the client answers everything: nothing is offloaded at any tau.
    """
    client_right_B = client_prediction_B == labels_B
    if server_prediction_B is None:
        gated = tuple(int(client_right_B.sum()) for _ in taus)
        offloaded = tuple(0 for _ in taus)
    else:
        server_right_B = server_prediction_B == labels_B
        stays_TB = [confidence_B > tau for tau in taus]
        gated = tuple(int(np.where(stays_B, client_right_B, server_right_B).sum()) for stays_B in stays_TB)
        offloaded = tuple(int((~stays_B).sum()) for stays_B in stays_TB)
    bins_B = np.minimum((confidence_B * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    return EvaluationReport(
        samples=len(labels_B),
        client_correct=int(client_right_B.sum()),
        server_correct=None if server_prediction_B is None else int((server_prediction_B == labels_B).sum()),
        gated_correct=gated,
        offloaded=offloaded,
        sent_bytes=sent_bytes,
        label_counts=tuple(np.bincount(labels_B, minlength=n_classes).tolist()),
        confidence_counts=tuple(np.bincount(bins_B, minlength=CONFIDENCE_BINS).tolist()),
    )
