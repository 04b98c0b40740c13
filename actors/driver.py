"""A run from its first actor to its last file, and taken up again from its last checkpoint."""

from __future__ import annotations

import fcntl
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ray

from actors.checkpoints import load_state, save_checkpoint
from actors.client import own_rows
from actors.cluster import connected
from actors.interrupt import GraceOver, StopRequest
from actors.placement import AGGREGATOR, RowRefs, Team, requests
from actors.recipe import RunState
from actors.recovery import Event, Recovery, StateLost
from actors.rounds import Rounds
from hsee_ray.checkpoint import Manifest, Progress, changed_keys, committed_rounds, newest_checkpoint, remove_newer
from hsee_ray.config import Config
from hsee_ray.config_files import dump_config, load_config
from hsee_ray.errors import ConfigError, Interrupted, RunError, UserError
from hsee_ray.record import Record
from hsee_ray.reports import RoundReport
from hsee_ray.run import CONFIG_FILE, MODELS_DIR, SUMMARY_FILE, Run, load_run
from hsee_ray.setup import Setup, mapped_client_data, prepare_run
from hsee_ray.storage import Storage, write_whole
from hsee_ray.summary import DataSummary, build_summary, write_summary
from hsee_ray.weights import weights_sha256

CHECKPOINTS_DIR = "checkpoints"
ERROR_FILE = "error.log"
LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Listener:
    """Who wants to know how a run goes."""

    assembled: Callable[[Team], None] = lambda team: None
    """Told of the actors when their creation has been asked for."""
    started: Callable[[Setup, int], None] = lambda setup, done_rounds: None
    """Told of the run, and how many of its rounds are done already."""
    trained: Callable[[int], None] = lambda samples: None
    """Told how many more samples have been trained on."""
    finished_round: Callable[[RoundReport], None] = lambda report: None
    entered: Callable[[int, str], None] = lambda round_number, stage: None
    """Told of every stage that a round comes to."""
    happened: Callable[[Event], None] = lambda event: None
    """Told of failures and of what was done about them."""


SILENT = Listener()


def run(config: Config, run_dir: Path, listener: Listener = SILENT, stop: StopRequest | None = None) -> Run:
    """Trains a configuration over actors and leaves a run directory.

    Raises UserError before anything is written, after that RunError (with the traceback in `error.log`), or
    Interrupted when `stop` was asked for.
    """
    if not _is_free(run_dir):
        raise ConfigError(
            f"{run_dir}: is not empty, it may hold a run; continue that with --resume, name another directory with "
            "--run-dir, or remove it"
        )
    if config.checkpoint.uri is not None:
        # Actors may work in another directory than this process, and so may whoever resumes the run.
        storage = Storage.at(config.checkpoint.uri)
        uri = config.checkpoint.uri if "://" in config.checkpoint.uri else storage.root
        checkpoint = config.checkpoint.model_copy(update={"uri": uri})
        config = config.model_copy(update={"checkpoint": checkpoint})
        if _reading(committed_rounds, storage):
            raise ConfigError(f"checkpoint.uri={uri}: holds another run's checkpoints; give each its own place")
    setup = prepare_run(config)
    with connected(config.cluster, requests(config, setup.fleet)) as local, _locked(run_dir):
        return _run(setup, run_dir, listener, stop or StopRequest(), None, local)


def resume(
    run_dir: Path, overrides: Iterable[str] = (), listener: Listener = SILENT, stop: StopRequest | None = None
) -> Run:
    """Continues a run from its newest checkpoint; a finished one is returned as it is. Raises as `run` does."""
    if not (run_dir / CONFIG_FILE).is_file():
        raise UserError(f"{run_dir}: holds no run that could be resumed (it has no {CONFIG_FILE}); start one there")
    with _locked(run_dir):
        begun = load_config(run_dir / CONFIG_FILE)
        config = load_config(run_dir / CONFIG_FILE, overrides)
        if begun.checkpoint.uri != config.checkpoint.uri:
            raise ConfigError("checkpoint.uri cannot be changed on resume: the checkpoints would not be found there")
        _check_changes(begun.model_dump(mode="json"), config)
        if (run_dir / SUMMARY_FILE).is_file():
            finished = load_run(run_dir)
            if finished.summary["rounds"] == config.training.rounds:
                listener.happened(Event(config.training.rounds, "resume", "run", "has finished, nothing is left to do"))
                return finished
        damaged: list[str] = []
        found = _reading(newest_checkpoint, Storage.at(_uri(config, run_dir)), damaged)
        number = 0 if found is None else found[0].round_number
        for reason in damaged:
            listener.happened(Event(number, "resume", "checkpoint", f"{reason}; not used"))
        if found is not None:
            _check_changes(found[1].config, config)
            _check_rounds(found[1], config)
        setup = prepare_run(config)
        with connected(config.cluster, requests(config, setup.fleet)) as local:
            return _run(setup, run_dir, listener, stop or StopRequest(), found, local)


