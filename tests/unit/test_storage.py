"""Storage on a local disk, and on a stand-in for an object store, which cannot rename."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from hsee_ray.errors import UserError
from hsee_ray.storage import Storage
from tests.object_store import ObjectStore


@pytest.fixture(params=["local", "object store"])
def storage(request: Any, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage.at(str(tmp_path))
    return Storage(fs.PyFileSystem(ObjectStore()), "bucket/run")


def test_what_is_written_is_read_listed_and_removed(storage: Storage) -> None:
    assert storage.names() == []
    storage.write("round-000001/a.bin", b"first")
    storage.write("round-000001/b.bin", b"")
    storage.write("round-000002/a.bin", b"other")
    storage.write("round-000001/a.bin", b"second")
    assert storage.names() == ["round-000001", "round-000002"]
    assert storage.names("round-000001") == ["a.bin", "b.bin"]
    assert (storage.read("round-000001/a.bin"), storage.read("round-000001/b.bin")) == (b"second", b"")
    storage.remove("round-000001")
    assert storage.names() == ["round-000002"]
    with pytest.raises(OSError):
        storage.read("round-000001/a.bin")


def test_a_local_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.at(str(tmp_path))
    storage.write("a.bin", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hsee_ray.storage.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write("a.bin", b"new")
    assert storage.names() == ["a.bin"]
    assert storage.read("a.bin") == b"old"


def test_a_file_uri_is_a_local_path(tmp_path: Path) -> None:
    Storage.at(tmp_path.as_uri()).write("a.bin", b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"x"


def test_an_unknown_kind_of_storage_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^tape://x: is no storage that can be reached .*s3://, gs://$"):
        Storage.at("tape://x")
