"""One picture of what was measured, from the benchmarks' JSON files: `python -m jobs.benches.picture PNG JSON ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Result = Mapping[str, Any]
COLOURS = {"ours": "#1f6fb4", "plain": "#8a8a8a", "best": "#2b8a5f"}


def main(argv: Sequence[str]) -> None:
    target, *sources = argv
    results = [json.loads(Path(source).read_text()) for source in sources]
    draw(results).savefig(target, dpi=110)


def draw(results: Sequence[Result]) -> Figure:
    """A panel for each of the results that has one."""
    panels = [(PANELS[result["what"]], result) for result in results if result["what"] in PANELS]
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    for column, (panel, result) in enumerate(panels, start=1):
        panel(figure.add_subplot(1, len(panels), column), result)
    return figure


def throughput(axes: Axes, result: Result) -> None:
    """Speeds as shares of what the cores could do."""
    names = []
    for row, case in enumerate(result["cases"]):
        best = case["samples_per_s"][case["best"]]["median"]
        for offset, name in ((-0.2, "ours"), (0.2, "plain")):
            share = case["samples_per_s"][name]["median"] / best
            label = {"ours": "hsee-ray", "plain": "plain loop, all cores"}[name] if row == 0 else None
            axes.barh(row + offset, share, 0.36, color=COLOURS[name], label=label)
            axes.text(share - 0.02, row + offset, f"{share:.2f}", ha="right", va="center", color="white", fontsize=8)
        names.append(f"width {case['width']}\n{case['strategy']}")
    axes.axvline(1.0, color=COLOURS["best"], label="limit, bound")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_title("samples/s, as a share of the limit")
    axes.legend(fontsize=8, loc="lower left")


def overhead(axes: Axes, result: Result) -> None:
    """Milliseconds per batch by the size of its features."""
    for clients in sorted({row["clients"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["clients"] == clients]
        medians = [row["ms_per_batch"]["median"] for row in rows]
        axes.loglog([row["kib"] for row in rows], medians, marker="o", label=f"{clients} clients")
    axes.set_xlabel("KiB of features a batch")
    axes.set_ylabel("ms per batch")
    axes.set_title("overhead, steps that compute nothing")
    axes.legend(fontsize=8)


def scale(axes: Axes, result: Result) -> None:
    """Time per client and round, and the most memory, by the number of clients."""
    clients = [case["clients"] for case in result["cases"]]
    axes.semilogx(clients, [case["ms_per_client_round"]["median"] for case in result["cases"]], "o-", label="ms")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients")
    axes.set_ylabel("ms per client and round")
    memory = axes.twinx()
    peaks = [case["peak_mib"]["median"] / 1024 for case in result["cases"]]
    memory.plot(clients, peaks, "s--", color=COLOURS["plain"], label="GiB")
    memory.set_ylim(bottom=0)
    memory.set_ylabel("GiB of all processes")
    axes.set_title(f"clients in {result['slots']} + {result['slots']} slots")


PANELS: dict[str, Callable[[Axes, Result], None]] = {"throughput": throughput, "overhead": overhead, "scale": scale}

if __name__ == "__main__":
    main(sys.argv[1:])
