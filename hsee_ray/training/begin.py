"""A run from its first actor to its last file, and taken up again from its last checkpoint."""

from __future__ import annotations

import errno
import fcntl
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hsee_ray.config.files import dump_config
from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError, DataError, Interrupted, RunError, TakenOverError, UserError
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.planning.planner import planned
from hsee_ray.process import memory_shortage
from hsee_ray.rundir.checkpoint import changed_keys, committed_rounds, newest_checkpoint
from hsee_ray.rundir.location import OWNER_FILE, RunLocation
from hsee_ray.rundir.run import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    ERROR_FILE,
    LOCK_FILE,
    SUMMARY_FILE,
    Run,
    load_begun,
    load_run,
)
from hsee_ray.rundir.run_log import PARTS_DIR, check_parts
from hsee_ray.storage import write_whole
from hsee_ray.training.engine import Backend, Opened, Resumed, Tell
from hsee_ray.training.interrupt import StopRequest
from hsee_ray.training.listener import SILENT, Event, Listener
from hsee_ray.training.session import Session


def run(
    config: Config,
    place: Path | str,
    opened: Opened,
    listener: Listener = SILENT,
    stop: StopRequest | None = None,
) -> Run:
    """Trains a configuration where `opened` says, and leaves a run where it lives: in a directory, or at a URI.

    Of a run at a URI, the files beside the models are returned in a directory that lives as long as this process.
    Raises UserError before anything is written, after that RunError (with the traceback in `error.log`), or
    Interrupted when `stop` was asked for.
    """
    location = RunLocation(place)
    check_free(location)
    setup = prepare_run(planned(config))
    if setup.config != config:
        picked = ", ".join(f"{tier.cut} for {tier.name}" for tier in setup.config.tiers)
        listener.happened(Event(0, "start", "plan", f"cuts by the devices' profiles: {picked}"))
    # From here on its own configuration: a cut that was left to the planner stands there by name, and stays.
    with opened(setup, _teller(listener)) as backend, _locked(location.local):
        check_free(location)  # somebody may have come first
        backend.check(setup, location, _teller(listener))
        location.claim()
        return _run(setup, location, listener, stop or StopRequest(), None, backend)


def resume(
    place: Path | str,
    opened: Opened,
    overrides: Iterable[str] = (),
    listener: Listener = SILENT,
    stop: StopRequest | None = None,
) -> Run:
    """Continues a run from its newest checkpoint; a finished one is returned as it is. Raises as `run` does."""
    location = RunLocation(place)
    location.fetch()
    run_dir = location.local
    begun, config = load_begun(run_dir), load_begun(run_dir, overrides)
    with _locked(run_dir):
        if begun.storage.uri != config.storage.uri:
            raise ConfigError("storage.uri cannot be changed on resume; copy the run there, and resume the copy")
        _check_changes(begun.model_dump(mode="json"), config)
        if (run_dir / SUMMARY_FILE).is_file():
            finished = load_run(run_dir)
            trained = finished.summary["rounds"]
            patience = finished.summary.get("ended_by_patience")
            if trained == config.training.rounds or (patience is not None and patience == config.training.patience):
                listener.happened(Event(trained, "resume", "run", "has finished, nothing is left to do"))
                return finished
        newest, found = _newest_checkpoint(location, listener)
        _check_not_lost(found, run_dir, location)
        _check_progress(found, config)
        setup = prepare_run(planned(config))
        _check_fingerprint(found, setup)
        with opened(setup, _teller(listener)) as backend:
            backend.check(setup, location, _teller(listener))
            location.claim()
            # Whoever trained it until now may have come further in the meantime.
            location.fetch()
            if committed_rounds(location.storage(CHECKPOINTS_DIR))[:1] != newest:
                _, found = _newest_checkpoint(location, listener)
                _check_progress(found, config)
            return _run(setup, location, listener, stop or StopRequest(), found, backend)


def _teller(listener: Listener) -> Tell:
    """Tells the listener of tiers that must wait, before the first round."""
    return lambda who, text: listener.happened(Event(0, "start", who, text))


def _newest_checkpoint(location: RunLocation, listener: Listener) -> tuple[list[int], Resumed]:
    """The round of the newest checkpoint, if there is one, and the newest whole one; tells of those that are damaged.

    Raises UserError when the storage cannot be reached.
    """
    storage = location.storage(CHECKPOINTS_DIR)
    damaged: list[str] = []
    try:
        newest = committed_rounds(storage)[:1]
        found = newest_checkpoint(storage, damaged, partial(check_parts, location.local))
    except OSError as error:
        raise UserError(f"{storage.root}: checkpoints cannot be read there ({str(error).splitlines()[0]})") from None
    for reason in damaged:
        number = 0 if found is None else found[0].round_number
        listener.happened(Event(number, "resume", "checkpoint", f"{reason}; not used"))
    return newest, found


