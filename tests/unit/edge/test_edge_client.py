"""A device's client against a server of this process: who is asked, how often, and what follows when nobody answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsee_ray.edge.edge_client import EdgeClient, Prediction, ServerBusy, ServerRefused, ServerUnreachable
from hsee_ray.errors import DataError, UserError
from tests.device import DROP, HANG, HANG_S, SURE, UNSURE, Server, images_of, running_server, write_client


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_client(tmp_path_factory.mktemp("bundles") / "client-003")


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


def labels(predictions: list[Prediction]) -> list[int]:
    return [prediction.label for prediction in predictions]


def test_only_unsure_samples_are_sent_in_one_request(bundle: Path, server: Server) -> None:
    server.delay_s = 0.3
    with EdgeClient(bundle, server.url) as client:
        predictions = client.predict(images_of(UNSURE, SURE, SURE, UNSURE, SURE))
    assert labels(predictions) == [2, 0, 0, 2, 0]
    assert [prediction.exited for prediction in predictions] == [False, True, True, False, True]
    assert not any(prediction.degraded for prediction in predictions)
    assert server.samples == [2]
    for prediction in predictions:
        if prediction.exited:
            assert prediction.confidence > 0.9
            assert 0 < prediction.latency_ms < 300, "who is sure does not wait for the server"
        else:
            assert 0.3 < prediction.confidence < 0.4
            assert prediction.latency_ms > 300


def test_codes_are_sent_where_the_bundle_says_so(tmp_path: Path, server: Server) -> None:
    with EdgeClient(write_client(tmp_path / "client-004", client=4), server.url) as client:
        predictions = client.predict(images_of(UNSURE, SURE))
    assert [(p.label, p.exited, p.degraded) for p in predictions] == [(2, False, False), (0, True, False)]
    assert server.samples == [1]


def test_who_is_sure_of_everything_sends_nothing(bundle: Path, server: Server) -> None:
    with EdgeClient(bundle, server.url) as client:
        assert labels(client.predict(images_of(SURE, SURE))) == [0, 0]
        assert client.predict([]) == []
    assert server.tokens == []


def test_images_in_every_form(bundle: Path) -> None:
    with EdgeClient(bundle) as client:
        assert labels(client.predict(images_of(SURE)[0])) == [0]
        assert labels(client.predict([images_of(SURE)[0], images_of(UNSURE)[0]])) == [0, 1]
        assert labels(client.predict(images_of(SURE, UNSURE)[::-1])) == [1, 0]
        assert client.predict(np.zeros((0, 2, 2, 1), np.uint8)) == []
        wrong = [np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2, 1)), np.zeros((2, 2), np.uint8), [np.zeros(3)]]
        for images in [*wrong, [images_of(SURE)[0], np.zeros((3, 2, 1), np.uint8)]]:
            with pytest.raises(UserError, match=r"this bundle takes uint8 and \(2, 2, 1\)"):
                client.predict(images)


def test_without_a_server_the_exit_answers_and_says_so(bundle: Path) -> None:
    sure, unsure = EdgeClient(bundle).predict(images_of(SURE, UNSURE))
    assert (sure.label, sure.exited, sure.degraded) == (0, True, False)
    assert (unsure.label, unsure.exited, unsure.degraded) == (1, False, True)


def test_a_client_with_the_whole_network_asks_nobody(tmp_path: Path, server: Server) -> None:
    with EdgeClient(write_client(tmp_path / "client-003", whole_network=True), server.url) as client:
        predictions = client.predict(images_of(SURE, UNSURE))
    assert [(p.label, p.exited, p.degraded) for p in predictions] == [(0, True, False), (1, True, False)]
    assert server.tokens == []


@pytest.mark.parametrize("script", [[503, 429, 500], [DROP, 502, DROP], [408]])
def test_it_tries_again(bundle: Path, server: Server, script: list[int | str]) -> None:
    server.script = list(script)
    with EdgeClient(bundle, server.url, on_unreachable="raise") as client:
        assert labels(client.predict(images_of(UNSURE))) == [2]
    assert len(server.tokens) == len(script) + 1


def test_a_server_that_hangs_is_given_up(bundle: Path, server: Server) -> None:
    server.script = [HANG]
    begin = time.monotonic()
    with EdgeClient(bundle, server.url, timeout_s=0.2, on_unreachable="raise") as client:
        assert labels(client.predict(images_of(UNSURE))) == [2]
    assert time.monotonic() - begin < HANG_S
    server.script = [HANG, HANG]
    with EdgeClient(bundle, server.url, timeout_s=0.2, retries=1) as client:
        (prediction,) = client.predict(images_of(UNSURE))
    assert (prediction.label, prediction.degraded) == (1, True)


def test_a_long_pause_that_a_server_asks_for_is_cut_short(bundle: Path, server: Server) -> None:
    server.script, server.headers = [503], {"Retry-After": "3600"}
    begin = time.monotonic()
    with EdgeClient(bundle, server.url, timeout_s=0.5) as client:
        assert labels(client.predict(images_of(UNSURE))) == [2]
    assert time.monotonic() - begin < 5


def test_when_all_tries_fail(bundle: Path, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.script = [500, 503, 500, 503]
    with EdgeClient(bundle, server.url, retries=1) as client:
        sure, unsure = client.predict(images_of(SURE, UNSURE))
        assert (sure.label, sure.exited, sure.degraded) == (0, True, False)
        assert (unsure.label, unsure.exited, unsure.degraded) == (1, False, True)
        assert "status 503: scripted 503); the exit answers" in caplog.text
    with (
        EdgeClient(bundle, server.url, retries=1, on_unreachable="raise") as client,
        pytest.raises(ServerUnreachable, match=r"/answer: cannot answer \(status 503: scripted 503\)"),
    ):
        client.predict(images_of(SURE, UNSURE))
    assert len(server.tokens) == 4


def test_nobody_listens(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = "http://127.0.0.1:9/"
    (prediction,) = EdgeClient(bundle, url, retries=0).predict(images_of(UNSURE))
    assert (prediction.label, prediction.degraded) == (1, True)
    assert "http://127.0.0.1:9/answer: cannot be reached (Failed to establish" in caplog.text
    client = EdgeClient(bundle, url, retries=0, on_unreachable="raise")
    with pytest.raises(ServerUnreachable, match="cannot be reached"):
        client.predict(images_of(UNSURE))
    assert labels(client.predict(images_of(SURE))) == [0]


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422, 307])
def test_a_refusal_is_raised_at_once(bundle: Path, server: Server, status: int) -> None:
    server.script, server.headers = [status], {"Location": server.url}
    with (
        EdgeClient(bundle, server.url) as client,
        pytest.raises(ServerRefused, match=rf"status {status}: scripted {status}"),
    ):
        client.predict(images_of(UNSURE))
    assert len(server.tokens) == 1


def test_token(bundle: Path, server: Server) -> None:
    with EdgeClient(bundle, server.url, token="secret") as client:
        client.predict(images_of(UNSURE))
        server.script = [401]
        with pytest.raises(ServerRefused, match=r"refuses the token \(scripted 401\); give the server's own") as raised:
            client.predict(images_of(UNSURE))
    assert "secret" not in str(raised.value)
    with EdgeClient(bundle, server.url) as client:
        client.predict(images_of(UNSURE))
    assert server.tokens == ["Bearer secret", "Bearer secret", None]


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"labels": []}', b'{"labels": [3]}', b"[]"])
def test_another_service_at_that_address(bundle: Path, server: Server, body: bytes) -> None:
    server.body = body
    with (
        EdgeClient(bundle, server.url) as client,
        pytest.raises(ServerRefused, match=r"is no server of this project .*; check the URL"),
    ):
        client.predict(images_of(UNSURE))


def test_another_network(tmp_path: Path, server: Server) -> None:
    directory = write_client(tmp_path / "client-003")
    content = json.loads((directory / "bundle.json").read_text())
    (directory / "bundle.json").write_text(json.dumps(content | {"network": "beef" * 16}))
    with EdgeClient(directory, server.url) as client, pytest.raises(ServerRefused, match="status 409: the device has"):
        client.predict(images_of(UNSURE))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://server", "http://", "", "http://[", "server"])
def test_urls_that_are_none(bundle: Path, url: str) -> None:
    with pytest.raises(UserError, match="give one such as http://"):
        EdgeClient(bundle, url)


def test_several_threads(bundle: Path, server: Server) -> None:
    server.delay_s = 0.01
    images = images_of(UNSURE, SURE, UNSURE)

    def predict(_: int) -> list[int]:
        return labels(client.predict(images))

    with EdgeClient(bundle, server.url, threads=1) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(predict, range(80), timeout=60))
    assert answers == [[2, 0, 2]] * 80
    assert server.samples == [2] * 80


def test_a_damaged_bundle(tmp_path: Path) -> None:
    directory = write_client(tmp_path / "client-003")
    content = bytearray((directory / "client.onnx").read_bytes())
    content[100] ^= 1
    (directory / "client.onnx").write_bytes(content)
    with pytest.raises(DataError, match=r"client\.onnx: is not the file that bundle\.json names"):
        EdgeClient(directory)
    (directory / "client.onnx").unlink()
    with pytest.raises(DataError, match=r"client\.onnx: cannot be read"):
        EdgeClient(directory)
    with pytest.raises(DataError, match=r"bundle\.json: cannot be read"):
        EdgeClient(tmp_path)


# Requests that are too large


def test_smaller_requests_are_sent_where_a_proxy_takes_no_larger(bundle: Path, server: Server) -> None:
    server.most_samples = 3
    with EdgeClient(bundle, server.url, on_unreachable="raise") as client:
        assert labels(client.predict(images_of(SURE, *[UNSURE] * 10))) == [0, *[2] * 10]
        assert server.samples == [10, 5, 3, 3, 3, 1]
        assert labels(client.predict(images_of(*[UNSURE] * 4))) == [2] * 4
    assert server.samples[6:] == [3, 1], "what was learnt is kept"


def test_one_sample_that_is_too_large(bundle: Path, server: Server) -> None:
    server.most_samples = 0
    message = r"status 413: too many samples\): one sample has 60 bytes; raise the limit of the server, or of the proxy"
    with EdgeClient(bundle, server.url) as client, pytest.raises(ServerRefused, match=message) as raised:
        client.predict(images_of(SURE, UNSURE, UNSURE))
    assert labels(list(raised.value.predictions)) == [0, 1, 1]


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [(409, ServerRefused, "server refused"), (401, ServerRefused, "server refused"), (503, ServerBusy, "server busy")],
)
def test_what_has_been_answered_is_kept(
    bundle: Path, server: Server, status: int, error: type[ServerRefused | ServerBusy], reason: str
) -> None:
    server.most_samples, server.script = 2, [200, 200, status]
    with (
        EdgeClient(bundle, server.url, retries=0, on_unreachable="raise") as client,
        pytest.raises(error) as raised,
    ):
        client.predict(images_of(UNSURE, SURE, UNSURE, UNSURE, UNSURE))
    kept = raised.value.predictions
    assert [(each.label, each.exited, each.degraded) for each in kept] == [
        (2, False, False), (0, True, False), (2, False, False), (1, False, True), (1, False, True)
    ]  # fmt: skip
    assert [each.reason for each in kept] == ["", "", "", reason, reason]


def test_why_an_answer_is_degraded(bundle: Path, server: Server) -> None:
    def reason(url: str | None) -> str:
        with EdgeClient(bundle, url, retries=0, timeout_s=1.0) as client:
            (prediction,) = client.predict(images_of(UNSURE))
        assert prediction.degraded
        return prediction.reason

    server.script = [503, HANG]
    found = [reason(None), reason("http://127.0.0.1:9"), reason(server.url), reason(server.url)]
    assert found == ["no server", "server unreachable", "server busy", "server silent"]


# Arguments


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("on_unreachable", "blah", "on_unreachable is 'blah'; give 'answer' or 'raise'"),
        ("on_unreachable", None, "on_unreachable is None"),
        ("retries", -1, "retries is -1; give a whole number from 0"),
        ("retries", 1.5, "retries is 1.5"),
        ("retries", True, "retries is True"),
        ("timeout_s", 0, "timeout_s is 0; give seconds, above 0 and up to 86400"),
        ("timeout_s", -1.0, "timeout_s is -1.0"),
        ("timeout_s", float("nan"), "timeout_s is nan"),
        ("timeout_s", float("inf"), "timeout_s is inf"),
        ("timeout_s", 10**400, "timeout_s is 1"),
        ("timeout_s", None, "timeout_s is None"),
        ("timeout_s", "10", "timeout_s is '10'"),
        ("threads", 0, "threads is 0; give a whole number from 1, or None"),
        ("threads", "2", "threads is '2'"),
        ("token", "", "token: give one word of printable ASCII characters"),
        ("token", "sec\nret", "token: give one word"),
        ("token", "secret\r", "token: give one word"),
        ("token", "schlüssel", "token: give one word"),
        ("token", "秘密", "token: give one word"),
        ("token", b"secret", "token: give one word"),
        ("server_url", 8000, "server URL 8000: give one such as http://"),
        ("server_url", "http://a/?x=1", "give one such as http://"),
        ("server_url", "http://a/\n", "give one such as http://"),
    ],
)
def test_arguments_that_cannot_be_meant(bundle: Path, option: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        EdgeClient(bundle, **{"server_url": "http://a", option: value})
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert option != "token" or not value or str(value) not in str(raised.value), "it is a secret"


@pytest.mark.parametrize("directory", [None, 3, "a\0b"])
def test_a_directory_that_is_none(directory: Any) -> None:
    with pytest.raises(UserError) as raised:
        EdgeClient(directory)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("images", [None, 3, "abc", {"a": 1}, [None], [[[1, 2], [3]]], np.uint8(3), [images_of(SURE)]])
def test_images_that_are_none(bundle: Path, images: Any) -> None:
    with EdgeClient(bundle) as client, pytest.raises(UserError, match=r"uint8 and \(2, 2, 1\)"):
        client.predict(images)


@pytest.mark.parametrize(
    ("field", "value"),
    [("class_names", ["ant", "bee"]), ("image_shape", [2, 3, 1]), ("feature_shape", [1, 2, 3]), ("server", None)],
)
def test_a_model_of_another_bundle(tmp_path: Path, field: str, value: Any) -> None:
    directory = write_client(tmp_path / "client-003")
    content = json.loads((directory / "bundle.json").read_text()) | {field: value}
    if value is None:
        content["feature_shape"] = None
    (directory / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"client\.onnx has shapes .*, and bundle\.json names .*; export it again"):
        EdgeClient(directory)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, 1, 2, 3, "a:b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.long
def test_no_bundle_ends_in_a_traceback(tmp_path: Path) -> None:
    directory = write_client(tmp_path / "client-003")
    right = json.loads((directory / "bundle.json").read_text())

    @settings(max_examples=2000, deadline=None)
    @given(st.sampled_from(sorted(right)), st.none() | st.sampled_from(["name", "kind", "tau", "onnx", "low"]), JSON)
    def any_value(key: str, inner: str | None, value: Any) -> None:
        if inner is not None and isinstance(right[key], dict):
            value = right[key] | {inner: value}
        (directory / "bundle.json").write_text(json.dumps(right | {key: value}))
        try:
            with EdgeClient(directory, threads=1) as client:
                assert len(client.predict(images_of(SURE, UNSURE))) == 2
        except DataError as error:
            assert "\n" not in str(error)

    any_value()
