"""The body of a request: what goes in comes out, and whatever else arrives is refused with a reason."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsee_ray.edge import protocol as offload
from hsee_ray.edge.codecs import CODE_TYPES
from hsee_ray.edge.protocol import (
    BadRequest,
    Offload,
    SentFeatures,
    decode,
    decode_answer,
    encode,
    encode_answer,
    encode_error,
    error_of,
    most_answer_bytes,
)

NETWORK = "0123456789abcdef" * 4
SERVED = {
    3: SentFeatures((2, 4, 4)),
    7: SentFeatures((5,), "fp16"),
    9: SentFeatures((3, 2, 2), "int8"),
    2**32 - 1: SentFeatures((1, 2, 3, 4)),
}


def features_of(client: int = 3, samples: int = 2, seed: int = 0) -> np.ndarray:
    """As the client sends them."""
    values = np.random.default_rng(seed).standard_normal((samples, *SERVED[client].shape))
    return (values * 50 + 127 if client == 9 else values).astype(CODE_TYPES[SERVED[client].codec])


def body_of(client: int = 3, samples: int = 2) -> bytearray:
    return bytearray(encode(client, NETWORK, features_of(client, samples)))


def signed(body: bytearray) -> bytes:
    """The body with the checksum that fits."""
    body[40:44] = struct.pack("<I", zlib.crc32(body[44:], zlib.crc32(body[:40])))
    return bytes(body)


def refusal(body: bytes | bytearray) -> BadRequest:
    with pytest.raises(BadRequest) as raised:
        decode(bytes(body), NETWORK, SERVED)
    assert "\n" not in str(raised.value)
    return raised.value


@settings(max_examples=200, deadline=None)
@given(
    client=st.sampled_from(sorted(SERVED)), samples=st.integers(1, 9), seed=st.integers(0, 2**32), view=st.booleans()
)
def test_what_is_sent_arrives(client: int, samples: int, seed: int, view: bool) -> None:
    features = features_of(client, samples, seed)
    body = encode(client, NETWORK, features)
    assert len(body) == offload.HEADER_BYTES + features.nbytes
    arrived = decode(memoryview(body) if view else body, NETWORK, SERVED)
    assert arrived.client == client
    assert arrived.features.dtype == features.dtype
    np.testing.assert_array_equal(arrived.features, features)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4).map(lambda bits: np.array([bits], np.uint32)),
)
def test_every_finite_number_keeps_its_bits(bits: np.ndarray) -> None:
    features = bits.view(np.float32)
    body = encode(0, NETWORK, features)
    if np.isfinite(features).all():
        assert decode(body, NETWORK, {0: SentFeatures((4,))}).features.tobytes() == features.tobytes()
    else:
        with pytest.raises(BadRequest, match="NaN or infinite"):
            decode(body, NETWORK, {0: SentFeatures((4,))})


def test_layout_by_hand() -> None:
    body = encode(258, NETWORK, np.array([[1.0, -2.0]], np.float32))
    assert body[:12] == b"HSEE\x01\x00\x01\x02\x02\x01\x00\x00"
    assert body[12:32] == bytes([1, 0, 0, 0, 2, *[0] * 15])
    assert body[32:40].hex() == NETWORK[:16]
    assert body[44:] == b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    assert struct.unpack("<I", body[40:44]) == (zlib.crc32(body[:40] + body[44:]),)
    half, byte = (encode(258, NETWORK, np.array([[1, 2]], dtype)) for dtype in (np.float16, np.uint8))
    assert (half[6], half[44:]) == (2, b"\x00\x3c\x00\x40")
    assert (byte[6], byte[44:]) == (3, b"\x01\x02")


def test_memory_order_does_not_matter() -> None:
    features = features_of()
    assert encode(3, NETWORK, np.asfortranarray(features)) == encode(3, NETWORK, features)


@pytest.mark.parametrize(
    "features", [np.zeros((2, 2)), np.zeros(3, np.float32), np.zeros((1, 1, 1, 1, 1, 1), np.float32)]
)
def test_what_cannot_be_sent(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        encode(3, NETWORK, features)


# Field -> (position, its new bytes, status, what is said).
WRONG = {
    "magic": (0, b"GET ", 400, "begins with b'GET '"),
    "version": (4, struct.pack("<H", 2), 400, "format version 2; this server reads 1"),
    "type": (6, b"\x02", 415, "type 2; client 3 sends 1, float32"),
    "dimensions": (7, b"\x03", 422, r"client 3 sends \(batch, \*\(2, 4, 4\)\)"),
    "no dimensions": (7, b"\x00", 422, "client 3 sends"),
    "too many dimensions": (7, b"\xff", 422, "client 3 sends"),
    "client": (8, struct.pack("<I", 4), 404, "client 4 is not served here"),
    "shape": (20, struct.pack("<I", 5), 422, "client 3 sends"),
    "shape behind the last": (28, struct.pack("<I", 1), 422, "client 3 sends"),
    "empty": (12, struct.pack("<I", 0), 422, "has no samples"),
    "more samples": (12, struct.pack("<I", 3), 400, "its header announces 428"),
    "most samples": (12, struct.pack("<I", 2**32 - 1), 400, "its header announces"),
    "network": (32, b"\xff" * 8, 409, r"has a network ffffffffffffffff\.\.\., this server has 0123456789abcdef"),
}


@pytest.mark.parametrize("field", WRONG)
def test_every_field_is_checked(field: str) -> None:
    first, new, status, said = WRONG[field]
    body = body_of()
    body[first : first + len(new)] = new
    for sent in (bytes(body), signed(body)):
        error = refusal(sent)
        assert error.status == status
        assert re.search(said, str(error))


@pytest.mark.parametrize("client", [3, 7])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(value: float, client: int) -> None:
    features = features_of(client)
    features[1, ..., -1] = value
    assert refusal(encode(client, NETWORK, features)).status == 422


@pytest.mark.parametrize("client", [3, 7, 9])
def test_a_client_sends_what_its_bundle_says(client: int) -> None:
    for dtype in {*CODE_TYPES.values()} - {CODE_TYPES[SERVED[client].codec]}:
        error = refusal(encode(client, NETWORK, features_of(client).astype(dtype)))
        assert error.status == 415
        assert f"client {client} sends" in str(error)


def test_damage_is_noticed_wherever_it_is() -> None:
    for position in range(len(body_of())):
        body = body_of()
        body[position] ^= 0x10
        assert 400 <= refusal(body).status < 500


def test_lengths() -> None:
    body = body_of()
    for length in (0, 1, 43):
        assert "its header alone has 44" in str(refusal(body[:length]))
    for wrong in (body[:44], body[:-1], body + b"\0"):
        assert "its header announces 300" in str(refusal(wrong))


def test_nothing_but_a_bad_request_comes_of_any_body() -> None:
    rng = np.random.default_rng(0)
    good = bytes(body_of())
    for number in range(2000):
        kind = number % 4
        if kind == 0:
            body = bytearray(rng.bytes(int(rng.integers(0, 400))))
        elif kind == 1:
            body = bytearray(good[: int(rng.integers(0, len(good)))])
        else:
            body = bytearray(good)
            where = rng.integers(0, len(good) if kind == 2 else offload.HEADER_BYTES, int(rng.integers(1, 6)))
            for position in where.tolist():
                body[position] = int(rng.integers(0, 256))
            if bytes(body) == good:
                continue
        assert 400 <= refusal(body).status < 500


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=400)
    | st.binary(max_size=100).map(lambda rest: b"HSEE\x01\x00\x01\x04\x03\x00\x00\x00" + rest)
    | st.binary(min_size=40, max_size=40).map(lambda head: signed(bytearray(head + b"\0" * 4)))
)
def test_bodies_that_hypothesis_thinks_of(body: bytes) -> None:
    assert 400 <= refusal(body).status < 500


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """A body with some bytes changed, added or left out, with the right checksum or not."""
    body = body_of(draw(st.sampled_from(sorted(SERVED))), draw(st.integers(1, 3)))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(body)) | st.integers(0, 44))
        body[begin : begin + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return signed(body) if len(body) >= 44 and draw(st.booleans()) else bytes(body)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(nearly_right() | st.binary(max_size=400))
def test_no_body_ends_in_a_traceback(body: bytes) -> None:
    try:
        arrived = decode(body, NETWORK, SERVED)
    except BadRequest as error:
        assert 400 <= error.status < 500 and "\n" not in str(error)
    else:
        assert arrived.features.shape[1:] == SERVED[arrived.client].shape
        assert np.isfinite(arrived.features).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["labels", "error", ""]), inner, max_size=2)
    ),
    max_leaves=5,
)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(
    st.binary(max_size=80)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.just(b'{"labels": [1' + b"0" * 5000 + b", 1]}")
)
def test_no_answer_is_misread(body: bytes) -> None:
    assert len(error_of(body)) <= 200
    try:
        labels = decode_answer(body, 2, 4)
    except ValueError:
        return
    assert labels.shape == (2,) and labels.dtype == np.int64 and (labels >= 0).all() and (labels < 4).all()


def test_answers() -> None:
    assert decode_answer(encode_answer(np.array([3, 0, 2])), 3, 4).tolist() == [3, 0, 2]
    wrong = [b"", b"{", b"[]", b"3", b"null", b"{}", b'{"labels": 3}', b'{"labels": [1]}', b'{"labels": [1, 4]}']
    wrong += [
        b'{"labels": [1, -1]}',
        b'{"labels": [1, true]}',
        b'{"labels": [1, 1.0]}',
        b'{"labels": [1, "1"]}',
        b"\xff",
        b"[" * 100_000,
    ]
    for body in wrong:
        with pytest.raises(ValueError):
            decode_answer(body, 2, 4)


def test_errors() -> None:
    assert error_of(encode_error("no such client")) == "no such client"
    assert error_of(b"<html>nginx</html>\n") == "<html>nginx</html>"
    assert error_of(b"[1]") == "[1]"
    assert error_of(b"[" * 100_000) == "[" * 200
    assert error_of(b"\xff" * 500).startswith("�")
    assert error_of(b"") == "no reason given"
    assert error_of(encode_error("x" * 5000)) == "x" * 200


def test_no_answer_is_longer_than_what_is_read() -> None:
    for samples, n_classes in ((1, 2), (3, 10), (1000, 1000)):
        longest = encode_answer([n_classes - 1] * samples)
        assert len(json.dumps(json.loads(longest), indent=4)) < most_answer_bytes(samples, n_classes) + 64


def test_a_refusal_keeps_its_status_over_processes() -> None:
    error = pickle.loads(pickle.dumps(BadRequest(404, "client 4 is not served here")))
    assert (error.status, str(error)) == (404, "client 4 is not served here")


def test_features_lie_over_the_body() -> None:
    arrived = decode(bytes(body_of()), NETWORK, SERVED)
    assert isinstance(arrived, Offload)
    assert not arrived.features.flags.writeable
