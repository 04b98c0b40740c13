"""Bad input to the serve job: exit code 2 and one line that says what to do. What its bench counts. Starts no Ray."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import urllib3

from actors.serving import application as serving
from jobs.benches.serve import batch_sizes, counted_retries
from jobs.serve import is_loopback, main, replica_bounds
from jobs.token_file import read_token
from tests.exports import tiny_export

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("serve"))[1]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert not ray.is_initialized()
    return captured.err


def test_a_missing_export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = refused(capsys, "--bundle", tmp_path / "missing")
    assert message.endswith("holds no bundle.json, and no client's directory; give that of an export\n")


def test_a_damaged_export(capsys: pytest.CaptureFixture[str], export: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(export, tmp_path / "copy"))
    (copy / "server" / "body.1.pt2").write_bytes(b"")
    assert "body.1.pt2: is not the file that bundle.json names" in refused(capsys, "--bundle", copy)
    (copy / "client-001" / "bundle.json").write_text("{", encoding="utf-8")
    assert "bundle.json: is damaged" in refused(capsys, "--bundle", copy)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], export: Path, taken_port: int) -> None:
    message = refused(capsys, "--bundle", export, "--port", taken_port)
    expected = f"--host 127.0.0.1 --port {taken_port}: cannot listen there (Address already in use); give others"
    assert message == f"error: {expected}\n"


def test_an_empty_host_is_not_every_address(capsys: pytest.CaptureFixture[str], export: Path) -> None:
    assert refused(capsys, "--bundle", export, "--host", "").startswith(
        "error: --host is empty, which is every address"
    )


@pytest.mark.parametrize("host", ["203.0.113.1", "no host at all"])
def test_a_host_that_is_not_this_machine(capsys: pytest.CaptureFixture[str], export: Path, host: str) -> None:
    assert f"--host {host} --port 8000: cannot listen there" in refused(capsys, "--bundle", export, "--host", host)


def test_a_door_to_the_world_without_a_token(capsys: pytest.CaptureFixture[str], export: Path, taken_port: int) -> None:
    message = refused(capsys, "--bundle", export, "--host", "0.0.0.0", "--port", taken_port)
    assert message.startswith("warning: anyone who reaches 0.0.0.0 may ask; --token-file asks them for a token\n")


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"two\nlines", "schlüssel".encode(), b"\xff"])
def test_a_file_without_a_token(
    capsys: pytest.CaptureFixture[str], export: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "token"
    assert "cannot be read" in refused(capsys, "--bundle", export, "--token-file", path)
    path.write_bytes(content)
    assert f"--token-file {path}: holds no token" in refused(capsys, "--bundle", export, "--token-file", path)


def test_a_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b" abc-123.~+/= \r\n")
    assert read_token(path) == "abc-123.~+/="


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--port", "65536", "65536: give a number from 0 to 65535"),
        ("--port", "http", "invalid number value: 'http'"),
        ("--replicas", "0", "'0': give a number from 1"),
        ("--replicas", "4:1", "'4:1': give a number from 1, or a smaller and a larger one such as 1:4"),
        ("--replicas", ":4", "':4': give a number from 1"),
        ("--max-batch-size", "0", "0: give a number from 1"),
        ("--batch-wait-ms", "nan", "nan: give a number from 0"),
        ("--max-body-mib", "inf", "inf: give a number from 0.001"),
        ("--num-gpus", "-1", "-1: give a number from 0"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], option: str, value: str, told: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--bundle", "export", option, value])
    assert caught.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_replica_bounds() -> None:
    assert replica_bounds("3") == (3, 3)
    assert replica_bounds("1:4") == (1, 4)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_hosts_that_only_this_machine_reaches(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_hosts_that_others_may_reach(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("module", ["jobs.serve", "jobs.bench"])
def test_help_loads_neither_torch_nor_ray(module: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in loaded, "the list of imports is read"
    assert loaded & {"torch", "ray", "numpy", "urllib3"} == set()


# The bench


def test_batch_sizes_are_told_from_the_buckets_of_all_replicas() -> None:
    name = "ray_serve_actual_batch_size"
    counts = {"a": {1: 3, 2: 5, 4: 5, 8: 6, 16: 6}, "b": {1: 1, 2: 1, 4: 2, 8: 2, 16: 2}}
    lines = [
        f'{name}_bucket{{application="hsee",le="{size}.0",replica="{replica}"}} {count}.0'
        for replica, of in counts.items()
        for size, count in of.items()
    ]
    text = "\n".join([f"# HELP {name} How many.", *lines, f'{name}_bucket{{le="+Inf"}} 8.0', f"{name}_count{{}} 8.0"])
    assert batch_sizes(text) == {"1": 4, "2": 2, "3-4": 1, "5-8": 1}
    assert batch_sizes("") == {}


def test_retries_are_counted() -> None:
    with counted_retries() as counts, pytest.raises(urllib3.exceptions.MaxRetryError):
        urllib3.PoolManager().request("GET", "http://127.0.0.1:1/", retries=2)
    assert sum(counts.values()) == 3
    before = sum(counts.values())
    with pytest.raises(urllib3.exceptions.MaxRetryError):
        urllib3.PoolManager().request("GET", "http://127.0.0.1:1/", retries=0)
    assert sum(counts.values()) == before


# The watch over the server


def test_a_server_that_nobody_finds_again_is_given_up(monkeypatch: pytest.MonkeyPatch, taken_port: int) -> None:
    monkeypatch.setattr(serving, "GONE_S", 0.3)
    monkeypatch.setattr(serving, "_WATCH_S", 0.1)
    begin = time.monotonic()
    serving.Server("127.0.0.1", taken_port).watch()  # it listens and answers nothing
    assert time.monotonic() - begin < 5
