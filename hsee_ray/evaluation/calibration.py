"""How sure an exit must be: its temperature, and the tau that meets a target on held-out data.

Everything here sees the part of the clients' own training data that is set aside (`data.calibration_fraction`), never
the test set. Shapes: N samples, K classes, M thresholds. Needs no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hsee_ray.config.problems import read_stored
from hsee_ray.edge.gate import NEVER_SENDS, SENDS_ALL, Gate
from hsee_ray.edge.task import Confidence
from hsee_ray.errors import ConfigError
from hsee_ray.method.predictions import Answers
from hsee_ray.rundir.run import Run
from hsee_ray.storage import write_whole

Array = np.ndarray[Any, Any]

CALIBRATION_FILE = "calibration.json"
ECE_BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Range in which a temperature is looked for: an exit that is always right would ask for 0."""

LEAST_GAP = 1e-6
"""Confidences that lie closer are not told apart: a device's arithmetic is not this one's."""
TOLERANCE = 1e-9
"""Of shares that are compared with a bound."""

_TARGET = re.compile(r"\s*(offload|accuracy_drop)\s*<=\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Target:
    """Bound of a gate: the share of samples sent, or the accuracy lost against sending all of them."""

    quantity: Literal["offload", "accuracy_drop"]
    bound: float

    def __str__(self) -> str:
        short = f"{self.bound:g}"
        return f"{self.quantity}<={short if float(short) == self.bound else repr(self.bound)}"


def parse_target(text: str) -> Target:
    """`offload<=0.3` or `accuracy_drop<=0.01`. Raises ConfigError for anything else.

    An accuracy drop below 0 asks for a gain over sending everything.
    """
    match = _TARGET.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        bound = float(match[2])
    except ValueError:
        raise ConfigError(f"--target {text!r}: write offload<=0.3 or accuracy_drop<=0.01, in quotes") from None
    lowest = 0 if match[1] == "offload" else -1
    if not lowest <= bound <= 1:
        raise ConfigError(f"--target {text!r}: {match[1]} is a share, from {lowest} to 1")
    return Target("offload" if match[1] == "offload" else "accuracy_drop", bound)


@dataclass(frozen=True)
class Curve:
    """Every threshold that separates N samples, with its effect, in ascending order of tau."""

    tau_M: Array
    offload_M: Array
    """Share of the samples with a confidence of at most tau."""
    accuracy_M: Array
    """Share of right answers, the server's for those and the client's for the others."""

    @property
    def drop_M(self) -> Array:
        """Accuracy lost against sending everything."""
        lost: Array = self.accuracy_M[-1] - self.accuracy_M
        return lost


def gate_curve(confidence_N: Array, client_right_N: Array, server_right_N: Array) -> Curve:
    """The curve of a gate. Its thresholds lie midway between neighbouring confidences that differ by more than
    LEAST_GAP, so rounding flips no decision; the first sends nothing and the last everything.
    """
    order = np.argsort(confidence_N, kind="stable")
    sorted_N = confidence_N[order]
    ends = np.flatnonzero(np.diff(sorted_N) > LEAST_GAP) + 1
    sent_M = np.concatenate([[0], ends, [len(sorted_N)]])
    between = (sorted_N[ends - 1] + sorted_N[ends]) / 2
    by_server = np.concatenate([[0], np.cumsum(server_right_N[order])])
    by_client = np.concatenate([[0], np.cumsum(client_right_N[order])])
    right_M = by_server[sent_M] + by_client[-1] - by_client[sent_M]
    tau_M = np.concatenate([[NEVER_SENDS], between, [SENDS_ALL]])
    return Curve(tau_M, sent_M / len(sorted_N), right_M / len(sorted_N))


def pick(curve: Curve, target: Target) -> int | None:
    """Index of the threshold that meets a target at the least cost; None when none does.

    For a share of samples it is the most accurate threshold that sends no more, of equal ones the highest tau. For an
    accuracy drop it is the lowest tau at and above which no threshold loses more, so that a lucky dip of a noisy curve
    is not taken; for a drop below 0, a gain, it is the lowest tau that reaches it.
    """
    if target.quantity == "offload":
        accuracy_M = curve.accuracy_M[curve.offload_M <= target.bound]
        return int(np.flatnonzero(accuracy_M == accuracy_M.max())[-1])
    meets = curve.drop_M <= target.bound + TOLERANCE
    if target.bound >= 0:
        misses = np.flatnonzero(~meets)
        return int(misses[-1]) + 1 if len(misses) else 0
    allowed = np.flatnonzero(meets)
    return int(allowed[0]) if len(allowed) else None


def fit_temperature(answers: Answers) -> float:
    """T at which logits / T make the labels most likely (Guo et al. 2017, arXiv:1706.04599).

    1 where that would make the calibration error larger: on few samples the two need not agree.
    """

    from scipy.optimize import minimize_scalar  # takes a second to import, and a run only reads what was calibrated

    def loss_nats(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return float(-answers.task.log_likelihood(answers.logits_NK, answers.labels_N, temperature).mean())

    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(loss_nats, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    temperature = math.exp(float(found.x))
    return temperature if calibration_error(answers, temperature) < calibration_error(answers, 1.0) else 1.0


def reliability(answers: Answers, temperature: float) -> tuple[Array, Array, Array]:
    """Samples, mean largest probability and accuracy in each of ECE_BINS equal bins of the largest probability.

    Empty bins have 0 in all three.
    """
    largest_N = answers.task.confidence(answers.logits_NK, "max_prob", temperature)
    bin_N = np.minimum((largest_N * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    counts = np.bincount(bin_N, minlength=ECE_BINS)
    divisors = np.maximum(counts, 1)
    return (
        counts,
        np.bincount(bin_N, largest_N, ECE_BINS) / divisors,
        np.bincount(bin_N, answers.client_right_N, ECE_BINS) / divisors,
    )


def calibration_error(answers: Answers, temperature: float) -> float:
    """Expected calibration error: the mean over samples of |accuracy - mean largest probability| of their bin."""
    counts, means, accuracies = reliability(answers, temperature)
    return float((counts * np.abs(accuracies - means)).sum() / counts.sum())


@dataclass(frozen=True)
class TierCalibration:
    """One tier's gate, and what it does on the samples that it was picked on."""

    temperature: float
    tau: float
    samples: int
    offload_ratio: float
    accuracy: float
    client_accuracy: float
    """Everything answered by the exits."""
    server_accuracy: float
    """Everything sent."""
    drop_half_width: float
    """Of a 95 % interval around the accuracy drop, for the number of samples alone."""
    sent_bytes: float
    """Features per sample, spread over all samples."""

    @property
    def accuracy_drop(self) -> float:
        return self.server_accuracy - self.accuracy


def tier_calibration(gate: Gate, curve: Curve, answers: Answers) -> TierCalibration:
    """Figures of a gate and of the two ends of its curve; the answers are those with everything sent."""
    stays_N = gate.exits_B(answers.logits_NK, answers.task)
    lost_N = np.where(stays_N, answers.server_right_N.astype(np.int64) - answers.client_right_N, 0)
    sent = float((~stays_N).mean())
    return TierCalibration(
        temperature=gate.temperature,
        tau=gate.tau,
        samples=answers.samples,
        offload_ratio=sent,
        accuracy=float(np.where(stays_N, answers.client_right_N, answers.server_right_N).mean()),
        client_accuracy=float(curve.accuracy_M[0]),
        server_accuracy=float(curve.accuracy_M[-1]),
        drop_half_width=_half_width(int((lost_N > 0).sum()), int((lost_N < 0).sum()), answers.samples),
        sent_bytes=sent * answers.sent_bytes / answers.samples,
    )


def _half_width(lost: int, won: int, samples: int) -> float:
    """Half width of a 95 % interval around (lost - won) / samples.

    It reaches the farther end of the adjusted Wald interval of paired proportions (Bonett and Price 2012,
    doi:10.3102/1076998611411915), which stays wide where few samples were drawn, or none was lost or won.
    """
    p_lost, p_won = (lost + 1) / (samples + 2), (won + 1) / (samples + 2)
    centre = p_lost - p_won
    half = 1.96 * math.sqrt((p_lost + p_won - centre**2) / (samples + 2))
    return half + abs(centre - (lost - won) / samples)


@dataclass(frozen=True)
class Calibration:
    """The gates of a run's tiers. Tiers without servers have none."""

    target: str
    confidence: Confidence
    network: str
    """The `weights_sha256` of the models that it belongs to."""
    tiers: Mapping[str, TierCalibration]

    def gate(self, tier: str) -> Gate | None:
        """The gate of a tier, or None where it has none."""
        found = self.tiers.get(tier)
        return None if found is None else Gate(self.confidence, found.tau, found.temperature)


def save_calibration(run_dir: Path, calibration: Calibration) -> None:
    """Stores it with the run, in the place of an earlier one."""
    text = json.dumps(asdict(calibration), indent=2, allow_nan=False)
    write_whole(run_dir / CALIBRATION_FILE, f"{text}\n".encode())


def calibration_of(run: Run) -> Calibration | None:
    """The gates that were calibrated for a run's weights; None when that has not been done. Raises DataError."""
    found = load_calibration(run.path)
    return found if found is not None and found.network == run.summary["weights_sha256"] else None


def load_calibration(run_dir: Path) -> Calibration | None:
    """Calibration stored with a run, or None. Raises DataError when the file is damaged."""
    path = run_dir / CALIBRATION_FILE
    return read_stored(path, Calibration, "run hsee calibrate again") if path.is_file() else None
