"""Summaries as plain text: the tiers of one run, and several runs side by side.

Cells are made here and aligned by one function, so a terminal and a job's log show the same lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from hsee_ray.errors import UserError
from hsee_ray.rundir.run import Run, side_figures

Rows = list[list[str]]
"""Cells of a table; the first row is the header."""

NONE = "-"
_ACCURACIES = ("client_accuracy", "server_accuracy")


def tier_table(summary: Mapping[str, Any], tau: float | None = None) -> Rows:
    """One row per tier and one for all clients, gated at `tau` or at the middle of the run's grid.

    `bytes per sample` is what a client sends at this tau, spread over all samples that it is asked about:
    eval_sent_bytes / eval_samples (one sample's features) times the offload ratio, averaged over clients. The metrics
    of `evaluation.figures` follow the accuracies.
    Raises UserError when tau is not in the run's grid.
    """
    index = _tau_index(summary, tau)
    shown = f"at tau {summary['overall']['gated'][index]['tau']:g}"
    own = [name for name in side_figures(summary["overall"]) if name not in _ACCURACIES]
    header = ["tier", "cut", "clients", *(name.replace("_", " ", 1) for name in (*_ACCURACIES, *own))]
    rows = [[*header, f"gated {shown}", f"offloaded {shown}", "bytes per sample"]]
    clients = summary["clients"]
    for tier in summary["tiers"]:
        members = [client for client in clients if client["tier"] == tier["name"]]
        rows.append([tier["name"], tier["cut"], *_tier_cells(tier, members, own, index)])
    rows.append(["overall", NONE, *_tier_cells(summary["overall"], clients, own, index)])
    return rows


def comparison_table(runs: Sequence[Run]) -> Rows:
    """One row per run; under each tier the accuracies of client and server, `client / server`.

    `gated` and `offloaded` are means over all clients at the middle of the run's own grid, which `tau` names.
    """
    tiers = list(dict.fromkeys(tier["name"] for run in runs for tier in run.summary["tiers"]))
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    gates = ["tau", "gated", "offloaded"]
    rows = [["run", "strategy", "seed", "rounds", *tiers, "overall", *gates, "majority", "samples/s", "weights"]]
    for name, run in zip(names, runs, strict=True):
        summary = run.summary
        overall = summary["overall"]
        gate = overall["gated"][_tau_index(summary, None)]
        by_tier = {tier["name"]: tier for tier in summary["tiers"]}
        rows.append(
            [
                name,
                summary["strategy"],
                str(summary["seed"]),
                str(summary["rounds"]),
                *(_both_accuracies(by_tier[tier]) if tier in by_tier else NONE for tier in tiers),
                _both_accuracies(overall),
                f"{gate['tau']:g}",
                percent(gate["accuracy"]),
                percent(gate["offload_ratio"]),
                percent(overall["majority_rate"]),
                f"{summary['samples_per_s']:,.0f}",
                summary["weights_sha256"][:12],
            ]
        )
    return rows


def align(rows: Rows) -> str:
    """Lines of a table: columns as wide as their widest cell, numbers to the right, never wrapped."""
    columns = list(zip(*rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [index > 0 and any(cell[:1].isdigit() for cell in column[1:]) for index, column in enumerate(columns)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(rows[0]), line(["-" * width for width in widths]), *map(line, rows[1:])])


def render_summary(summary: Mapping[str, Any], tau: float | None = None) -> str:
    """Text of the tiers' table, with the majority-class rate beneath it, who was left out for want of a place, and
    what the tiers' devices spent.

    Raises UserError when tau is not in the run's grid.
    """
    majority = percent(summary["overall"]["majority_rate"])
    lines = [align(tier_table(summary, tau)), f"majority-class rate: {majority}", *_left_out_lines(summary)]
    if (best := summary.get("best_round")) is not None:
        patience = summary["ended_by_patience"]
        ended = "" if patience is None else f", after {patience} without a better one (training.patience)"
        lines.append(
            f"models of round {best}, the best on the validation samples; trained to round {summary['rounds']}{ended}"
        )
    if (simulation := summary.get("simulation")) is not None:
        lines.append(_simulation_line(simulation))
    return "\n".join(lines)


def _left_out_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """A line for each tier of which a client had no place on the cluster for some rounds."""
    for tier in summary["tiers"]:
        missed = [client.get("missed_rounds", []) for client in summary["clients"] if client["tier"] == tier["name"]]
        if any(missed):
            yield (
                f"left out: {sum(map(bool, missed))} of {len(missed)} {tier['name']} clients, for "
                f"{sum(map(len, missed))} of their {len(missed) * summary['rounds']} rounds"
            )


def _simulation_line(simulation: Mapping[str, Any]) -> str:
    seconds = ", ".join(f"{simulation[f'{part}_s']:,.1f} s {part}" for part in ("train", "exchange", "evaluation"))
    tiers = [
        f"{tier['name']} on {tier['device']} {tier['joules']:,.1f} J, {tier['sent_bytes'] / 2**20:,.1f} MiB sent"
        for tier in simulation["tiers"]
    ]
    return f"simulated: {seconds}; in training: {'; '.join(tiers)}"


def render_comparison(runs: Sequence[Run]) -> str:
    """Text of the runs' table, with a line beneath it that says what the cells are."""
    legend = "under each tier and overall: accuracy of client / server; gated and offloaded: overall, at tau"
    return f"{align(comparison_table(runs))}\n{legend}"


def _tau_index(summary: Mapping[str, Any], tau: float | None) -> int:
    grid = [gate["tau"] for gate in summary["overall"]["gated"]]
    if tau is None:
        return len(grid) // 2
    if tau not in grid:
        known = ", ".join(f"{known:g}" for known in grid)
        raise UserError(f"tau {tau:g} was not evaluated in this run; choose one of {known}")
    return grid.index(tau)


def _tier_cells(
    means: Mapping[str, Any], clients: Sequence[Mapping[str, Any]], own: Sequence[str], index: int
) -> list[str]:
    gate = means["gated"][index]
    sent_bytes = [
        client["eval_sent_bytes"] / client["eval_samples"] * client["gated"][index]["offload_ratio"]
        for client in clients
        if client["eval_samples"]
    ]
    return [
        str(means["clients"]),
        *(percent(means[name]) for name in _ACCURACIES),
        *(decimal(means.get(name)) for name in own),
        percent(gate["accuracy"]),
        percent(gate["offload_ratio"]),
        f"{fmean(sent_bytes):,.0f}" if sent_bytes else NONE,
    ]


def _both_accuracies(means: Mapping[str, Any]) -> str:
    return f"{percent(means['client_accuracy'])} / {percent(means['server_accuracy'])}"


def decimal(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}%"