def _check_not_lost(found: Resumed, run_dir: Path, location: RunLocation) -> None:
    """Raises DataError when rounds were trained and their checkpoints are gone: no resume begins such a run again.

    One part of the metrics may be without a checkpoint, as it is written before that.
    """
    parts = list((run_dir / PARTS_DIR).glob("rounds-*.parquet"))
    if found is None and ((run_dir / SUMMARY_FILE).is_file() or len(parts) > 1):
        raise DataError(
            f"{location.place(CHECKPOINTS_DIR)}: holds no checkpoint of a run that has trained rounds; restore it, or "
            "start a new run with --config and --run-dir"
        )


def check_free(location: RunLocation) -> None:
    """Raises ConfigError where there may be a run already, UserError where none can be."""
    if not _is_free(location.local):
        raise ConfigError(
            f"{location.local}: is not empty, it may hold a run; continue that with --resume, name another directory "
            "with --run-dir, or remove it"
        )
    location.check_free()


def _is_free(run_dir: Path) -> bool:
    """Whether a run may begin in a directory. Raises UserError when it cannot be made there."""
    try:
        if run_dir.is_dir():
            # What a run leaves that was killed before it had written anything.
            return all(path.name in (LOCK_FILE, OWNER_FILE) or path.name.endswith(".tmp") for path in run_dir.iterdir())
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


def _check_progress(found: Resumed, config: Config) -> None:
    """Raises ConfigError when the run was trained otherwise, or cannot end after so many rounds.

    The last round always aggregates, so rounds that are trained cannot be cut off.
    """
    if found is None:
        return
    progress = found[1]
    _check_changes(progress.config, config)
    wanted, trained = config.training.rounds, progress.round_number
    planned = progress.config["training"]["rounds"]
    if wanted < trained or (wanted == trained and planned != wanted):
        raise ConfigError(f"training.rounds is {wanted}, and {trained} of {planned} rounds are trained; give more")


def _check_fingerprint(found: Resumed, setup: Setup) -> None:
    """Raises DataError when the data or the first weights are not those of the rounds that are trained already."""
    begun = {} if found is None else found[1].fingerprint
    differing = [name for name, digest in begun.items() if setup.fingerprint.get(name) != digest]
    if differing:
        raise DataError(
            f"{', '.join(differing)}: not the same as when the run began; give it the data and weights that it began "
            "with (data.root, model.weights), or start a new run with --config and --run-dir"
        )


def _run(
    setup: Setup,
    location: RunLocation,
    listener: Listener,
    stop: StopRequest,
    resumed: Resumed,
    backend: Backend,
) -> Run:
    """Trains in a directory that is this process's own."""
    run_dir = location.local
    write_whole(run_dir / CONFIG_FILE, dump_config(setup.config).encode())
    try:
        location.send_all()
        session = Session(setup, location, listener, stop, backend)
        try:
            session.train(resumed)
        finally:
            session.close()
    except Interrupted:
        with suppress(OSError):  # the checkpoint, and the record that it counts on, are there
            location.send_all()
        raise
    except Exception as error:
        # Whatever it was, the reader of the run directory must find it; it is raised again.
        reason = str(error) if isinstance(error, RunError) else memory_shortage(error)
        reason = reason or f"{type(error).__name__}: {error}"
        raise RunError(explained(location, reason, traceback.format_exc())) from error
    return load_run(run_dir)


def explained(location: RunLocation, reason: str, trace: str) -> str:
    """Leaves the traceback of a failure in the run; gives the reason, how the run can go on, and where that is."""
    where = f"the traceback is in {location.shown}/{ERROR_FILE}"
    try:
        write_whole(location.local / ERROR_FILE, trace.encode())
        location.send_all()
    except (OSError, TakenOverError):  # a full disk may be what it is about, or that the run is another's now
        where = "no traceback could be left there"
    return f"{reason}; {_kept(location)}{where}"


def _kept(location: RunLocation) -> str:
    """From where a failed run can go on."""
    try:
        rounds = committed_rounds(location.storage(CHECKPOINTS_DIR))
    except OSError:
        return ""
    kept = f"round {rounds[0]} is in a checkpoint" if rounds else "no round is in a checkpoint yet"
    return f"{kept}, continue with --resume {location.shown}; "


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
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise UserError(f"{run_dir}: cannot be locked ({error.strerror})") from None
            # A file system without locks: of two processes, the first one ends when it sees that the run is taken over.
        yield
