"""Pictures of an evaluation: accuracy by what is sent, whether exits can be believed, and how classes are answered.

One panel per tier with exits, in the tier's colour. `answers` are those of each tier's clients together, with
everything sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hsee_ray.edge.gate import SENDS_ALL, Gate
from hsee_ray.evaluation.calibration import ECE_BINS, gate_curve, reliability
from hsee_ray.evaluation.report import Answering, Evaluation, ExitRow, Scope
from hsee_ray.method.predictions import Answers
from hsee_ray.method.reports import CONFIDENCE_BINS
from hsee_ray.pictures import (
    BLUE,
    GREY,
    ORANGE,
    OVERALL_COLOR,
    drawing,
    heat_map,
    label_columns,
    new_figure,
    shortened,
    tier_colors,
)

COLUMNS = 4
MOST_CLASSES = 32
"""Rows of the picture of recalls, and classes up to which a confusion matrix has names."""


@drawing()
def draw(evaluation: Evaluation, answers: Mapping[str, Answers], class_names: Sequence[str]) -> dict[str, Figure]:
    """The pictures by name; none where no client has an exit."""
    if not answers:
        return {}
    figures = {
        "accuracy_offload": _accuracy_offload(evaluation, answers),
        "confidence": _confidence(evaluation, answers),
        "reliability": _reliability(evaluation, answers),
        "recall": _recall(evaluation, class_names),
    }
    for number, (scope, name) in enumerate([("overall", "overall"), *(("tier", tier) for tier in _tiers(evaluation))]):
        # A tier may bear any name, a file may not.
        plain = re.sub(r"[^\w-]+", "_", name)
        figures[f"confusion-{number}-{plain}"] = _confusion(evaluation, scope, name, class_names)
    return figures


@drawing()
def save_figures(directory: Path, split: str, figures: Mapping[str, Figure]) -> None:
    """`<split>-<name>.png`, and the same on TensorBoard in `tensorboard/<split>`, in the place of earlier ones."""
    from torch.utils.tensorboard import SummaryWriter

    board = directory / "tensorboard" / split
    for old in [*board.glob("events.*"), *directory.glob(f"{split}-confusion-*.png")]:
        old.unlink()
    writer = SummaryWriter(str(board))
    for name, figure in figures.items():
        figure.savefig(directory / f"{split}-{name}.png", format="png")
        writer.add_figure(f"evaluation/{name}", figure, close=False)
    writer.close()


def _accuracy_offload(evaluation: Evaluation, answers: Mapping[str, Answers]) -> Figure:
    """Accuracy against the share of samples sent: all tiers together, then each with every gate that was run."""
    together = "all tiers"
    figure, panels = _panels([together, *answers], evaluation, "accuracy against the share of samples sent")
    colors = tier_colors(_tiers(evaluation))
    for (tier, own), axes in zip(answers.items(), panels[1:], strict=True):
        gate = _gate(evaluation, tier)
        curve = gate_curve(gate.confidence(own.logits_NK, own.task), own.client_right_N, own.server_right_N)
        for panel in (panels[0], axes):
            panel.plot(100 * curve.offload_M, 100 * curve.accuracy_M, color=colors[tier], linewidth=1.8)
        axes.plot([0, 100], 100 * curve.accuracy_M[[0, -1]], color=GREY, linestyle="--")
        axes.set_title(f"{shortened(tier)} ({own.samples:,} answers)", fontsize=11, color=colors[tier])
        for row in evaluation.of("tier"):
            if row.name == tier:
                place = [100 * row.offload_ratio], [100 * row.accuracy]
                if row.gate == "calibrated":
                    for panel in (panels[0], axes):
                        panel.plot(*place, "*", color=colors[tier], markeredgecolor="black", markersize=13, zorder=4)
                else:
                    axes.plot(*place, "o", color=colors[tier], markersize=5)
    panels[0].set_title(together, fontsize=11)
    limits = [axes.get_ylim() for axes in panels]
    for axes in panels:  # one scale, so that tiers can be compared
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    _label(panels, f"samples sent by the {evaluation.confidence} gate (%)", "accuracy (%)")
    marks = {
        "every threshold": Line2D([], [], color="black"),
        "same share at random": Line2D([], [], color=GREY, linestyle="--"),
        "thresholds that were run": Line2D([], [], color="black", marker="o", markersize=5, linestyle=""),
    }
    if evaluation.target is not None:
        marks[f"calibrated: {evaluation.target}"] = Line2D(
            [], [], color="black", marker="*", markersize=12, linestyle=""
        )
    names = {shortened(tier): Line2D([], [], color=colors[tier], linewidth=3) for tier in answers}
    _legend(figure, {**names, **marks})
    return figure


def _confidence(evaluation: Evaluation, answers: Mapping[str, Answers]) -> Figure:
    """Histograms of the exits' confidences, of right answers and of wrong ones."""
    figure, panels = _panels(list(answers), evaluation, "how sure exits are, when right and when wrong")
    colors = tier_colors(_tiers(evaluation))
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    calibrated = {row.name: row.tau for row in evaluation.of("tier", "calibrated")}
    for (tier, own), axes in zip(answers.items(), panels, strict=True):
        confidence_N = _gate(evaluation, tier).confidence(own.logits_NK, own.task)
        right_N = own.client_right_N
        parts = [confidence_N[right_N], confidence_N[~right_N]]
        axes.hist(parts, edges, stacked=True, color=[BLUE, ORANGE], label=["right", "wrong"])  # type: ignore[arg-type]
        said = f"{shortened(tier)} ({own.samples:,} answers)"
        tau = calibrated.get(tier)
        if tau is not None:
            said += f"\ncalibrated tau {tau:.4f}" if tau >= 0 else "\ncalibrated: sends nothing"
            axes.axvline(max(tau, 0.0), color="black", linestyle=":", label="calibrated tau: left of the line is sent")
        axes.set_title(said, fontsize=11, color=colors[tier])
        axes.set_xlim(0, 1)
    _label(panels, f"confidence ({evaluation.confidence})", "samples")
    handles, labels = panels[0].get_legend_handles_labels()
    _legend(figure, dict(zip(labels, handles, strict=True)))
    return figure


