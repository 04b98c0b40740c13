"""Evaluation of gates: rows of figures per client, per tier and overall, from answers on the real path.

Accuracies and ratios lie in [0, 1]; bytes, multiply-adds and milliseconds are per sample that a client is asked about.
Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from hsee_ray.config.fleet import Fleet
from hsee_ray.config.problems import read_stored
from hsee_ray.edge.gate import Gate
from hsee_ray.edge.task import Confidence
from hsee_ray.errors import UserError
from hsee_ray.evaluation.calibration import TOLERANCE, Target, calibration_error
from hsee_ray.method.predictions import Answers, pooled
from hsee_ray.rundir.metrics import write_table
from hsee_ray.storage import write_whole

EVALUATION_DIR = "evaluation"

Kind = Literal["local", "grid", "calibrated", "sent"]
Scope = Literal["client", "tier", "overall"]
Answering = Literal["exit", "server", "gated"]
"""Who answers every sample: its exit; its server (else the client); or whom the gate `Evaluation.gated` picks."""


class GateRun(NamedTuple):
    """One pass over the data: every client at its gate, and what was answered."""

    kind: Kind
    gates: Mapping[int, Gate]
    answers: Mapping[int, Answers]


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of one sample on each side of a client's cut."""

    client: int
    """With the exit head."""
    server: int


@dataclass(frozen=True)
class GateRow:
    """Figures of one gate for one client, one tier, or all clients together."""

    scope: Scope
    name: str
    gate: Kind
    tau: float | None
    """None where the clients' own differ; `local` is below every confidence, `sent` above."""
    temperature: float | None
    """None where the clients' own differ."""
    samples: int
    accuracy: float
    offload_ratio: float
    server_samples: int
    """Samples that the server's network was run on, counted there."""
    stayed_accuracy: float | None
    """Of the samples that the clients answered; None when there are none."""
    sent_accuracy: float | None
    """Of the samples that the server answered; None when there are none."""
    random_accuracy: float
    """Expected of a gate that sends the same share of each client's samples at random."""
    sent_bytes: float
    client_multiply_adds: float
    server_multiply_adds: float
    client_ms: float
    server_ms: float


@dataclass(frozen=True)
class ExitRow:
    """How far an exit can be trusted: one client's, or those of a tier."""

    scope: Scope
    name: str
    samples: int
    accuracy: float
    temperature: float | None
    """None where there are no samples to fit one."""
    calibration_error: float
    """Expected calibration error over 15 bins of the largest probability, as trained."""
    scaled_calibration_error: float | None
    """The same with the logits divided by the temperature."""


@dataclass(frozen=True)
class ClassRow:
    """How one class is answered in a tier, or overall. A class without samples has no row."""

    scope: Scope
    name: str
    answers: Answering
    label: int
    class_name: str
    samples: int
    recall: float
    """Share of its samples that are answered right."""
    mistaken_for: str | None
    """The wrong answer that it gets most often; None where there is none."""
    mistaken: int
    """How often."""


@dataclass(frozen=True)
class ConfusionRow:
    """Samples of one class that got one answer; there is no row where there are none."""

    scope: Scope
    name: str
    answers: Answering
    label: int
    answer: int
    samples: int


@dataclass(frozen=True)
class TargetDeviation:
    """How far a tier's test samples lie from the target that its tau was calibrated to."""

    tier: str
    calibrated: float
    """On the samples that tau was picked on."""
    measured: float
    beyond: float
    """`measured` less the bound."""

    @property
    def missed(self) -> bool:
        return self.beyond > TOLERANCE


@dataclass(frozen=True)
class Evaluation:
    """All figures of one evaluation."""

    run: str
    network: str
    split: str
    confidence: Confidence
    target: str | None
    gates: list[GateRow]
    exits: list[ExitRow]
    distances: list[TargetDeviation]
    gated: str = ""
    """The gate of the `gated` answers of classes: `calibrated`, or `tau 0.5`, the middle one of those that were run."""
    classes: list[ClassRow] = field(default_factory=list)
    confusions: list[ConfusionRow] = field(default_factory=list)
    """Only in `<split>-confusion.parquet`, since there may be many."""

    def of(self, scope: str, kind: str | None = None) -> list[GateRow]:
        return [row for row in self.gates if row.scope == scope and kind in (None, row.gate)]


