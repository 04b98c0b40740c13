"""Log of a run in progress: metrics, curves, totals. Each round appears once.

Checkpoints say what belongs to them: the parts of the metrics, and how long every event file was. Whatever is more is
removed when the run is taken up from there.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from hsee_ray.method.figures import metrics_of
from hsee_ray.method.reports import RoundReport
from hsee_ray.method.setup import Setup
from hsee_ray.pictures import drawing
from hsee_ray.rundir.checkpoint import Progress, check_content, entry_of
from hsee_ray.rundir.curves import draw_curves
from hsee_ray.rundir.metrics import MetricRow, metric_rows, metrics_table, read_metrics, write_table
from hsee_ray.rundir.run import METRICS_FILE
from hsee_ray.rundir.tensorboard import RunBoard, shown_tau
from hsee_ray.simulation.prediction import RoundCost

PARTS_DIR = "metrics"
BOARD_DIR = "tensorboard"


class RunLog:
    """The record of one run directory, from the progress that a checkpoint holds on."""

    def __init__(self, run_dir: Path, setup: Setup, progress: Progress) -> None:
        """Removes files that the progress does not name; `check_parts` must have found the others well."""
        self.run_dir = run_dir
        self.setup = setup
        self.progress = progress
        self.rows: list[MetricRow] = []
        self.begin = time.perf_counter() - progress.wall_s
        _keep_only(run_dir / BOARD_DIR, progress.event_files)
        for name, size in progress.event_files.items():
            path = run_dir / BOARD_DIR / name
            if path.is_file() and path.stat().st_size > size:
                os.truncate(path, size)
        _keep_only(run_dir / PARTS_DIR, progress.metrics_parts)
        self.board = RunBoard(run_dir / BOARD_DIR, setup.config, setup.fleet)

    @property
    def wall_s(self) -> float:
        """Seconds of the run, without those between an end and a resume."""
        return time.perf_counter() - self.begin

    def add(self, report: RoundReport, cost: RoundCost | None) -> None:
        """Writes down one whole round, and what it cost in simulated time where devices are known."""
        self.progress.totals.add(report, cost)
        self.board.round(report, cost, self.progress.totals.simulated)
        config = self.setup.config
        if report.round_number == 1:  # nobody waits for a picture before the first step
            names = self.setup.files.class_names
            with _dispensable(self.run_dir / "class_counts.png") as path:
                self.board.class_counts(self.setup.class_counts, names, path)
        self.rows.extend(metric_rows(report, self.setup.fleet, config.exits.taus, cost, metrics_of(config)))

    def cut(self) -> None:
        """Notes in the progress what there is, for a checkpoint."""
        if self.rows:
            first, last = self.rows[0].round, self.rows[-1].round
            path = self.run_dir / PARTS_DIR / f"rounds-{first:06d}-{last:06d}.parquet"
            path.parent.mkdir(exist_ok=True)
            write_table(path, metrics_table(self.rows))
            self.progress.metrics_parts[path.name] = entry_of(path.read_bytes())
            self.rows.clear()
        events = [path for path in (self.run_dir / BOARD_DIR).iterdir() if path.is_file()]
        for path in events:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        self.progress.event_files = {path.name: path.stat().st_size for path in events}
        self.progress.wall_s = self.wall_s

    def write_metrics(self) -> pa.Table:
        """All rounds so far as one file, for readers; returns them."""
        parts = [read_metrics(self.run_dir / PARTS_DIR / name) for name in self.progress.metrics_parts]
        table = pa.concat_tables([*parts, metrics_table(self.rows)])
        write_table(self.run_dir / METRICS_FILE, table)
        return table

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Metrics as one file and as a picture, and the final figures on the board."""
        rows = (MetricRow(**row) for row in self.write_metrics().to_pylist())
        with drawing():
            figure = draw_curves(rows, self.setup.fleet.tiers, shown_tau(self.setup.config))
            with _dispensable(self.run_dir / "curves.png") as path:
                figure.savefig(path, format="png")
            self.board.curves(figure, summary["rounds"])
        self.board.finish(summary)
        self.board.close()

    def close(self) -> None:
        self.board.close()


@contextmanager
def _dispensable(path: Path) -> Iterator[Path]:
    """A block that writes a picture, without which a run is whole."""
    try:
        yield path
    except OSError as error:
        logging.getLogger("hsee_ray").warning("%s: cannot be written (%s)", path, error.strerror or error)


def check_parts(run_dir: Path, progress: Progress) -> None:
    """Raises DataError when a part of the metrics is missing or damaged."""
    for name, entry in progress.metrics_parts.items():
        path = run_dir / PARTS_DIR / name
        check_content(str(path), path.read_bytes() if path.is_file() else b"", entry)


def _keep_only(directory: Path, names: Any) -> None:
    """Removes other files; directories are none of a run's own, such as pictures of an evaluation."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.is_file() and path.name not in names:
            path.unlink()
