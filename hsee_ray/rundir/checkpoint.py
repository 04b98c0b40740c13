"""Checkpoints: one directory per checkpoint, which counts from the moment its manifest is there.

The manifest holds the SHA-256 and the size of every other file, and of itself. So a reader sees a whole checkpoint or
none, and every changed or missing byte is noticed. Tensors lie in safetensors files, everything else in JSON.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from hsee_ray.config.files import rename_old_keys
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import Config
from hsee_ray.errors import DataError, RunError, UserError
from hsee_ray.method.aggregation import Ledger
from hsee_ray.method.reports import EvaluationReport, RoundReport
from hsee_ray.rundir.failures import History
from hsee_ray.rundir.location import RunLocation
from hsee_ray.rundir.run import CHECKPOINTS_DIR
from hsee_ray.rundir.summary import RunTotals, SimulatedTotals
from hsee_ray.storage import Storage

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
PROGRESS_FILE = "progress.json"
AVERAGES_FILE = "averages.safetensors"

_DIRECTORY = re.compile(r"round-(\d+)")
_SHARD = re.compile(r"(client|server)-(\d+)\.safetensors")
_OWN_SHA256 = "manifest_sha256"


@dataclass(frozen=True)
class FileEntry:
    """Size and digest that a file must have."""

    sha256: str
    bytes: int


def entry_of(content: bytes) -> FileEntry:
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))


def check_content(name: str, content: bytes, entry: FileEntry) -> None:
    """Raises DataError when a file is not what its checkpoint says."""
    check_entry(name, entry_of(content), entry)


def check_entry(name: str, found: FileEntry, written: FileEntry) -> None:
    if found != written:
        raise DataError(f"{name}: is damaged (its {found.bytes} bytes are not the {written.bytes} that were written)")


@dataclass(frozen=True)
class Manifest:
    round_number: int
    """The last round that the checkpoint holds."""
    files: Mapping[str, FileEntry]
    """By name in the checkpoint's directory."""

    @property
    def shards(self) -> dict[ModelId, str]:
        """Files of models. A model without one is as it was initialised."""
        matches = {name: _SHARD.fullmatch(name) for name in self.files}
        return {_shard_model(match): name for name, match in matches.items() if match}


def _shard_model(match: re.Match[str]) -> ModelId:
    return ModelId("client" if match[1] == "client" else "server", int(match[2]))


def shard_file(model: ModelId) -> str:
    return f"{model.side}-{model.client_id}.safetensors"


def directory_of(round_number: int) -> str:
    return f"round-{round_number:06d}"