def gate_rows(gate_runs: Sequence[GateRun], fleet: Fleet, costs: Mapping[int, Costs]) -> list[GateRow]:
    """Rows of every pass: its clients, its tiers, and overall. The passes hold the two ends, local and sent."""
    ends = {kind: next(p.answers for p in gate_runs if p.kind == kind) for kind in ("local", "sent")}
    specs = {spec.client_id: spec for spec in fleet.clients}
    rows: list[GateRow] = []
    for gate_run in gate_runs:
        there = sorted(gate_run.answers)
        groups: list[tuple[Scope, str, list[int]]] = [("client", specs[number].label, [number]) for number in there]
        groups += [("tier", tier, [n for n in there if specs[n].tier == tier]) for tier in fleet.tiers]
        groups.append(("overall", "overall", there))
        rows += [_gate_row(scope, name, gate_run, members, ends, costs) for scope, name, members in groups if members]
    return rows


def _gate_row(
    scope: Scope,
    name: str,
    gate_run: GateRun,
    members: Sequence[int],
    ends: Mapping[str, Mapping[int, Answers]],
    costs: Mapping[int, Costs],
) -> GateRow:
    answers = pooled([gate_run.answers[number] for number in members])
    taus = {gate_run.gates[number].tau for number in members}
    temperatures = {gate_run.gates[number].temperature for number in members}
    stays_N = answers.stays_N
    right_N = answers.right_N
    random_right = 0.0
    multiply_adds = [0.0, 0.0]
    for number in members:
        own = gate_run.answers[number]
        sent = float((~own.stays_N).mean())
        # Without a server the client itself answers, whatever the gate.
        random_right += (1 - sent) * ends["local"][number].right_N.sum() + sent * ends["sent"][number].right_N.sum()
        multiply_adds[0] += costs[number].client * own.samples
        multiply_adds[1] += costs[number].server * own.server_samples
    return GateRow(
        scope=scope,
        name=name,
        gate=gate_run.kind,
        tau=taus.pop() if len(taus) == 1 else None,
        temperature=temperatures.pop() if len(temperatures) == 1 else None,
        samples=answers.samples,
        accuracy=float(right_N.mean()),
        offload_ratio=float((~stays_N).mean()),
        server_samples=answers.server_samples,
        stayed_accuracy=float(right_N[stays_N].mean()) if stays_N.any() else None,
        sent_accuracy=float(right_N[~stays_N].mean()) if not stays_N.all() else None,
        random_accuracy=random_right / answers.samples,
        sent_bytes=answers.sent_bytes / answers.samples,
        client_multiply_adds=multiply_adds[0] / answers.samples,
        server_multiply_adds=multiply_adds[1] / answers.samples,
        client_ms=1000 * answers.client_s / answers.samples,
        server_ms=1000 * answers.server_s / answers.samples,
    )


def exit_rows(answers: Mapping[int, Answers], temperatures: Mapping[str, float], fleet: Fleet) -> list[ExitRow]:
    """Calibration errors of every exit and of every tier's together; `temperatures` by tier."""
    rows: list[ExitRow] = []
    for spec in fleet.clients:
        if spec.client_id in answers:
            rows.append(_exit_row("client", spec.label, answers[spec.client_id], temperatures.get(spec.tier)))
    for tier in fleet.tiers:
        members = [answers[spec.client_id] for spec in fleet.clients if spec.tier == tier and spec.client_id in answers]
        if members:
            rows.append(_exit_row("tier", tier, pooled(members), temperatures.get(tier)))
    return rows


def _exit_row(scope: Scope, name: str, answers: Answers, temperature: float | None) -> ExitRow:
    return ExitRow(
        scope=scope,
        name=name,
        samples=answers.samples,
        accuracy=float(answers.client_right_N.mean()),
        temperature=temperature,
        calibration_error=calibration_error(answers, 1.0),
        scaled_calibration_error=None if temperature is None else calibration_error(answers, temperature),
    )


def gate_name(gate_run: GateRun) -> str:
    """`local`, `sent`, `calibrated`, or the tau of the grid: `tau 0.5`."""
    return gate_run.kind if gate_run.kind != "grid" else f"tau {next(iter(gate_run.gates.values())).tau:g}"


