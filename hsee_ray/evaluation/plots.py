"""Pictures of an evaluation: what a gate trades, how exits' confidences lie, and whether they can be believed.

One panel per tier with exits. `answers` are those of each tier's clients together, with everything sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsee_ray.edge.gate import SENDS_ALL, Gate
from hsee_ray.evaluation.calibration import ECE_BINS, gate_curve, reliability
from hsee_ray.evaluation.report import Evaluation
from hsee_ray.method.predictions import Answers
from hsee_ray.method.reports import CONFIDENCE_BINS
from hsee_ray.pictures import drawing

COLUMNS = 4
Corner = Literal["lower right", "upper right", "upper left"]
CLIENT, SERVER, RANDOM, RIGHT, WRONG = "#1f6fb4", "#c8551b", "#8a8a8a", "#2b8a5f", "#c23b3b"


@drawing()
def draw(evaluation: Evaluation, answers: Mapping[str, Answers]) -> dict[str, Figure]:
    """The three pictures by name; none where no client has an exit."""
    if not answers:
        return {}
    return {
        "accuracy_offload": _accuracy_offload(evaluation, answers),
        "confidence": _confidence(evaluation, answers),
        "reliability": _reliability(evaluation, answers),
    }


@drawing()
def save_figures(directory: Path, split: str, figures: Mapping[str, Figure]) -> None:
    """`<split>-<name>.png`, and the same on TensorBoard in `tensorboard/<split>`, in the place of earlier ones."""
    from torch.utils.tensorboard import SummaryWriter

    board = directory / "tensorboard" / split
    for old in board.glob("events.*"):
        old.unlink()
    writer = SummaryWriter(str(board))
    for name, figure in figures.items():
        figure.savefig(directory / f"{split}-{name}.png", format="png")
        writer.add_figure(f"evaluation/{name}", figure, close=False)
    writer.close()


def _accuracy_offload(evaluation: Evaluation, answers: Mapping[str, Answers]) -> Figure:
    """Accuracy against the share of samples sent: every threshold there is, and the gates that were run."""
    figure, panels = _panels(answers, evaluation, "what a gate trades")
    for tier, axes in panels.items():
        own, gate = answers[tier], _gate(evaluation, tier)
        curve = gate_curve(gate.confidence(own.logits_NK, own.task), own.client_right_N, own.server_right_N)
        axes.plot(100 * curve.offload_M, 100 * curve.accuracy_M, color=CLIENT, label=f"{gate.kind} gate")
        ends = 100 * curve.accuracy_M[[0, -1]]
        axes.plot([0, 100], ends, color=RANDOM, linestyle="--", label="same share at random")
        rows = [row for row in evaluation.of("tier") if row.name == tier]
        run = [row for row in rows if row.gate != "calibrated"]
        axes.plot(
            [100 * r.offload_ratio for r in run], [100 * r.accuracy for r in run], "o", color=CLIENT, markersize=4
        )
        for row in rows:
            if row.gate == "calibrated":
                axes.plot(
                    100 * row.offload_ratio, 100 * row.accuracy, "*", color=SERVER, markersize=14,
                    label=f"calibrated: {evaluation.target}",
                )  # fmt: skip
        axes.set_xlabel("samples sent to the server (%)")
    limits = [axes.get_ylim() for axes in panels.values()]
    for axes in panels.values():  # one scale, so that tiers can be compared
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    _finish(panels, "accuracy (%)", legend="lower right")
    return figure


def _confidence(evaluation: Evaluation, answers: Mapping[str, Answers]) -> Figure:
    """Histograms of the exits' confidences, of right answers and of wrong ones."""
    figure, panels = _panels(answers, evaluation, "how sure exits are")
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    calibrated = {row.name: row.tau for row in evaluation.of("tier", "calibrated")}
    for tier, axes in panels.items():
        own = answers[tier]
        confidence_N = _gate(evaluation, tier).confidence(own.logits_NK, own.task)
        right_N = own.client_right_N
        parts = [confidence_N[right_N], confidence_N[~right_N]]
        axes.hist(parts, edges, stacked=True, color=[RIGHT, WRONG], label=["right", "wrong"])  # type: ignore[arg-type]
        tau = calibrated.get(tier)
        if tau is not None and tau >= 0:
            axes.axvline(tau, color="black", linestyle=":", label=f"tau {tau:.3f}")
        axes.set_xlabel(f"confidence ({evaluation.confidence})")
    _finish(panels, "samples", legend="upper right")
    return figure


def _reliability(evaluation: Evaluation, answers: Mapping[str, Answers]) -> Figure:
    """Accuracy against the largest probability, as trained and with the temperature: on the diagonal it is honest.

    The larger a dot, the more samples lie in its bin.
    """
    figure, panels = _panels(answers, evaluation, "whether exits can be believed")
    for tier, axes in panels.items():
        own = answers[tier]
        axes.plot([0, 1], [0, 1], color=RANDOM, linestyle="--")
        shown = [("as trained", 1.0, WRONG)]
        temperature = _temperature(evaluation, tier)
        if temperature is not None:
            shown.append((f"temperature {temperature:.2f}", temperature, RIGHT))
        for label, divisor, color in shown:
            counts, means, accuracies = reliability(own, divisor)
            there = counts > 0
            axes.plot(means[there], accuracies[there], color=color, label=label)
            axes.scatter(means[there], accuracies[there], s=4 + 80 * counts[there] / counts.max(), color=color)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel(f"largest probability, {ECE_BINS} bins")
    _finish(panels, "accuracy", legend="upper left")
    return figure


def _temperature(evaluation: Evaluation, tier: str) -> float | None:
    return next(row.temperature for row in evaluation.exits if row.scope == "tier" and row.name == tier)


def _gate(evaluation: Evaluation, tier: str) -> Gate:
    """The tier's gate as it was run: with the temperature where the run is calibrated."""
    temperature = _temperature(evaluation, tier) if evaluation.target is not None else None
    return Gate(evaluation.confidence, SENDS_ALL, temperature or 1.0)


def _panels(answers: Mapping[str, Answers], evaluation: Evaluation, title: str) -> tuple[Figure, dict[str, Axes]]:
    count = max(len(answers), 1)
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.3 * rows + 0.5), dpi=120, layout="constrained")
    figure.suptitle(f"{title}: {evaluation.run}, {evaluation.split} images", fontsize=11)
    panels: dict[str, Axes] = {}
    for index, (tier, own) in enumerate(answers.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.set_title(f"{tier} ({own.samples:,} answers)", fontsize=10)
        axes.grid(alpha=0.25)
        panels[tier] = axes
    return figure, panels


def _finish(panels: Mapping[str, Axes], ylabel: str, legend: Corner) -> None:
    for index, axes in enumerate(panels.values()):
        if index % COLUMNS == 0:
            axes.set_ylabel(ylabel)
        axes.legend(loc=legend, fontsize=8)
