"""What becomes of the mean of a unit's copies: the average itself, or a step towards it.

Server optimisers of federated learning (Reddi et al. 2021, arXiv:2003.00295): the way from the average before, w, to
the mean of the copies, d = mean - w, takes the place of a gradient. Needs numpy only, as the aggregator does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hsee_ray.config.schema import AdamStep, AverageStepConfig, MeanStep, MomentumStep
from hsee_ray.models.state import Arrays, UnitState

Array = np.ndarray[Any, Any]


def step_average(mean: UnitState, before: UnitState | None, copies: int, step: AverageStepConfig) -> UnitState:
    """The new average of a unit: of its parameters; all else is as in the mean of its `copies`.

    Without an average before it, and of a single copy, which is left as it is, it is the mean.
    """
    if isinstance(step, MeanStep) or before is None:
        return mean
    if copies == 1:
        return replace(mean, moments=before.moments)
    parameters: Arrays = {}
    moments: dict[str, Arrays] = {}
    for name, value in mean.parameters.items():
        parameters[name], moments[name] = _stepped(value, before.parameters[name], before.moments.get(name, {}), step)
    return replace(mean, parameters=parameters, moments=moments)


def _stepped(mean: Array, before: Array, moments: Arrays, step: MomentumStep | AdamStep) -> tuple[Array, Arrays]:
    """One parameter, computed in float64 and rounded once, and its moments."""
    w, none = before.astype(np.float64), np.zeros(before.shape)
    d = mean.astype(np.float64) - w
    first = moments.get("first", none).astype(np.float64)
    if isinstance(step, MomentumStep):
        # FedAvgM (Hsu et al. 2019, arXiv:1909.06335).
        first = step.momentum * first + d
        w += step.lr * first
        return w.astype(before.dtype), {"first": first.astype(before.dtype)}
    second = moments.get("second", none).astype(np.float64)
    first = step.betas[0] * first + (1 - step.betas[0]) * d
    second = step.betas[1] * second + (1 - step.betas[1]) * d**2
    w += step.lr * first / (np.sqrt(second) + step.eps)
    return w.astype(before.dtype), {"first": first.astype(before.dtype), "second": second.astype(before.dtype)}
