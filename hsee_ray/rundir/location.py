"""Location of a run. A directory is used in place; a run at a URI is written to a local directory and uploaded.

What is sent are whole files, by round: an object appears when it is complete, so whoever reads the URI while the run
goes on, TensorBoard for one, never sees half a round. Models and checkpoints do not pass through here: actors write
them to where the run lives themselves.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hsee_ray.config.schema import Config
from hsee_ray.errors import ConfigError, TakenOverError, UserError
from hsee_ray.paths import expanded_place
from hsee_ray.rundir.run import CONFIG_FILE, SUMMARY_FILE
from hsee_ray.storage import Storage, is_uri, join

OWNER_FILE = ".owner"
PATIENCE_S = 300.0
"""Longest time in which the files of a round are sent."""
SENT_DIRS = ("", "metrics", "tensorboard")
"""Directories of a run whose files are sent; what lies deeper is none of them."""
GROWING = "tensorboard/"
"""Files that are only added to, and can be sent as a whole only."""
GROWTH = 1.1
"""Factor by which those grow before a round sends them again: all of a run's rounds send some ten times what they end
with, however many there are. A checkpoint, and the end, send them as they are."""


class RunLocation:
    """One process's access to where a run lives."""

    def __init__(self, place: str | Path) -> None:
        """`place` is a directory, or a URI such as s3://bucket/runs/name. Raises UserError for an unknown URI."""
        _check_slashes(str(place))
        self.remote = Storage.at(str(place)) if is_uri(str(place)) else None
        if self.remote is None:
            self.local = Path(expanded_place(str(place)))
            self.uri = str(self.local.absolute())
        else:
            self.local = Path(tempfile.mkdtemp(prefix="hsee-ray-"))
            atexit.register(shutil.rmtree, self.local, ignore_errors=True)
            self.uri = join(str(place))
        self.token = uuid.uuid4().hex
        """Names this process's turn at the run."""
        self._sent: dict[str, tuple[int, int]] = {}
        """Size and time of what the URI has, by name."""
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="send-run") if self.remote is not None else None
        self._sending: Future[None] | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.uri.partition("?")[0].rpartition("/")[2]

    @property
    def shown(self) -> str:
        """The run as people name it: as it was given."""
        return self.uri if self.remote is not None else str(self.local)

    def place(self, *names: str) -> str:
        """A place in the run, for actors on any node."""
        return join(self.uri, *names)

    def storage(self, *names: str) -> Storage:
        """The storage at a place in the run."""
        return Storage.at(self.place(*names))

    def check_free(self) -> None:
        """Raises ConfigError when there is a run at the URI already, UserError when it cannot be reached."""
        if self.remote is not None and CONFIG_FILE in self._names(self.remote):
            raise ConfigError(
                f"{self.uri}: holds a run already; continue that with --resume {self.uri}, or name another place with "
                "--run-dir"
            )

    def fetch(self) -> None:
        """Gets what the run has written so far. Raises UserError when there is no run at the URI."""
        if self.remote is None:
            return
        if CONFIG_FILE not in self._names(self.remote):
            raise UserError(
                f"{self.uri}: holds no run that could be resumed (it has no {CONFIG_FILE}); start one there"
            )
        for name in self._sent:
            (self.local / name).unlink(missing_ok=True)
        self._sent.clear()
        for directory in SENT_DIRS:
            for file in self.remote.files(directory):
                name = f"{directory}/{file}" if directory else file
                if name != OWNER_FILE:
                    path = self.local / name
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(self.remote.read(name))
                    self._sent[name] = _stamp(path)

    def claim(self) -> None:
        """Makes the run this process's own: one that still trains it elsewhere ends before it writes any more.

        Raises UserError when nothing can be written there.
        """
        try:
            Storage.at(self.uri).write(OWNER_FILE, self.token.encode())
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.uri}: cannot be written to ({reason}); name another place, or get the right"
            ) from None

    def check_owner(self) -> None:
        """Raises TakenOverError when another process has taken the run over."""
        if Storage.at(self.uri).read(OWNER_FILE).decode() != self.token:
            raise TakenOverError(f"{self.shown}: another process has taken this run over, and goes on with it")

    def send(self) -> str | None:
        """Sends what has changed, in the background; gives what went wrong with what was sent before, if anything.

        What could not be sent, or is still being sent, is left to the next time. Raises TakenOverError.
        """
        if self._sender is None:
            self.check_owner()
            return None
        if self._sending is not None and not self._sending.done():
            return None
        trouble = self._trouble()
        self._sending = self._sender.submit(self._send, *self._changed(GROWTH))
        return trouble

    def send_all(self) -> None:
        """Sends what has changed and waits until it is there. Raises OSError when it cannot be, or TakenOverError."""
        if self._sender is None:
            self.check_owner()
            return
        self._trouble()
        self._send(*self._changed())

    def _names(self, remote: Storage) -> list[str]:
        try:
            return remote.names()
        except OSError as error:
            raise UserError(
                f"{self.uri}: cannot be read ({str(error).splitlines()[0]}); check its name and your rights"
            ) from None

    def _trouble(self) -> str | None:
        """Error of the last upload, if any; waits for the upload to finish."""
        if self._sending is None:
            return None
        error = self._sending.exception(timeout=PATIENCE_S)
        self._sending = None
        if isinstance(error, OSError):
            return str(error).splitlines()[0]
        if error is not None:
            raise error
        return None

    def _changed(self, growth: float = 1.0) -> tuple[dict[str, tuple[bytes, tuple[int, int]]], list[str]]:
        """Files to send as they are now, with their stamps, and names of those that are no more.

        Files that only grow are among them when they have become `growth` times as long as what was sent.
        """
        found: dict[str, Path] = {}
        for directory in SENT_DIRS:
            for path in (self.local / directory).iterdir() if (self.local / directory).is_dir() else ():
                if path.is_file() and not path.name.startswith("."):
                    found[f"{directory}/{path.name}" if directory else path.name] = path
        # The summary last: a run that has one is finished.
        names = sorted(found, key=lambda name: (name == SUMMARY_FILE, name))
        changed = {
            name: (found[name].read_bytes(), _stamp(found[name]))
            for name in names
            if self._sent.get(name) != _stamp(found[name])
            and not (name.startswith(GROWING) and self._is_hardly_longer(name, found[name], growth))
        }
        return changed, [name for name in self._sent if name not in found]

    def _is_hardly_longer(self, name: str, path: Path, growth: float) -> bool:
        """Whether a file has grown since it was sent, by less than a factor."""
        sent = self._sent.get(name, (0, 0))[0]
        return sent < path.stat().st_size < growth * sent

    def _send(self, changed: dict[str, tuple[bytes, tuple[int, int]]], gone: list[str]) -> None:
        assert self.remote is not None
        self.check_owner()
        for name in gone:
            self.remote.remove_file(name)
            del self._sent[name]
        for name, (content, stamp) in changed.items():
            self.remote.write(name, content)
            self._sent[name] = stamp


def run_place(config: Config, name: str, submitted: bool) -> str:
    """Location of a new run of this name: below `storage.uri`, else $HSEE_STORAGE, else on this machine.

    `submitted`: as a job of Ray's, whose working directory goes when the job ends; then it is the home directory.
    Raises ConfigError for a storage in that directory.
    """
    named = os.environ.get("HSEE_STORAGE") or ("~/hsee-ray/runs" if submitted else "runs")
    storage = named if config.storage.uri is None else config.storage.uri
    _check_slashes(storage)
    if not is_uri(storage):
        storage = expanded_place(storage)
        if submitted and not os.path.isabs(storage):
            raise ConfigError(
                f"storage.uri is {storage!r}: lies in the job's working directory, which Ray removes; give a URI or an "
                "absolute path"
            )
    return join(storage, name) if name else storage


def _check_slashes(place: str) -> None:
    """Raises UserError for a URI that would be taken for a directory."""
    if not is_uri(place) and ":/" in place:
        raise UserError(f"{place}: is no directory, and a URI has two slashes: s3://bucket/runs")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
