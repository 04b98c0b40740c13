"""What a person should be told about figures that are bad, and what can be done: one line each, when they arise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import pyarrow.compute as pc

from hsee_ray.evaluation.calibration import Calibration, TierCalibration
from hsee_ray.evaluation.report import Evaluation
from hsee_ray.rundir.run import Run, kept_round
from hsee_ray.rundir.tables import percent

WANTED_HALF_WIDTH = 0.02
"""Of an accuracy drop, that a calibration is good enough to be relied on."""
MEMORISED_GAP = 0.15
"""Between the probability that a model gives the labels it was trained on, and its accuracy on the test images."""
SIGMAS = 2.0
"""Standard errors by which an accuracy must be above chance."""

_SIDES = {"client": "exits", "server": "servers"}


def of_training(run: Run) -> list[str]:
    """Of a finished run: tiers that have learnt no more than chance, and models that know their images by heart."""
    # Only of cross-entropy is the loss a probability.
    losses = _last_losses(run) if run.config.training.objective is None else {}
    at_chance: list[str] = []
    by_heart: list[str] = []
    for tier in run.summary["tiers"]:
        for side, called in _SIDES.items():
            accuracy, majority = tier[f"{side}_accuracy"], tier["majority_rate"]
            if accuracy is None or majority is None:
                continue
            samples = tier["eval_samples"] * tier["clients"]
            if accuracy <= majority + SIGMAS * math.sqrt(majority * (1 - majority) / samples):
                at_chance.append(f"{tier['name']}'s {called} in {percent(accuracy)} (that class: {percent(majority)})")
                continue
            loss = losses.get((tier["name"], f"{side}_loss"))
            if loss is not None and math.exp(-loss) - accuracy > MEMORISED_GAP:
                known = f"{percent(math.exp(-loss))} of training for {percent(accuracy)} of test"
                by_heart.append(f"{tier['name']}'s {called} {known}")
    lines = []
    if at_chance:
        lines.append(
            f"right no more often than the commonest class alone would be: {', '.join(at_chance)}; train longer "
            "(training.rounds), try another training.optimizer.lr, look at the images (hsee data)"
        )
    if by_heart:
        lines.append(
            f"training images known by heart (mean probability of their labels for accuracy): {', '.join(by_heart)}; "
            "more images or data.augment help, or training.keep=best with data.validation_fraction=0.1"
        )
    return lines


def of_calibration(calibration: Calibration) -> list[str]:
    """Of gates on the samples that they were picked on."""
    lines, few = [], []
    for name, tier in calibration.tiers.items():
        lines += _of_gate(name, tier.accuracy, _random_accuracy(tier), tier.client_accuracy, tier.offload_ratio)
        if tier.drop_half_width > WANTED_HALF_WIDTH:
            needed = math.ceil(tier.samples * (tier.drop_half_width / WANTED_HALF_WIDTH) ** 2)
            wanted = f"{100 * WANTED_HALF_WIDTH:.0f}"
            many = f"{tier.samples:,} samples; about {needed:,} make it {wanted}"
            few.append(f"{100 * tier.drop_half_width:.0f} for {name} ({many})")
    if few:
        lines.append(
            "few samples to calibrate on: on other images the accuracy drop may be off by as many points: "
            f"{', '.join(few)}; train with a larger data.calibration_fraction"
        )
    return lines


def of_evaluation(evaluation: Evaluation) -> list[str]:
    """Of the calibrated gates, and of temperatures that do harm, on other samples than they were picked on."""
    rows = {row.name: row for row in evaluation.of("tier") if row.gate == "calibrated"}
    alone = {row.name: row.accuracy for row in evaluation.of("tier") if row.gate == "local"}
    lines = []
    for name, row in rows.items():
        lines += _of_gate(name, row.accuracy, row.random_accuracy, alone[name], row.offload_ratio)
    for exits in evaluation.exits:
        scaled = exits.scaled_calibration_error
        if exits.scope == "tier" and scaled is not None and scaled > exits.calibration_error:
            lines.append(
                f"{exits.name}: its temperature makes the calibration error larger here, {scaled:.3f} for "
                f"{exits.calibration_error:.3f}; calibrate on more samples (data.calibration_fraction)"
            )
    return lines


def warnings(lines: list[str]) -> str:
    """The lines as they are printed below a table; nothing where there are none."""
    return "".join(f"\nwarning: {line}" for line in lines)


def _of_gate(name: str, accuracy: float, random: float, alone: float, share: float) -> list[str]:
    """Whether a gate that sends a share of the samples is worth having."""
    if not 0 < share < 1:
        return []  # it decides nothing
    if accuracy < alone:
        return [
            f"{name}: with its gate {percent(accuracy)} are right, with its exits alone {percent(alone)}: the servers "
            "do harm here; keep the samples on the device, or train longer"
        ]
    if accuracy <= random:
        return [
            f"{name}: its gate is no better than chance, {percent(accuracy)} are right, and {percent(random)} if the "
            "same share were sent at random: its exits do not know what they do not know; train longer, or try another "
            "--confidence"
        ]
    return []


def _random_accuracy(tier: TierCalibration) -> float:
    """Expected of a gate that sends the same share at random."""
    return tier.client_accuracy + tier.offload_ratio * (tier.server_accuracy - tier.client_accuracy)


def _last_losses(run: Run) -> Mapping[tuple[str, str], float]:
    """Mean losses of the last round, by tier and metric; nats per sample."""
    values: dict[tuple[str, str], list[float]] = {}
    losses = (pc.field("round") == kept_round(run.summary)) & pc.field("metric").isin(["client_loss", "server_loss"])
    for row in run.metrics.filter(losses).to_pylist():
        values.setdefault((row["tier"], row["metric"]), []).append(_number(row["value"]))
    return {key: fmean(each) for key, each in values.items()}


def _number(value: Any) -> float:
    return math.inf if value is None else float(value)
