"""Checkpoints: whole or not there, and every wrong byte is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.errors import DataError, UserError
from hsee_ray.method.aggregation import Ledger
from hsee_ray.method.reports import EvaluationReport
from hsee_ray.rundir.checkpoint import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    PROGRESS_FILE,
    FileEntry,
    Manifest,
    Progress,
    changed_keys,
    commit,
    committed_rounds,
    directory_of,
    entry_of,
    manifest_bytes,
    newest_checkpoint,
    parse_manifest,
    read_checkpoint,
    shard_file,
)
from hsee_ray.rundir.failures import History
from hsee_ray.rundir.summary import RunTotals, SimulatedTotals
from hsee_ray.storage import Storage
from tests.object_store import ObjectStore

MODEL = ModelId("client", 3)


def progress(round_number: int) -> Progress:
    evaluated = EvaluationReport(4, 2, None, (1, 2), (0, 0), 0, (2, 2), (4, 0))
    return Progress(
        config={"seed": 1, "tiers": [{"name": "a"}]},
        round_number=round_number,
        ledger=Ledger({"all/stem": 2}, {(MODEL, "stem"): 2, (ModelId("server", 0), "head"): 1}),
        trained=(0, 3),
        averages=("all/stem",),
        totals=RunTotals(
            round_number, 10, 1.5, True, {0: 5, 3: 7}, {3: evaluated}, {1: [1, 2]}, train_received_bytes={0: 4}
        ),
        history=History({"client 003": 1}),
        wall_s=2.5,
        metrics_parts={"rounds-000001-000002.parquet": FileEntry("ab", 2)},
        event_files={"events.1": 40},
    )


def whatever(_: Progress) -> None:
    """Nothing outside of a checkpoint is damaged."""


def write_checkpoint(storage: Storage, round_number: int, keep: int = 9) -> None:
    directory = directory_of(round_number)
    files = {shard_file(MODEL): b"tensors " * 4, PROGRESS_FILE: progress(round_number).to_json()}
    for name, content in files.items():
        storage.write(f"{directory}/{name}", content)
    commit(storage, Manifest(round_number, {name: entry_of(content) for name, content in files.items()}), keep)


@pytest.fixture(params=["local", "object store"])
def storage(request: Any, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage.at(str(tmp_path / "checkpoints"))
    return Storage(fs.PyFileSystem(ObjectStore()), "bucket/checkpoints")


def test_progress_is_read_back_equal() -> None:
    assert Progress.from_json(progress(2).to_json()) == progress(2)


def test_simulated_totals_are_read_back_equal_and_older_checkpoints_have_none() -> None:
    with_devices = progress(2)
    with_devices.totals.simulated = SimulatedTotals(
        1.5, 0.25, 2.0, {"a": 3.5}, {"a": 7}, {"a": 1}, {"a": 0.5}, {"a": 9}
    )
    assert Progress.from_json(with_devices.to_json()) == with_devices
    older = json.loads(progress(2).to_json())
    del older["totals"]["simulated"]
    assert Progress.from_json(json.dumps(older).encode()) == progress(2)


def test_a_checkpoint_is_read_back(storage: Storage) -> None:
    write_checkpoint(storage, 2)
    manifest, found = read_checkpoint(storage, 2)
    assert manifest.shards == {MODEL: "client-3.safetensors"}
    assert found == progress(2)


def test_nothing_counts_before_its_manifest(storage: Storage) -> None:
    write_checkpoint(storage, 2)
    storage.write(f"{directory_of(4)}/{PROGRESS_FILE}", progress(4).to_json())
    found = newest_checkpoint(storage, [], whatever)
    assert found is not None and found[0].round_number == 2


def test_no_checkpoint_is_none(storage: Storage) -> None:
    assert newest_checkpoint(storage, [], whatever) is None


def test_the_newest_are_kept(storage: Storage) -> None:
    for number in (2, 4, 6):
        write_checkpoint(storage, number, keep=2)
    assert committed_rounds(storage) == [6, 4]
    assert directory_of(2) not in storage.names()


def test_a_damaged_one_is_told_and_the_one_before_it_is_used(storage: Storage) -> None:
    for number in (2, 4):
        write_checkpoint(storage, number)
    storage.write(f"{directory_of(4)}/{shard_file(MODEL)}", b"other")
    damaged: list[str] = []
    found = newest_checkpoint(storage, damaged, whatever)
    assert found is not None and found[0].round_number == 2
    assert len(damaged) == 1 and "round-000004/client-3.safetensors: is damaged" in damaged[0]


def test_one_that_counts_on_something_damaged_is_not_used(storage: Storage) -> None:
    def check(found: Progress) -> None:
        if found.round_number == 4:
            raise DataError("metrics: are damaged")

    for number in (2, 4):
        write_checkpoint(storage, number)
    damaged: list[str] = []
    found = newest_checkpoint(storage, damaged, check)
    assert found is not None and found[0].round_number == 2 and damaged == ["metrics: are damaged"]


def test_an_older_checkpoint_does_not_say_how_often_who_trained() -> None:
    older = json.loads(progress(2).to_json())
    del older["totals"]["trained_rounds"]
    assert Progress.from_json(json.dumps(older).encode()).totals.trained_rounds == {0: 1, 3: 1}


def test_no_whole_one_is_an_error(storage: Storage) -> None:
    write_checkpoint(storage, 2)
    storage.write(f"{directory_of(2)}/{MANIFEST_FILE}", b"{}")
    with pytest.raises(DataError, match=r"none of the 1 checkpoints is whole .*start again"):
        newest_checkpoint(storage, [], whatever)


def test_every_flipped_and_every_cut_byte_is_noticed(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    write_checkpoint(storage, 2)
    read_checkpoint(storage, 2)
    directory = tmp_path / directory_of(2)
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        for index in range(len(content)):
            for wrong in (
                content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :],
                content[:index] + bytes([content[index] ^ 0x80]) + content[index + 1 :],
                content[:index],
            ):
                path.write_bytes(wrong)
                with pytest.raises(DataError):
                    read_checkpoint(storage, 2)
        path.write_bytes(content + b"\n")
        with pytest.raises(DataError):
            read_checkpoint(storage, 2)
        path.unlink()
        with pytest.raises((DataError, OSError)):
            read_checkpoint(storage, 2)
        path.write_bytes(content)
    read_checkpoint(storage, 2)


def test_a_newer_format_names_both_versions() -> None:
    content = manifest_bytes(Manifest(1, {}), version=FORMAT_VERSION + 1)
    with pytest.raises(UserError, match=rf"version {FORMAT_VERSION + 1}, .* up to version {FORMAT_VERSION}; resume"):
        parse_manifest(content, "run/manifest.json")


def test_a_manifest_has_one_text_only() -> None:
    content = manifest_bytes(Manifest(1, {"a": FileEntry("ab", 2)}))
    assert parse_manifest(content, "m") == Manifest(1, {"a": FileEntry("ab", 2)})
    with pytest.raises(DataError):
        parse_manifest(json.dumps(json.loads(content)).encode(), "m")


CONFIG = {"tiers": [{"name": "a", "clients": 2, "cut": "stem"}], "training": {"rounds": 4}}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.rounds=9", []),
        ("tiers.0.resources.num_cpus=0.5", []),
        ("tiers.0.resources.custom={jetson: 1}", []),
        ("server.resources.num_gpus=1", []),
        ("cluster.concurrent=7", []),
        ("failures.max_total=1", []),
        ("checkpoint.every=1", []),
        ("pipeline.max_in_flight=1", []),
        ("data.cache=elsewhere", []),
        ("evaluation.every=3", []),
        ("simulation.profiles=elsewhere.yaml", []),
        ("simulation.dropout_s=1", ["simulation.dropout_s"]),
        ("tiers.0.codec=int8", ["tiers.0.codec"]),
        ("seed=2", ["seed"]),
        ("training.threads=2", ["training.threads"]),
        ("training.memory_format=contiguous", ["training.memory_format"]),
        ("training.optimizer.lr=0.1", ["training.optimizer.lr"]),
        ("training.lr_schedule={name: cosine}", ["training.lr_schedule.horizon_rounds", "training.lr_schedule.name"]),
        ("tiers.0.cut=2", ["tiers.0.cut"]),
        ("tiers.0.clients=3", ["tiers.0.clients"]),
        ("data.augment=true", ["data.augment.flip", "data.augment.shift"]),
        ("data.augment=false", []),
    ],
)
def test_what_may_change_on_resume(override: str, told: list[str]) -> None:
    trained = load_config(CONFIG).model_dump(mode="json")
    wanted = load_config(CONFIG, [override]).model_dump(mode="json")
    assert list(changed_keys(trained, wanted)) == told


def test_keys_that_a_checkpoint_does_not_know_have_their_defaults() -> None:
    trained = load_config(CONFIG).model_dump(mode="json")
    older = {key: value for key, value in trained.items() if key != "simulation"}
    older["tiers"] = [{key: value for key, value in tier.items() if key != "codec"} for tier in older["tiers"]]
    assert list(changed_keys(older, trained)) == []
    wanted = load_config(CONFIG, ["simulation.dropout_probability=0.5"]).model_dump(mode="json")
    assert list(changed_keys(older, wanted)) == ["simulation.dropout_probability"]


def test_the_augmentation_of_an_older_checkpoint_is_todays_by_another_name() -> None:
    wanted = load_config(CONFIG, ["data.augment={flip: true, shift: 0.125}"]).model_dump(mode="json")
    older = {**wanted, "data": {**wanted["data"], "augment": True}}
    assert list(changed_keys(older, wanted)) == []
    older["data"]["augment"] = False
    assert list(changed_keys(older, wanted)) == ["data.augment.flip", "data.augment.shift"]


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def refused(self: Storage, name: str) -> None:
        raise PermissionError(13, "Permission denied", name)

    storage = Storage.at(str(tmp_path))
    write_checkpoint(storage, 1)
    monkeypatch.setattr(Storage, "remove", refused)
    write_checkpoint(storage, 2, keep=1)
    assert committed_rounds(storage) == [2, 1]
    assert "an old checkpoint cannot be removed" in caplog.text