def _reliability(evaluation: Evaluation, answers: Mapping[str, Answers]) -> Figure:
    """Accuracy against the largest probability, as trained and with the temperature: on the diagonal it is honest.

    Below each panel are the samples of each bin: a point that few samples made says little.
    """
    columns = min(len(answers), COLUMNS)
    rows = -(-len(answers) // columns)
    figure = new_figure(max(4.4 * columns, 8.8) + 0.4, 5.0 * rows + 0.9)
    figure.suptitle(_title("whether exits can be believed (ECE: expected calibration error)", evaluation), fontsize=13)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1.3] * rows)
    middles = (np.arange(ECE_BINS) + 0.5) / ECE_BINS
    width = 0.42 / ECE_BINS
    colors = tier_colors(_tiers(evaluation))
    series: dict[str, Artist] = {"probability = accuracy": Line2D([], [], color=GREY, linestyle="--")}
    for index, (tier, own) in enumerate(answers.items()):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[2 * row, column])
        below = figure.add_subplot(grid[2 * row + 1, column], sharex=axes)
        exits = _exit_row(evaluation, tier)
        said = f"{shortened(tier)} ({own.samples:,} answers)\nECE {exits.calibration_error:.3f} as trained"
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--")
        shown = [("as trained", 1.0, ORANGE, "o", -width / 2)]
        if exits.temperature is not None:
            shown.append(("with its temperature", exits.temperature, BLUE, "s", width / 2))
            said += f", {exits.scaled_calibration_error:.3f} at T {exits.temperature:.2f}"
        for label, divisor, color, mark, offset in shown:
            counts, means, accuracies = reliability(own, divisor)
            there = counts > 0
            (series[label],) = axes.plot(means[there], accuracies[there], color=color, marker=mark, markersize=4)
            below.bar(middles + offset, counts, width, color=color)
            for place, count in zip(middles[there] + offset, counts[there], strict=True):
                below.annotate(
                    f"{count:,}", (place, count), (0, 1.5), textcoords="offset points",
                    ha="center", va="bottom", rotation=90, fontsize=7, color="black",
                )  # fmt: skip
        axes.set_title(said, fontsize=11, color=colors[tier])
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.25)
        axes.tick_params(labelbottom=False)
        below.margins(y=0.45)
        below.set_xlabel(f"largest probability, {ECE_BINS} bins", fontsize=10)
        if column == 0:
            axes.set_ylabel("accuracy in the bin", fontsize=10)
            below.set_ylabel("samples", fontsize=10)
    _legend(figure, series)
    return figure


def _recall(evaluation: Evaluation, class_names: Sequence[str]) -> Figure:
    """Recall of each class (row) in each tier (column), by who answers; of many classes those that are worst gated."""
    overall = {row.label: row.recall for row in evaluation.classes if (row.scope, row.answers) == ("overall", "gated")}
    labels = sorted(sorted(overall, key=lambda label: (overall[label], label))[:MOST_CLASSES])
    groups: list[tuple[Scope, str]] = [("tier", tier) for tier in _tiers(evaluation)] + [("overall", "overall")]
    samples = {row.label: row.samples for row in evaluation.classes if (row.scope, row.answers) == ("overall", "gated")}
    recalls = {(row.answers, row.scope, row.name, row.label): row.recall for row in evaluation.classes}
    width = max(0.8 + 0.4 * len(groups), 3.0)
    figure = new_figure(1.6 + 3 * width, 2.4 + 0.3 * len(labels))
    which = "recall of each class (%)" if len(labels) == len(overall) else (
        f"recall (%) of the {len(labels)} classes of {len(overall)} that are answered worst"
    )  # fmt: skip
    figure.suptitle(_title(which, evaluation), fontsize=13)
    colors = [*tier_colors(_tiers(evaluation)).values(), OVERALL_COLOR]
    for index, (axes, (who, title)) in enumerate(zip(figure.subplots(1, 3), _who(evaluation).items(), strict=True)):
        values = [[recalls.get((who, *group, label), np.nan) for group in groups] for label in labels]
        heat_map(axes, 100 * np.array(values), "Blues", "{:.0f}", 100)
        axes.set_title(title, fontsize=11)
        label_columns(axes, [name for _, name in groups])
        for label, color in zip(axes.get_xticklabels(), colors, strict=True):
            label.set_color(color)
        if index == 0:
            names = [f"{shortened(class_names[label])} ({samples[label]:,})" for label in labels]
            axes.set_yticks(range(len(labels)), names, fontsize=9)
            axes.set_ylabel("class (answers of all tiers)")
    return figure


