"""Where a run lives: what is sent, what is fetched, whose it is. At URIs on this machine; needs no cluster."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from hsee_ray.config.files import load_config
from hsee_ray.errors import ConfigError, RunError, UserError
from hsee_ray.rundir.location import RunLocation, run_place
from hsee_ray.storage import Storage, join

CONFIG = load_config({"tiers": [{"name": "sensor", "clients": 1, "cut": "stem"}]})


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The directory behind the URI."""
    return tmp_path / "bucket" / "night-1"


@pytest.fixture
def uri(kept: Path) -> str:
    return f"file://{kept}"


def begun(uri: str, **files: str) -> RunLocation:
    """A run at the URI with a config and other files; `__` in a name stands for `/`, and `_` for `.`."""
    location = RunLocation(uri)
    location.claim()
    write(location, config_yaml="seed: 0", **files)
    return location


def write(location: RunLocation, **files: str) -> None:
    for name, content in files.items():
        path = location.local / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)


def told(location: RunLocation) -> str:
    """What `send` says when the one before has come to its end."""
    for _ in range(200):
        trouble = location.send()
        if trouble is not None:
            return trouble
        time.sleep(0.01)
    raise AssertionError("nothing was told")


def names(kept: Path) -> set[str]:
    return {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()} - {".owner"}


def test_a_directory_is_worked_in_directly(tmp_path: Path) -> None:
    location = RunLocation(tmp_path / "run")
    assert (location.local, location.uri, location.shown) == (
        tmp_path / "run",
        str(tmp_path / "run"),
        str(tmp_path / "run"),
    )
    assert location.place("checkpoints") == f"{tmp_path}/run/checkpoints"
    location.check_free()
    location.fetch()
    location.claim()
    assert location.send() is None
    location.send_all()


def test_what_has_changed_is_sent_and_what_is_gone_is_removed(uri: str, kept: Path) -> None:
    location = begun(uri, tensorboard__events_1="one", metrics__a_parquet="a")
    write(location, **{"deep__er": "x"})
    location.send_all()
    assert names(kept) == {"config.yaml", "tensorboard/events.1", "metrics/a.parquet"}
    old = (kept / "config.yaml").stat().st_mtime_ns
    write(location, tensorboard__events_1="one two")
    (location.local / "metrics" / "a.parquet").unlink()
    location.send_all()
    assert (kept / "tensorboard" / "events.1").read_text() == "one two"
    assert names(kept) == {"config.yaml", "tensorboard/events.1"}
    assert (kept / "config.yaml").stat().st_mtime_ns == old, "what has not changed is not sent again"


