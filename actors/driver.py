"""A run from its first actor to its last file."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.client import own_rows
from actors.cluster import connected
from actors.placement import RowRefs, Team, requests
from actors.rounds import Rounds
from hsee_ray.checkpoint import weights_sha256, write_whole
from hsee_ray.config import Config
from hsee_ray.config_files import dump_config
from hsee_ray.errors import ConfigError, RunError
from hsee_ray.metrics import MetricRow, metric_rows, write_metrics
from hsee_ray.reports import RoundReport
from hsee_ray.run import CONFIG_FILE, METRICS_FILE, MODELS_DIR, SUMMARY_FILE, Run, load_run
from hsee_ray.setup import Setup, mapped_client_data, prepare_run
from hsee_ray.summary import DataSummary, RunTotals, build_summary, write_summary
from hsee_ray.tensorboard import RunBoard, save_class_counts

ERROR_FILE = "error.log"


@dataclass(frozen=True)
class Listener:
    """Who wants to know how a run goes."""

    started: Callable[[Setup], None]
    trained: Callable[[int], None]
    """Told how many more samples have been trained on."""
    finished_round: Callable[[RoundReport], None]


SILENT = Listener(lambda setup: None, lambda samples: None, lambda report: None)


def run(config: Config, run_dir: Path, listener: Listener = SILENT) -> Run:
    """Trains a configuration over actors and leaves a run directory.

    Raises UserError before anything is written, RunError (with the traceback in `error.log`) after that.
    """
    if run_dir.exists() and any(run_dir.iterdir() if run_dir.is_dir() else [run_dir]):
        raise ConfigError(f"{run_dir}: is not empty, it may hold a run; name another with --run-dir, or remove it")
    setup = prepare_run(config)
    with connected(config.cluster, requests(config, setup.fleet)) as local:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(run_dir / CONFIG_FILE, dump_config(config).encode())
        try:
            _train(setup, run_dir, listener, images_by_reference=not local)
        except Exception as error:
            # Whatever it was, the reader of the run directory must find it; it is raised again.
            write_whole(run_dir / ERROR_FILE, traceback.format_exc().encode())
            reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            raise RunError(f"{reason}; the traceback is in {run_dir / ERROR_FILE}") from error
    return load_run(run_dir)


def _train(setup: Setup, run_dir: Path, listener: Listener, images_by_reference: bool) -> None:
    begin = time.perf_counter()
    config = setup.config
    rows: list[MetricRow] = []
    totals = RunTotals()
    team = Team(setup, ray.put(setup), _put_rows(setup) if images_by_reference else None)
    listener.started(setup)
    board = RunBoard(run_dir / "tensorboard", config, setup.fleet)
    try:
        save_class_counts(run_dir / "class_counts.png", setup.class_counts, setup.files.class_names)
        board.class_counts(setup.class_counts, setup.files.class_names)
        rounds = Rounds(setup, team, listener.trained)
        try:
            for report in rounds.run():
                board.round(report)
                totals.add(report)
                rows.extend(metric_rows(report, setup.fleet, config.exits.taus))
                listener.finished_round(report)
        finally:
            write_metrics(run_dir / METRICS_FILE, rows)
        # Actors may work in another directory than this process.
        digest = weights_sha256(rounds.save(str((run_dir / MODELS_DIR).absolute())))
        summary = build_summary(
            config,
            setup.fleet,
            totals,
            setup.local_samples,
            digest,
            wall_s=time.perf_counter() - begin,
            data=DataSummary(
                setup.files.name, setup.files.image_shape, setup.files.class_names, setup.mean_C, setup.std_C
            ),
        )
        board.finish(summary)
        # Last: a run directory with a summary is a finished run.
        write_summary(run_dir / SUMMARY_FILE, summary)
    finally:
        board.close()


def _put_rows(setup: Setup) -> RowRefs:
    """Every client's images in the object store, for clients on nodes without the image files."""
    train = {}
    for spec in setup.fleet.clients:
        train[spec.number] = ray.put(own_rows(mapped_client_data(setup, spec.number).train))
    return RowRefs(train, ray.put(own_rows(mapped_client_data(setup, 0).test)))