def _confusion(evaluation: Evaluation, scope: str, name: str, class_names: Sequence[str]) -> Figure:
    """Confusion matrices of a tier, or overall: of 100 samples of a class (row), how many get each answer (column)."""
    classes = len(class_names)
    named = classes <= MOST_CLASSES
    side = 1.6 + (0.3 * max(classes, 6) if named else 4.4)
    figure = new_figure(3 * side + 0.6, side + 1.4)
    color = {**tier_colors(_tiers(evaluation)), "overall": OVERALL_COLOR}[name] if scope == "tier" else OVERALL_COLOR
    figure.suptitle(
        _title(f"{shortened(name)}: how 100 samples of each class are answered", evaluation), fontsize=13, color=color
    )
    for index, (axes, (who, title)) in enumerate(zip(figure.subplots(1, 3), _who(evaluation).items(), strict=True)):
        counts = np.zeros((classes, classes))
        for row in evaluation.confusions:
            if (row.scope, row.name, row.answers) == (scope, name, who):
                counts[row.label, row.answer] = row.samples
        samples = counts.sum(axis=1, keepdims=True)
        shares = np.divide(100 * counts, samples, out=np.zeros_like(counts), where=samples > 0)
        # Nothing is written where nothing is: the eye finds what is left.
        heat_map(axes, np.where(counts > 0, shares, np.nan), "Blues", "{:.0f}", 100)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("answer")
        if named:
            label_columns(axes, class_names)
        if index == 0:
            axes.set_ylabel("class (its samples)" if named else f"class ({classes} of them)")
            if named:
                names = [f"{shortened(class_names[k])} ({int(samples[k, 0]):,})" for k in range(classes)]
                axes.set_yticks(range(classes), names, fontsize=9)
    return figure


def _who(evaluation: Evaluation) -> dict[Answering, str]:
    return {
        "exit": "exits alone",
        "server": "servers (everything sent)",
        "gated": f"behind the gate ({evaluation.gated})",
    }


def _tiers(evaluation: Evaluation) -> list[str]:
    """All tiers in their order, also those without exits."""
    return list(dict.fromkeys(row.name for row in evaluation.of("tier")))


def _exit_row(evaluation: Evaluation, tier: str) -> ExitRow:
    return next(row for row in evaluation.exits if row.scope == "tier" and row.name == tier)


def _gate(evaluation: Evaluation, tier: str) -> Gate:
    """The tier's gate as it was run: with the temperature where the run is calibrated."""
    temperature = _exit_row(evaluation, tier).temperature if evaluation.target is not None else None
    return Gate(evaluation.confidence, SENDS_ALL, temperature or 1.0)


def _title(text: str, evaluation: Evaluation) -> str:
    return f"{text}\n{evaluation.run}, {evaluation.split} images"


def _panels(names: Sequence[str], evaluation: Evaluation, title: str) -> tuple[Figure, list[Axes]]:
    columns = min(len(names), COLUMNS)
    rows = -(-len(names) // columns)
    figure = new_figure(max(3.7 * columns, 7.4) + 0.4, 3.4 * rows + 1.4)
    figure.suptitle(_title(title, evaluation), fontsize=13)
    panels = [figure.add_subplot(rows, columns, index + 1) for index in range(len(names))]
    for axes in panels:
        axes.grid(alpha=0.25)
    return figure, panels


def _label(panels: Sequence[Axes], xlabel: str, ylabel: str) -> None:
    for index, axes in enumerate(panels):
        axes.set_xlabel(xlabel, fontsize=10)
        if index % COLUMNS == 0:
            axes.set_ylabel(ylabel, fontsize=10)


def _legend(figure: Figure, entries: Mapping[str, Artist]) -> None:
    """One legend for all panels, below them: off the data."""
    columns = min(len(entries), 4)
    # Matplotlib fills columns; people read rows.
    order = [index for column in range(columns) for index in range(column, len(entries), columns)]
    names, handles = list(entries), list(entries.values())
    figure.legend(
        [handles[index] for index in order],
        [names[index] for index in order],
        loc="outside lower center", ncols=columns, fontsize=10,
    )  # fmt: skip
