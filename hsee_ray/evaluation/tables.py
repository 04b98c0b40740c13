"""Evaluations and calibrations as tables on a console."""

from __future__ import annotations

from hsee_ray.edge.gate import NEVER_SENDS
from hsee_ray.evaluation.calibration import Calibration
from hsee_ray.evaluation.report import Evaluation, GateRow, Kind, TargetDeviation
from hsee_ray.rundir.tables import NONE, Rows, align, decimal, percent

WORST_CLASSES = 10
_ORDER: tuple[Kind, ...] = ("calibrated", "local", "grid", "sent")


def render_evaluation(evaluation: Evaluation) -> str:
    """Tables of an evaluation: every gate of every tier, how far exits can be trusted, classes, and the target.

    The calibrated gates stand first; tiers stand in their order.
    """
    blocks = [align(_gate_cells(evaluation))]
    exits = [["tier", "exit accuracy", "temperature", "calibration error", "with temperature"]]
    for row in evaluation.exits:
        if row.scope == "tier":
            temperature = NONE if row.temperature is None else f"{row.temperature:.3f}"
            errors = [f"{row.calibration_error:.3f}", decimal(row.scaled_calibration_error)]
            exits.append([row.name, percent(row.accuracy), temperature, *errors])
    blocks.append(align(exits))
    if evaluation.classes:
        blocks.append(_classes(evaluation))
    if evaluation.distances:
        blocks.append("\n".join(f"{evaluation.target}, {_distance(each)}" for each in evaluation.distances))
    return "\n\n".join(blocks)


def render_calibration(calibration: Calibration) -> str:
    """Table of what every tier's gate does on the samples that it was picked on."""
    header = ["tier", "samples", "temperature", "tau", "sent", "accuracy", "all sent", "exits alone", "accuracy drop"]
    rows = [[*header, "bytes"]]
    for name, tier in calibration.tiers.items():
        rows.append(
            [
                name,
                f"{tier.samples:,}",
                f"{tier.temperature:.3f}",
                f"{tier.tau:.6f}",
                percent(tier.offload_ratio),
                percent(tier.accuracy),
                percent(tier.server_accuracy),
                percent(tier.client_accuracy),
                f"{100 * tier.accuracy_drop:.1f} ± {100 * tier.drop_half_width:.1f}",
                f"{tier.sent_bytes:,.0f}",
            ]
        )
    legend = (
        "accuracy drop: points against sending all, with a 95 % interval; bytes: per sample, spread over all samples"
    )
    return f"{align(rows)}\n{legend}"


def _classes(evaluation: Evaluation) -> str:
    """Recall of each class over all tiers; of many classes, those that are answered worst behind the gate."""
    recalls = {(row.label, row.answers): row for row in evaluation.classes if row.scope == "overall"}
    gated = [row for (_, who), row in recalls.items() if who == "gated"]
    shown = gated
    if len(gated) > WORST_CLASSES:
        shown = sorted(gated, key=lambda row: (row.recall, row.label))[:WORST_CLASSES]
    rows = [["class", "samples", "recall of exits", "of servers", f"gated ({evaluation.gated})", "gated, taken for"]]
    for row in shown:
        mistaken = NONE if row.mistaken_for is None else f"{row.mistaken_for} ({row.mistaken:,})"
        shares = [percent(recalls[row.label, who].recall) for who in ("exit", "server", "gated")]
        rows.append([row.class_name, f"{row.samples:,}", *shares, mistaken])
    which = "all tiers together" if shown is gated else f"the {len(shown)} worst of {len(gated)} classes"
    return f"{align(rows)}\n{which}; every class of every tier: {evaluation.split}-classes.parquet"


def _gate_order(evaluation: Evaluation) -> list[GateRow]:
    tiers = list(dict.fromkeys(row.name for row in evaluation.of("tier")))

    def place(row: GateRow) -> tuple[bool, int, int]:
        which = len(tiers) if row.scope == "overall" else tiers.index(row.name)
        return row.gate != "calibrated", which, _ORDER.index(row.gate)

    # Sorting is stable: thresholds stay in their order.
    return sorted(evaluation.of("tier") + evaluation.of("overall"), key=place)


def _gate_cells(evaluation: Evaluation) -> Rows:
    costs = ["bytes", "client mult-adds", "server mult-adds", "client ms", "server ms"]
    rows = [["tier", "tau", "sent", "accuracy", "random gate", "of those kept", "of those sent", *costs]]
    for row in _gate_order(evaluation):
        tau = {"local": "none sent", "sent": "all sent", "calibrated": "calibrated"}.get(row.gate) or f"{row.tau:g}"
        if row.gate == "calibrated" and row.tau is not None and row.tau > NEVER_SENDS:
            tau = f"calibrated {row.tau:.4f}"
        rows.append(
            [
                row.name,
                tau,
                percent(row.offload_ratio),
                percent(row.accuracy),
                percent(row.random_accuracy),
                percent(row.stayed_accuracy),
                percent(row.sent_accuracy),
                f"{row.sent_bytes:,.0f}",
                f"{row.client_multiply_adds:,.0f}",
                f"{row.server_multiply_adds:,.0f}",
                f"{row.client_ms:.3f}",
                f"{row.server_ms:.3f}",
            ]
        )
    return rows


def _distance(distance: TargetDeviation) -> str:
    points = [100 * each for each in (distance.calibrated, distance.measured, abs(distance.beyond))]
    where = f"{distance.tier}: {points[0]:.1f} points where it was calibrated, {points[1]:.1f} here"
    return f"{where}, {'missed' if distance.missed else 'met'} by {points[2]:.1f}"
