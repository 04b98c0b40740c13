"""Evaluates and calibrates the exits of a finished run, whatever computes its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hsee_ray.config.fleet import ClientSpec
from hsee_ray.devices.cost import CostTable
from hsee_ray.edge.gate import NEVER_SENDS, SENDS_ALL, Gate
from hsee_ray.edge.task import Confidence
from hsee_ray.errors import ConfigError, RunError, UserError
from hsee_ray.evaluation.calibration import (
    Calibration,
    Target,
    TierCalibration,
    fit_temperature,
    gate_curve,
    parse_target,
    pick,
    tier_calibration,
)
from hsee_ray.evaluation.exits import Exits
from hsee_ray.evaluation.report import (
    Costs,
    Evaluation,
    GateRow,
    GateRun,
    Kind,
    TargetDeviation,
    class_rows,
    distances,
    exit_rows,
    gate_name,
    gate_rows,
    shown_gate,
)
from hsee_ray.method.predictions import Answers, Part, pooled
from hsee_ray.method.setup import Setup
from hsee_ray.rundir.run import Run


@dataclass(frozen=True)
class Plan:
    """Request of an evaluation."""

    part: Part
    taus: tuple[float, ...]
    """At least one."""
    confidence: Confidence
    calibration: Calibration | None
    """The gates that are in force; None where the run has not been calibrated."""


def calibrate(exits: Exits, run: Run, target: Target, kind: Confidence) -> Calibration:
    """Temperature and tau of every tier with servers, picked on what its clients have set aside.

    Raises ConfigError when nothing was set aside, and UserError when no threshold meets the target.
    """
    tiers = _tiers_with_servers(exits)
    if not tiers:
        raise ConfigError("no client that has a model has a server to send to: there is nothing to calibrate")
    aside = exits.setup.samples_of("calibration")
    empty = [tier for tier, members in tiers.items() if not any(aside[client_id] for client_id in members)]
    if empty:
        who = ", ".join(empty)
        raise ConfigError(
            f"{who}: no samples are set aside to calibrate on; train with data.calibration_fraction above 0"
        )
    answers = exits.ask("calibration", _same_gate(exits, Gate(kind, SENDS_ALL)))
    by_tier = _by_tier(exits, answers)
    lost = [tier for tier in tiers if tier not in by_tier]
    if lost:
        raise RunError(f"{', '.join(lost)}: all clients were lost on the way; start again")
    picked: dict[str, TierCalibration] = {}
    missed: list[str] = []
    for tier, together in by_tier.items():
        temperature = fit_temperature(together)
        confidence_N = Gate(kind, SENDS_ALL, temperature).confidence(together.logits_NK, together.task)
        curve = gate_curve(confidence_N, together.client_right_N, together.server_right_N)
        index = pick(curve, target)
        if index is None:
            best = int(curve.drop_M.argmin())
            missed.append(
                f"{tier} reaches {curve.drop_M[best]:.4f} at best, with {curve.offload_M[best]:.1%} sent (its exits "
                f"alone: {curve.drop_M[0]:.4f})"
            )
            continue
        gate = Gate(kind, float(curve.tau_M[index]), temperature)
        picked[tier] = tier_calibration(gate, curve, together)
    if missed:
        raise UserError(f"{target} cannot be met on the samples set aside: {'; '.join(missed)}; nothing was stored")
    return Calibration(str(target), kind, run.summary["weights_sha256"], picked)


def evaluate(
    exits: Exits, run: Run, plan: Plan, tell: Callable[[str], None] = lambda text: None
) -> tuple[Evaluation, dict[str, Answers]]:
    """All figures of the plan, each gate on the real path; and by tier the answers with everything sent."""
    calibration = plan.calibration
    temperatures = _temperatures(exits, plan)
    # First calls are slow, and no row is to pay for them.
    exits.ask(
        plan.part,
        _same_gate(exits, Gate(plan.confidence, SENDS_ALL)),
        most=exits.setup.config.evaluation.batch_size,
    )
    gate_runs: list[GateRun] = []
    for kind, gates in _gates(exits, plan):
        gate_run = GateRun(kind, gates, {})
        tell(gate_name(gate_run))
        gate_runs.append(gate_run._replace(answers=exits.ask(plan.part, gates)))
    setup = exits.setup
    there = set.intersection(*(set(gate_run.answers) for gate_run in gate_runs))
    if not there:
        raise ConfigError(f"--split {plan.part}: no client has samples in it")
    gate_runs = [
        gate_run._replace(answers={client_id: gate_run.answers[client_id] for client_id in sorted(there)})
        for gate_run in gate_runs
    ]
    sent = gate_runs[-1].answers
    gates_rows = gate_rows(gate_runs, setup.fleet, costs(setup))
    classes, confusions = class_rows(gate_runs, setup.fleet, setup.files.class_names)
    found = Evaluation(
        run=run.name,
        network=run.summary["weights_sha256"],
        split=plan.part,
        confidence=plan.confidence,
        target=None if calibration is None else calibration.target,
        gates=gates_rows,
        exits=exit_rows(sent, temperatures, setup.fleet),
        distances=[] if calibration is None else _distances(calibration, gates_rows),
        gated=gate_name(shown_gate(gate_runs)),
        classes=classes,
        confusions=confusions,
    )
    return found, _by_tier(exits, sent)


def costs(setup: Setup) -> dict[int, Costs]:
    """Multiply-adds of one sample on both sides of every client's cut."""
    table = CostTable(setup.config, setup.files.image_shape, setup.n_classes)

    def of(spec: ClientSpec) -> Costs:
        server = table.server(spec.cut, 1).infer.multiply_adds if spec.has_server else 0
        return Costs(table.client(spec.cut, 1).infer.multiply_adds, server)

    return {spec.client_id: of(spec) for spec in setup.fleet.clients}