def _reading(read: Callable[..., Any], storage: Storage, *args: Any) -> Any:
    """What a reader finds in a storage. Raises UserError when the storage cannot be reached."""
    try:
        return read(storage, *args)
    except OSError as error:
        raise UserError(f"{storage.root}: checkpoints cannot be read there ({str(error).splitlines()[0]})") from None


def _is_free(run_dir: Path) -> bool:
    """Whether a run may begin in a directory. Raises UserError when it cannot be made there."""
    try:
        if run_dir.is_dir():
            # What a run leaves that was killed before it had written anything.
            return all(path.name == LOCK_FILE or path.name.endswith(".tmp") for path in run_dir.iterdir())
        if run_dir.exists():
            return False
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be used ({error.strerror}); name another with --run-dir") from None
    parent = next(parent for parent in run_dir.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{run_dir}: cannot be made, {parent} is not writable; name another with --run-dir")
    return True


def _check_changes(begun: Mapping[str, Any], config: Config) -> None:
    """Raises ConfigError when the configuration is not that of the rounds that are trained already."""
    changed = list(changed_keys(begun, config.model_dump(mode="json")))
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: cannot be changed on resume, the run was begun otherwise; start a new one with "
            "--config and --run-dir"
        )


def _check_rounds(progress: Progress, config: Config) -> None:
    """Raises ConfigError when the run cannot end after so many rounds: the last round always aggregates."""
    wanted, trained = config.training.rounds, progress.round_number
    planned = progress.config["training"]["rounds"]
    if wanted < trained or (wanted == trained and planned != wanted):
        raise ConfigError(f"training.rounds is {wanted}, and {trained} of {planned} rounds are trained; give more")


def _uri(config: Config, run_dir: Path) -> str:
    return config.checkpoint.uri or str((run_dir / CHECKPOINTS_DIR).absolute())


def _run(
    setup: Setup,
    run_dir: Path,
    listener: Listener,
    stop: StopRequest,
    resumed: tuple[Manifest, Progress] | None,
    local: bool,
) -> Run:
    """Trains in a directory that is this process's own, on a Ray that is connected."""
    write_whole(run_dir / CONFIG_FILE, dump_config(setup.config).encode())
    for name in (SUMMARY_FILE, ERROR_FILE):
        (run_dir / name).unlink(missing_ok=True)
    try:
        _Session(setup, run_dir, listener, stop, images_by_reference=not local).train(resumed)
    except Interrupted:
        raise
    except Exception as error:
        # Whatever it was, the reader of the run directory must find it; it is raised again.
        with suppress(OSError):  # a full disk may be what it is about
            write_whole(run_dir / ERROR_FILE, traceback.format_exc().encode())
        reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        raise RunError(f"{reason}; the traceback is in {run_dir / ERROR_FILE}") from error
    return load_run(run_dir)


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Makes the directory, and keeps a second process from training in it at the same time."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(run_dir / LOCK_FILE, "w")  # noqa: SIM115 (closed below; errors of the block are none of this one)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written to ({error.strerror}); make it writable") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir}: another process is training there; wait for it, or end it") from None
        yield