def shown_gate(gate_runs: Sequence[GateRun]) -> GateRun:
    """The pass whose answers are looked at by class: the calibrated gate's, else that at the middle tau of the grid."""
    calibrated = [gate_run for gate_run in gate_runs if gate_run.kind == "calibrated"]
    grid = [gate_run for gate_run in gate_runs if gate_run.kind == "grid"]
    return (calibrated or grid[len(grid) // 2 :])[0]


def class_rows(
    gate_runs: Sequence[GateRun], fleet: Fleet, class_names: Sequence[str]
) -> tuple[list[ClassRow], list[ConfusionRow]]:
    """Recalls and confusions of every tier and overall, by who answers: exits, servers, and the gate that is shown."""
    ends = {gate_run.kind: gate_run for gate_run in gate_runs}
    shown: dict[Answering, GateRun] = {
        "exit": ends["local"],
        "server": ends["sent"],
        "gated": shown_gate(gate_runs),
    }
    tiers = {spec.client_id: spec.tier for spec in fleet.clients}
    classes: list[ClassRow] = []
    confusions: list[ConfusionRow] = []
    for who, gate_run in shown.items():
        groups: list[tuple[Scope, str, list[Answers]]] = [
            ("tier", tier, [own for number, own in sorted(gate_run.answers.items()) if tiers[number] == tier])
            for tier in fleet.tiers
        ]
        groups.append(("overall", "overall", list(gate_run.answers.values())))
        for scope, name, members in groups:
            if members:
                answers = pooled(members)
                cells = np.stack([answers.labels_N, answers.prediction_N, answers.right_N], axis=1)
                found, counts = np.unique(cells, axis=0, return_counts=True)
                table = [(*map(int, cell), int(count)) for cell, count in zip(found, counts, strict=True)]
                confusions += [ConfusionRow(scope, name, who, label, answer, n) for label, answer, _, n in table]
                for label, of_class in groupby(table, key=lambda cell: cell[0]):
                    own = [cell[1:] for cell in of_class]
                    samples = sum(n for *_, n in own)
                    wrong = max((each for each in own if not each[1]), key=lambda each: each[2], default=None)
                    classes.append(
                        ClassRow(
                            scope,
                            name,
                            who,
                            label,
                            class_names[label],
                            samples,
                            recall=sum(n for _, right, n in own if right) / samples,
                            mistaken_for=None if wrong is None else class_names[wrong[0]],
                            mistaken=0 if wrong is None else wrong[2],
                        )
                    )
    return classes, confusions


def distances(rows: Iterable[GateRow], target: Target, calibrated: Mapping[str, float]) -> list[TargetDeviation]:
    """Distance of every tier from the target; `calibrated` is what its tau gave where it was picked."""
    tiers = [row for row in rows if row.scope == "tier" and row.name in calibrated]
    everything_sent = {row.name: row.accuracy for row in tiers if row.gate == "sent"}
    found: list[TargetDeviation] = []
    for row in tiers:
        if row.gate == "calibrated":
            lost = everything_sent[row.name] - row.accuracy
            measured = row.offload_ratio if target.quantity == "offload" else lost
            found.append(TargetDeviation(row.name, calibrated[row.name], measured, measured - target.bound))
    return found


def write_evaluation(directory: Path, evaluation: Evaluation) -> None:
    """`<split>.parquet` with the gates' rows, and `-exits`, `-classes` and `-confusion` with the others.

    `<split>.json` has all but the confusions.
    What the rows belong to (run, network, split, confidence, target) is in the tables' metadata under `hsee-ray`.
    """
    directory.mkdir(exist_ok=True)
    whole = asdict(evaluation)
    about = json.dumps({name: value for name, value in whole.items() if not isinstance(value, list)})
    tables = (
        ("", GateRow, whole["gates"]),
        ("-exits", ExitRow, whole["exits"]),
        ("-classes", ClassRow, whole["classes"]),
        ("-confusion", ConfusionRow, whole.pop("confusions")),
    )
    for name, row_type, rows in tables:
        schema = pa.schema([(field.name, _COLUMN_TYPES[str(field.type)]) for field in fields(row_type)])
        table = pa.Table.from_pylist(rows, schema.with_metadata({"hsee-ray": about}))
        write_table(directory / f"{evaluation.split}{name}.parquet", table)
    text = json.dumps(whole, indent=2, allow_nan=False, ensure_ascii=False)
    write_whole(directory / f"{evaluation.split}.json", f"{text}\n".encode())


def read_evaluation(run_dir: Path, split: str) -> Evaluation:
    """Reads a run's `evaluation/`. Raises UserError when there is none, DataError when it is damaged."""
    path = run_dir / EVALUATION_DIR / f"{split}.json"
    if not path.is_file():
        raise UserError(
            f"{run_dir}: has not been evaluated (it has no {EVALUATION_DIR}/{split}.json); run hsee evaluate"
        )
    return read_stored(path, Evaluation, "run hsee evaluate again")


_COLUMN_TYPES = {
    "Scope": pa.string(),
    "Kind": pa.string(),
    "Answering": pa.string(),
    "str": pa.string(),
    "str | None": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
}
"""Of the tables, by the types of the rows' fields."""