def test_a_summary_comes_last(uri: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = begun(uri, summary_json="{}", tensorboard__z="z", zz_png="")
    order: list[str] = []
    monkeypatch.setattr(Storage, "write", lambda storage, name, content: order.append(name))
    location.send_all()
    assert order[-1] == "summary.json"
    assert len(order) == 4


def test_what_is_sent_in_the_background_is_the_file_of_that_moment(uri: str, kept: Path) -> None:
    location = begun(uri, tensorboard__e="round 1")
    assert location.send() is None
    write(location, tensorboard__e="round 1 and half a")
    assert location.send() is None  # waits for the one before
    location.send_all()
    assert (kept / "tensorboard" / "e").read_text() == "round 1 and half a"


def test_files_that_grow_are_not_sent_after_every_round(uri: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = begun(uri)
    sent = 0
    write_whole = Storage.write

    def counted(storage: Storage, name: str, content: bytes) -> None:
        nonlocal sent
        sent += len(content) if name == "tensorboard/e" else 0
        write_whole(storage, name, content)

    monkeypatch.setattr(Storage, "write", counted)
    for number in range(1, 201):
        write(location, tensorboard__e="x" * 100 * number)
        location.send()
        location._trouble()  # it has come to its end
    assert sent < 12 * 20_000, "whole files after each of 200 rounds are 100 times the last one"
    location.send_all()
    assert len((kept / "tensorboard" / "e").read_text()) == 20_000


def test_what_could_not_be_sent_is_told_and_sent_the_next_time(
    uri: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = begun(uri, tensorboard__e="round 1")
    with monkeypatch.context() as broken:
        broken.setattr(Storage, "write", lambda *_: (_ for _ in ()).throw(OSError("no route to the bucket")))
        assert location.send() is None
        assert told(location) == "no route to the bucket"
        with pytest.raises(OSError, match="no route"):
            location.send_all()
    assert names(kept) == set()
    location.send_all()
    assert names(kept) == {"config.yaml", "tensorboard/e"}


def test_a_run_is_taken_up_from_its_uri(uri: str, kept: Path) -> None:
    begun(uri, tensorboard__e="curve", metrics__a="rows", error_log="oops").send_all()
    (kept / "checkpoints").mkdir()
    (kept / "checkpoints" / "large").write_text("not fetched")
    location = RunLocation(uri)
    location.fetch()
    location.claim()
    found = {str(path.relative_to(location.local)) for path in location.local.rglob("*") if path.is_file()}
    assert found == {"config.yaml", "tensorboard/e", "metrics/a", "error.log"}
    (location.local / "error.log").unlink()
    location.send_all()
    assert names(kept) == {"config.yaml", "tensorboard/e", "metrics/a", "checkpoints/large"}


def test_the_newest_process_owns_the_run(uri: str) -> None:
    first = begun(uri)
    first.send_all()
    second = RunLocation(uri)
    second.fetch()
    second.claim()
    write(first, tensorboard__e="late")
    first.send()
    with pytest.raises(RunError, match="another process has taken this run over"):
        told(first)
    with pytest.raises(RunError, match="another process has taken this run over"):
        first.send_all()
    second.send_all()


def test_a_new_run_does_not_begin_where_one_is(uri: str) -> None:
    begun(uri).send_all()
    with pytest.raises(ConfigError, match=f"holds a run already; continue that with --resume {uri}"):
        RunLocation(uri).check_free()


def test_a_directory_has_one_owner_too(tmp_path: Path) -> None:
    first, second = RunLocation(tmp_path), RunLocation(tmp_path)
    first.claim()
    first.send()
    second.claim()
    for send in (first.send, first.send_all, first.check_owner):
        with pytest.raises(RunError, match="another process has taken this run over"):
            send()
    second.send_all()


def test_a_slow_storage_holds_no_round_up(uri: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = begun(uri, tensorboard__e="round 1")
    going_on = threading.Event()
    write_now = Storage.write
    monkeypatch.setattr(
        Storage, "write", lambda storage, name, content: going_on.wait(30) and write_now(storage, name, content)
    )
    assert location.send() is None
    write(location, tensorboard__e="round 1 and 2")
    assert location.send() is None, "it does not wait"
    assert names(kept) == set()
    going_on.set()
    location.send_all()
    assert (kept / "tensorboard" / "e").read_text() == "round 1 and 2"


def test_what_a_uri_says_of_its_store_stays_at_its_end() -> None:
    assert join("s3://bucket/runs?region=eu-1", "night-1", "final") == "s3://bucket/runs/night-1/final?region=eu-1"
    assert join("s3://bucket/runs/", "night-1") == "s3://bucket/runs/night-1"
    assert join("/mnt/what?", "a") == "/mnt/what?/a"


def test_a_uri_with_one_slash_is_no_directory() -> None:
    with pytest.raises(UserError, match="a URI has two slashes"):
        RunLocation(Path("s3://bucket/night"))


def test_there_is_no_run_to_resume(uri: str) -> None:
    with pytest.raises(UserError, match="holds no run that could be resumed"):
        RunLocation(uri).fetch()
    with pytest.raises(UserError, match="is no storage that can be reached"):
        RunLocation("nowhere://bucket/run")


def test_a_slash_at_the_end_changes_nothing(uri: str) -> None:
    assert RunLocation(f"{uri}/").place("final") == f"{uri}/final"
    assert RunLocation(f"{uri}/").name == "night-1"


def test_the_storage_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HSEE_STORAGE", raising=False)
    assert run_place(CONFIG, "a", submitted=False) == "runs/a"
    assert run_place(CONFIG, "a", submitted=True) == f"{Path.home()}/hsee-ray/runs/a"
    monkeypatch.setenv("HSEE_STORAGE", "mine")
    assert run_place(CONFIG, "a", submitted=False) == "mine/a"
    with pytest.raises(ConfigError, match="lies in the job's working directory, which Ray removes"):
        run_place(CONFIG, "a", submitted=True)
    monkeypatch.setenv("HSEE_STORAGE", "s3://bucket/runs/")
    assert run_place(CONFIG, "a", submitted=True) == "s3://bucket/runs/a"