def _gates(exits: Exits, plan: Plan) -> list[tuple[Kind, Mapping[int, Gate]]]:
    """Every gate that is tried: the two ends, the grid between them, and the calibrated one."""

    def at(tau: float) -> dict[int, Gate]:
        gates: dict[int, Gate] = {}
        for spec in exits.setup.fleet.clients:
            own = None if plan.calibration is None else plan.calibration.gate(spec.tier)
            gates[spec.client_id] = Gate(plan.confidence, tau, 1.0 if own is None else own.temperature)
        return gates

    tried: list[tuple[Kind, Mapping[int, Gate]]] = [("local", at(NEVER_SENDS))]
    tried += [("grid", at(tau)) for tau in plan.taus]
    if plan.calibration is not None:
        calibrated = at(NEVER_SENDS)
        for spec in exits.setup.fleet.clients:
            calibrated[spec.client_id] = plan.calibration.gate(spec.tier) or calibrated[spec.client_id]
        tried.append(("calibrated", calibrated))
    return [*tried, ("sent", at(SENDS_ALL))]


def _temperatures(exits: Exits, plan: Plan) -> dict[str, float]:
    """By tier: the calibrated ones, or those that the samples set aside ask for. None of a tier without any."""
    if plan.calibration is not None:
        return {name: tier.temperature for name, tier in plan.calibration.tiers.items()}
    answers = exits.ask("calibration", _same_gate(exits, Gate(plan.confidence, NEVER_SENDS)))
    return {tier: fit_temperature(of) for tier, of in _by_tier(exits, answers).items()}


def _distances(calibration: Calibration, rows: Sequence[GateRow]) -> list[TargetDeviation]:
    target = parse_target(calibration.target)
    known = {
        name: tier.offload_ratio if target.quantity == "offload" else tier.accuracy_drop
        for name, tier in calibration.tiers.items()
    }
    return distances(rows, target, known)


def _tiers_with_servers(exits: Exits) -> dict[str, list[int]]:
    """Clients of every tier that has servers, without those that are not there."""
    tiers: dict[str, list[int]] = {}
    for spec in exits.setup.fleet.clients:
        if spec.has_server and spec.client_id not in exits.left_out:
            tiers.setdefault(spec.tier, []).append(spec.client_id)
    return tiers


def _by_tier(exits: Exits, answers: Mapping[int, Answers]) -> dict[str, Answers]:
    """Answers of every tier with servers together, without tiers of which nobody has answered."""
    tiers = _tiers_with_servers(exits).items()
    there = {tier: [answers[client_id] for client_id in members if client_id in answers] for tier, members in tiers}
    return {tier: pooled(own) for tier, own in there.items() if own}


def _same_gate(exits: Exits, gate: Gate) -> dict[int, Gate]:
    return {spec.client_id: gate for spec in exits.setup.fleet.clients}