def manifest_bytes(manifest: Manifest, version: int = FORMAT_VERSION) -> bytes:
    """The manifest's only possible text; it holds the SHA-256 of itself without that line."""
    content: dict[str, Any] = {"format_version": version, "round": manifest.round_number}
    content["files"] = {name: asdict(entry) for name, entry in manifest.files.items()}
    content[_OWN_SHA256] = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical(content)


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Raises DataError when a byte is wrong, UserError when a newer version of hsee-ray wrote it."""
    try:
        values = json.loads(content)
        without = {key: value for key, value in values.items() if key != _OWN_SHA256}
        whole = _canonical(values) == content
        whole = whole and values[_OWN_SHA256] == hashlib.sha256(_canonical(without)).hexdigest()
    except (ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise DataError(f"{where}: is damaged")
    if values["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{where}: has the format version {values['format_version']}, and this hsee-ray reads up to version "
            f"{FORMAT_VERSION}; resume with the version that wrote it, or a newer one"
        )
    files = {name: FileEntry(**entry) for name, entry in values["files"].items()}
    return Manifest(values["round"], files)


def _canonical(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values, indent=1, sort_keys=True)}\n".encode()


def commit(storage: Storage, manifest: Manifest, keep: int, best: int = 0) -> None:
    """Writes the manifest, which makes the checkpoint count, and removes all but the newest `keep` and the best."""
    storage.write(f"{directory_of(manifest.round_number)}/{MANIFEST_FILE}", manifest_bytes(manifest))
    try:
        for old in committed_rounds(storage)[keep:]:
            if old != best:
                storage.remove(directory_of(old))
    except OSError as error:  # the new checkpoint is whole: an old one too many harms nothing
        logging.getLogger("hsee_ray").warning("%s: an old checkpoint cannot be removed (%s)", storage.root, error)


def write_checkpoint(
    location: RunLocation, progress: Progress, keep: int, write_files: Callable[[], Mapping[str, FileEntry]]
) -> None:
    """Writes a checkpoint of `progress`, whose tensors `write_files` writes into the directory of its round.

    Nothing is done where its round is in a checkpoint, or is none. Raises TakenOverError when the run is another
    process's by then.
    """
    storage, number = location.storage(CHECKPOINTS_DIR), progress.round_number
    if number == 0 or number in committed_rounds(storage):
        return
    directory = directory_of(number)
    try:
        files = write_files()
        location.check_owner()
        content = progress.to_json()
        storage.write(f"{directory}/{PROGRESS_FILE}", content)
        # The manifest is last: the checkpoint counts when everything else is there.
        commit(storage, Manifest(number, {**files, PROGRESS_FILE: entry_of(content)}), keep, progress.best_round)
    except (OSError, RunError):
        with suppress(OSError):  # half a checkpoint may be what fills the disk
            if number not in committed_rounds(storage):
                storage.remove(directory)
        raise


def remove_newer(storage: Storage, round_number: int) -> None:
    """Removes what is left of checkpoints after this round, whole or not: the run goes on from here."""
    for number in _rounds(storage):
        if number > round_number:
            storage.remove(directory_of(number))


def _rounds(storage: Storage) -> list[int]:
    matches = [_DIRECTORY.fullmatch(name) for name in storage.names()]
    return [int(match[1]) for match in matches if match]


def committed_rounds(storage: Storage) -> list[int]:
    """Rounds of the checkpoints that count, the newest first."""
    return sorted(
        (number for number in _rounds(storage) if MANIFEST_FILE in storage.names(directory_of(number))), reverse=True
    )


def read_checkpoint(storage: Storage, round_number: int) -> tuple[Manifest, Progress]:
    """A checkpoint of which every byte has been verified.

    Raises DataError when it is damaged, UserError when its format is newer.
    """
    directory = directory_of(round_number)
    where = f"{storage.root}/{directory}"
    try:
        manifest = parse_manifest(storage.read(f"{directory}/{MANIFEST_FILE}"), f"{where}/{MANIFEST_FILE}")
        for name, entry in manifest.files.items():
            check_entry(f"{where}/{name}", FileEntry(*storage.sha256(f"{directory}/{name}")), entry)
        if manifest.round_number != round_number or PROGRESS_FILE not in manifest.files:
            raise DataError(f"{where}: is not the checkpoint of round {round_number}")
        return manifest, Progress.from_json(storage.read(f"{directory}/{PROGRESS_FILE}"))
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({str(error).splitlines()[0]})") from None


def newest_checkpoint(
    storage: Storage, damaged: list[str], check: Callable[[Progress], None]
) -> tuple[Manifest, Progress] | None:
    """The newest whole checkpoint, or None where there never was one; what is damaged is told in `damaged`.

    `check` raises DataError where what a checkpoint counts on outside of it is damaged. Raises DataError when there are
    checkpoints and none is whole.
    """
    rounds = committed_rounds(storage)
    for number in rounds:
        try:
            manifest, progress = read_checkpoint(storage, number)
            check(progress)
            return manifest, progress
        except DataError as error:
            damaged.append(str(error))
    if rounds:
        raise DataError(f"{storage.root}: none of the {len(rounds)} checkpoints is whole ({damaged[0]}); start again")
    return None


@dataclass
class Progress:
    """State of a run apart from its tensors."""

    config: dict[str, Any]
    """The configuration under which the checkpoint was written."""
    fingerprint: dict[str, str] = field(default_factory=dict)
    """Of the data and the weights that the run began with; older checkpoints have none."""
    round_number: int = 0
    """The last whole round."""
    best_round: int = 0
    """The round with the highest accuracy on the validation samples, the first of equals; 0 before there is one."""
    best_accuracy: float = -1.0
    ledger: Ledger = field(default_factory=Ledger)
    trained: tuple[int, ...] = ()
    """Clients that trained since the last aggregation."""
    averages: tuple[str, ...] = ()
    """Keys of the newest averages."""
    totals: RunTotals = field(default_factory=RunTotals)
    history: History = field(default_factory=History)
    wall_s: float = 0.0
    metrics_parts: dict[str, FileEntry] = field(default_factory=dict)
    """Files of the run directory's `metrics/`, in order."""
    event_files: dict[str, int] = field(default_factory=dict)
    """Files of the run directory's `tensorboard/`, with their sizes in bytes."""

    def reach(self, round_number: int, ledger: Ledger, trained: Iterable[int], averages: Iterable[str]) -> None:
        """Takes what belongs to the state after a whole round."""
        self.round_number, self.ledger = round_number, ledger
        self.trained, self.averages = tuple(sorted(trained)), tuple(averages)

    def judge(self, report: RoundReport) -> bool:
        """Whether a round is the best one so far."""
        accuracy = report.validation_accuracy
        if accuracy is None or accuracy <= self.best_accuracy:
            return False
        self.best_round, self.best_accuracy = report.round_number, accuracy
        return True

    def to_json(self) -> bytes:
        values = asdict(replace(self, ledger=Ledger()))
        values["ledger"] = {
            "newest": self.ledger.newest,
            "seen": [[model.side, model.client_id, unit, number] for (model, unit), number in self.ledger.seen.items()],
        }
        return f"{json.dumps(values, indent=1)}\n".encode()

    @classmethod
    def from_json(cls, content: bytes) -> Progress:
        values = json.loads(content)
        ledger, totals = values.pop("ledger"), values.pop("totals")
        reports = {int(number): _report(report) for number, report in totals.pop("evaluation").items()}
        sent = {int(number): count for number, count in totals.pop("train_sent_bytes").items()}
        received = {int(number): count for number, count in totals.pop("train_received_bytes", {}).items()}
        missed = {int(number): rounds for number, rounds in totals.pop("missed_rounds").items()}
        learnt = totals.pop("trained_rounds", dict.fromkeys(sent, 1))  # older checkpoints do not say how many
        learnt = {int(number): rounds for number, rounds in learnt.items()}
        simulated = totals.pop("simulated", None)
        if simulated is not None:
            totals["simulated"] = SimulatedTotals(**simulated)
        seen = {(ModelId(side, number), unit): last for side, number, unit, last in ledger["seen"]}
        return cls(
            ledger=Ledger(ledger["newest"], seen),
            trained=tuple(values.pop("trained")),
            averages=tuple(values.pop("averages")),
            totals=RunTotals(
                **totals,
                train_sent_bytes=sent,
                train_received_bytes=received,
                evaluation=reports,
                missed_rounds=missed,
                trained_rounds=learnt,
            ),
            history=History(**values.pop("history")),
            metrics_parts={name: FileEntry(**entry) for name, entry in values.pop("metrics_parts").items()},
            **values,
        )


def _report(values: Mapping[str, Any]) -> EvaluationReport:
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return EvaluationReport(**plain)


def changed_keys(trained: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Dotted keys in which two configurations differ such that what was already trained would be another run."""
    yield from (key for key in _differences(_up_to_date(trained), wanted, "") if not _FREE.fullmatch(key))


def _up_to_date(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a checkpoint with today's keys: those that there were not yet have their defaults."""
    values = copy.deepcopy(dict(config))
    rename_old_keys(values)
    try:
        return Config.model_validate(values).model_dump(mode="json")
    except ValidationError:
        return config


_FREE = re.compile(
    r"training\.(rounds|keep|patience)|data\.(root|cache)|evaluation\.every|"
    r"(tiers\.\d+|server)\.(slots|resources(\..*)?)|(cluster|pipeline|storage|checkpoint|failures)\..*|"
    r"simulation\.(profiles|timeline_rounds)"
)
"""Keys that decide how long, how fast and where a run goes, and nothing of what it has computed."""


def _differences(one: Any, other: Any, path: str) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, f"{path}.{index}")
    elif one != other:
        yield path