class _Session:
    """One process's part of a run: from its first round, or from a checkpoint, to its end."""

    def __init__(
        self, setup: Setup, run_dir: Path, listener: Listener, stop: StopRequest, images_by_reference: bool
    ) -> None:
        self.setup = setup
        self.config = setup.config
        self.run_dir = run_dir
        self.listener = listener
        self.stop = stop
        self.uri = _uri(setup.config, run_dir)
        self.storage = Storage.at(self.uri)
        self.team = Team(setup, ray.put(setup), _put_rows(setup) if images_by_reference else None)
        listener.assembled(self.team)
        self.progress = Progress(setup.config.model_dump(mode="json"))
        self.recovery = Recovery(self.team, self.progress.history, listener.happened)
        self.rounds = Rounds(setup, self.team, self.recovery, stop, listener.trained, listener.entered)

    def train(self, resumed: tuple[Manifest, Progress] | None) -> None:
        """All rounds that are left, and the final files."""
        if resumed is not None:
            self.recovery.history.by_actor.update(resumed[1].history.by_actor)
        found, anew = resumed, False
        while True:
            try:
                self._take_up(found, anew)
                self.listener.started(self.setup, self.progress.round_number)
                try:
                    self._rounds()
                    self._finish()
                finally:
                    self.record.close()
                return
            except StateLost as lost:
                self.record.close()
                damaged: list[str] = []
                found, anew = newest_checkpoint(self.storage, damaged), True
                where = f"round {found[0].round_number}" if found else "the beginning"
                reasons = "".join(f" ({reason})" for reason in damaged)
                self.listener.happened(
                    Event(lost.failure.round_number, lost.failure.stage, "run", f"goes back to {where}{reasons}")
                )

    def _take_up(self, found: tuple[Manifest, Progress] | None, anew: bool) -> None:
        """Goes to the state of a checkpoint, or to the beginning; whatever was written after it is removed.

        `anew`: the models have left their first state.
        """
        progress = Progress({}) if found is None else found[1]
        progress.config = self.config.model_dump(mode="json")
        progress.history = self.recovery.history
        self.progress = progress
        self.record = Record(self.run_dir, self.setup, progress)
        if found is not None:
            self.rounds.go_to(load_state(self.rounds, self.uri, *found))
        elif anew:
            self.rounds.go_to(RunState())
        remove_newer(self.storage, progress.round_number)

    def _rounds(self) -> None:
        """Trains what is left, with a checkpoint now and then, and one when the run is to end before its time."""
        last, every = self.config.training.rounds, self.config.checkpoint.every
        try:
            with self.stop.listening(self.config.checkpoint.grace_s):
                for number in range(self.rounds.state.round_number + 1, last + 1):
                    report = self.rounds.run_round(number)
                    self.record.add(report)
                    self.listener.finished_round(report)
                    if self.stop.asked:
                        break
                    if number % every == 0 or number == last:
                        self._checkpoint()
        except GraceOver:
            self._end_early(spread=False)
        except RunError as error:
            self._save_what_there_is(error)
            raise
        if self.stop.asked:
            self._end_early(spread=True)

    def _end_early(self, spread: bool) -> NoReturn:
        """Raises Interrupted, with the last whole round in a checkpoint."""
        self._checkpoint(spread)
        self.record.write_metrics()
        raise Interrupted(self._interrupted(), self.stop.signal_number or 0)

    def _save_what_there_is(self, error: RunError) -> None:
        """A checkpoint of the last whole round when the run fails."""
        try:
            # Whatever has failed, a new aggregator can write what the driver has references of.
            self.team.replace(AGGREGATOR)
            self._checkpoint(spread=False)
            self.record.write_metrics()
        except (RunError, OSError, StateLost) as second:
            raise RunError(f"{error}; and no checkpoint could be written ({second})") from error

    def _interrupted(self) -> str:
        number = self.rounds.whole.round_number
        kept = f"round {number} is in a checkpoint" if number else "no round was whole yet"
        return f"interrupted; {kept}, continue with --resume {self.run_dir}"

    def _checkpoint(self, spread: bool = True) -> None:
        """Writes the last whole round down. `spread`: by all actors; else by the one that depends on nothing."""
        self.record.cut()
        save_checkpoint(self.rounds, self.storage, self.uri, self.config.checkpoint.keep, self.progress, spread)

    def _finish(self) -> None:
        # Actors may work in another directory than this process.
        digest = weights_sha256(self.rounds.save(str((self.run_dir / MODELS_DIR).absolute())))
        files = self.setup.files
        summary = build_summary(
            self.config,
            self.setup.fleet,
            self.progress.totals,
            self.setup.local_samples,
            digest,
            wall_s=self.record.wall_s,
            data=DataSummary(files.name, files.image_shape, files.class_names, self.setup.mean_C, self.setup.std_C),
            failures=self.recovery.history.by_actor,
        )
        self.record.finish(summary)
        # Last: a run directory with a summary is a finished run.
        write_summary(self.run_dir / SUMMARY_FILE, summary)


def _put_rows(setup: Setup) -> RowRefs:
    """Every client's images in the object store, for clients on nodes without the image files."""
    train = {}
    for spec in setup.fleet.clients:
        train[spec.number] = ray.put(own_rows(mapped_client_data(setup, spec.number).train))
    return RowRefs(train, ray.put(own_rows(mapped_client_data(setup, 0).test)))
