"""Codecs by hand, their bounds on the error as properties, and what a code may not depend on."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hsee_ray.edge.codecs import (
    ChannelRange,
    Codec,
    FeatureCodec,
    channel_range,
    decode,
    encode,
    feature_bytes,
)

SMALLEST_NORMAL = 2.0**-126


def bounds_of(low: float | list[float], high: float | list[float]) -> ChannelRange:
    return ChannelRange(np.float32(np.atleast_1d(low)), np.float32(np.atleast_1d(high)))


def column(*values: float) -> np.ndarray:
    """Samples of one value each."""
    return np.float32(values).reshape(-1, 1)


def there_and_back(codec: Codec, x: np.ndarray, bounds: ChannelRange | None = None, axis: int = 1) -> np.ndarray:
    return decode(codec, encode(codec, x, bounds, axis), bounds, axis)


# By hand


def test_int8_by_hand() -> None:
    # Steps of 1: half a step goes to the even neighbour, and what is out of the range to its end.
    x = column(-10, -9.5, -8.5, -8.4, 0, 244.9, 245, 300, -np.inf, np.inf, np.nan)
    codes = encode("int8", x, bounds_of(-10, 245), 1)
    assert codes.dtype == np.uint8
    assert codes.ravel().tolist() == [0, 0, 2, 2, 10, 255, 255, 255, 0, 255, 0]
    decoded = decode("int8", codes, bounds_of(-10, 245), 1)
    assert decoded.dtype == np.float32
    assert decoded.ravel().tolist() == [-10, -10, -8, -8, 0, 245, 245, 245, -10, 245, -10]


def test_every_channel_has_its_own_scale() -> None:
    x = np.float32([[0, -1], [255, 0], [100, 1.55]])
    bounds = channel_range(x, 1)
    assert bounds == bounds_of([0, -1], [255, 1.55])
    np.testing.assert_allclose(bounds.scale_C, [1, 0.01])
    assert encode("int8", x, bounds, 1).tolist() == [[0, 0], [255, 100], [100, 255]]


def test_fp16_by_hand() -> None:
    x = column(1, 1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519, 1e30, -np.inf, 2**-24, 2**-26, np.nan)
    codes = encode("fp16", x, None, 1)
    assert codes.dtype == np.float16
    expected = [1, 1, 1 + 2**-9, 65504, 65504, 65504, -65504, 2**-24, 0, np.nan]
    np.testing.assert_array_equal(decode("fp16", codes, None, 1).ravel(), expected)


def test_none_gives_the_same_memory_back() -> None:
    x = column(1, 2)
    assert encode("none", x, None, 1) is x
    assert decode("none", x, None, 1) is x


def test_a_channel_that_is_constant_comes_back_exactly() -> None:
    for value in (0.0, 0.1, -3e38, 1e-40):
        x = column(value, value)
        assert there_and_back("int8", x, channel_range(x, 1)).tobytes() == x.tobytes()
    # Whatever else it holds later.
    assert there_and_back("int8", column(7, np.inf, np.nan), bounds_of(3, 3)).ravel().tolist() == [3, 3, 3]


def test_zero_is_exact_where_it_is_an_end() -> None:
    """So what a ReLU has put to zero stays zero."""
    x = np.maximum(np.random.default_rng(0).standard_normal((8, 5), np.float32), 0)
    decoded = there_and_back("int8", x, channel_range(x, 1))
    assert (decoded[x == 0] == 0).all()


# Bounds on the error


floats = st.floats(-(2.0**126), 2.0**126, width=32)
batches = arrays.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=floats)


def int8_bound(bounds: ChannelRange) -> np.ndarray:
    """scale / 2 and the rounding of float32; the range itself where it is too small for a scale."""
    low_C, high_C = bounds.low_C.astype(np.float64), bounds.high_C.astype(np.float64)
    scale_C = (high_C - low_C) / 255
    coded_C = scale_C / 2 + 2.0**-21 * np.maximum(abs(low_C), abs(high_C))
    return np.where(bounds.scale_C == 0, np.maximum(coded_C, 256 * SMALLEST_NORMAL), coded_C)


@settings(max_examples=300, deadline=None)
@given(batches)
def test_int8_errs_by_half_a_step(x: np.ndarray) -> None:
    bounds = channel_range(x, 1)
    error = abs(there_and_back("int8", x, bounds).astype(np.float64) - x)
    assert (error <= int8_bound(bounds)).all()


@settings(max_examples=300, deadline=None)
@given(batches, st.integers(0, 2**32))
def test_out_of_the_range_the_nearest_end_is_taken(x: np.ndarray, seed: int) -> None:
    bounds = channel_range(x, 1)
    outside = x + np.float32(np.random.default_rng(seed).standard_normal(x.shape) * 3)
    error = abs(there_and_back("int8", outside, bounds).astype(np.float64) - outside.clip(bounds.low_C, bounds.high_C))
    assert (error <= int8_bound(bounds)).all()


@settings(max_examples=300, deadline=None)
@given(arrays.arrays(np.float32, (5, 3), elements=st.floats(-65504, 65504, width=32)))
def test_fp16_errs_by_half_a_bit(x: np.ndarray) -> None:
    error = abs(there_and_back("fp16", x).astype(np.float64) - x)
    assert (error <= np.maximum(2.0**-11 * abs(x.astype(np.float64)), 2.0**-25)).all()


@settings(max_examples=100, deadline=None)
@given(batches)
def test_what_was_decoded_is_coded_as_before(x: np.ndarray) -> None:
    bounds = channel_range(x, 1)
    codes = encode("int8", x, bounds, 1)
    again = encode("int8", decode("int8", codes, bounds, 1), bounds, 1)
    # Where the steps are finer than float32 is, several codes stand for one number.
    fine_C = bounds.scale_C < 2.0**-21 * np.maximum(abs(bounds.low_C), abs(bounds.high_C))
    np.testing.assert_array_equal(again[:, ~fine_C], codes[:, ~fine_C])


# What a code does not depend on


def some_features(samples: int = 70, shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    rng = np.random.default_rng(1)
    scales = np.float32(10.0 ** rng.integers(-3, 4, (shape[0], *[1] * (len(shape) - 1))))
    return rng.standard_normal((samples, *shape), np.float32) * scales


@pytest.mark.parametrize("codec", ["none", "fp16", "int8"])
def test_the_order_in_memory_changes_nothing(codec: Codec) -> None:
    x_BCHW = some_features()
    x_BHWC = np.ascontiguousarray(x_BCHW.transpose(0, 2, 3, 1))
    bounds = channel_range(x_BCHW, 1)
    assert channel_range(x_BHWC, 3) == bounds
    assert bounds.low_C.tolist() == x_BCHW.min(axis=(0, 2, 3)).tolist()
    assert bounds.high_C.tolist() == x_BCHW.max(axis=(0, 2, 3)).tolist()
    codes_BCHW, codes_BHWC = encode(codec, x_BCHW, bounds, 1), encode(codec, x_BHWC, bounds, 3)
    assert codes_BCHW.flags.c_contiguous and codes_BHWC.flags.c_contiguous
    np.testing.assert_array_equal(codes_BHWC.transpose(0, 3, 1, 2), codes_BCHW)
    decoded = decode(codec, codes_BHWC, bounds, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(decoded, decode(codec, codes_BCHW, bounds, 1))
    view = encode(codec, x_BHWC.transpose(0, 3, 1, 2), bounds, 1)
    np.testing.assert_array_equal(view, codes_BCHW)


@pytest.mark.parametrize("shape", [(5, 6, 7), (33,), (3, 4), (5, 300, 300)])
@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_neither_do_the_samples_beside_it(codec: Codec, shape: tuple[int, ...]) -> None:
    x = some_features(7 if len(shape) == 3 and shape[1] > 100 else 70, shape)
    bounds = channel_range(x[:3], 1)
    together = encode(codec, x, bounds, 1)
    assert together.shape == x.shape
    alone = np.concatenate([encode(codec, x[index : index + 1], bounds, 1) for index in range(len(x))])
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(decode(codec, together, bounds, 1)[4:5], decode(codec, together[4:5], bounds, 1))


def test_codes_are_those_of_the_formula() -> None:
    x = some_features()
    bounds = channel_range(x, 1)
    low, scale = bounds.low_C.reshape(-1, 1, 1), bounds.scale_C.reshape(-1, 1, 1)
    codes = np.rint((x - low) / scale).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(encode("int8", x, bounds, 1), codes)
    np.testing.assert_array_equal(decode("int8", codes, bounds, 1), low + codes * scale)


def test_the_sign_of_a_zero_does_not_reach_the_range() -> None:
    for values in ((-0.0, 0.0), (0.0, -0.0), (-0.0, -0.0)):
        bounds = channel_range(column(*values), 1)
        assert bounds.low_C.tobytes() == bounds.high_C.tobytes() == b"\0\0\0\0"


def test_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = column(np.nan, np.inf, -np.inf, 0, 1e-45)
        there_and_back("int8", x, bounds_of(0, 1))
        there_and_back("fp16", x)


# Bytes, and constants that travel


@pytest.mark.parametrize("shape", [(16, 8, 8), (12,)])
def test_bytes(shape: tuple[int, ...]) -> None:
    x = some_features(4, shape)
    for codec in ("none", "fp16", "int8"):
        bounds = channel_range(x, 1) if codec == "int8" else None
        assert feature_bytes(codec, shape, 4) == encode(codec, x, bounds, 1).nbytes + (bounds.nbytes if bounds else 0)
    assert feature_bytes("int8", (16, 8, 8), 4) == 4 * 16 * 8 * 8 + 8 * 16


@settings(max_examples=50, deadline=None)
@given(batches)
def test_a_range_survives_its_decimal_digits(x: np.ndarray) -> None:
    bounds = channel_range(x, 1)
    text = json.dumps([bounds.low_C.tolist(), bounds.high_C.tolist()])
    assert bounds_of(*json.loads(text)) == bounds


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("int4", None),
        ("int8", None),
        ("fp16", bounds_of(0, 1)),
        ("none", bounds_of(0, 1)),
        ("int8", bounds_of(1, 0)),
        ("int8", bounds_of(0, np.inf)),
        ("int8", bounds_of(np.nan, 1)),
        ("int8", bounds_of([0, 0], 1)),
    ],
)
def test_what_no_codec_can_be(name: Codec, bounds: ChannelRange | None) -> None:
    with pytest.raises(ValueError):
        FeatureCodec(name, bounds).checked()


def test_a_codec_is_what_both_ends_know() -> None:
    x = some_features(3)
    for codec in (FeatureCodec(), FeatureCodec("fp16"), FeatureCodec("int8", channel_range(x, 1))):
        codes = codec.encode(x)
        assert codes.dtype == codec.dtype
        np.testing.assert_array_equal(codec.decode(codes), there_and_back(codec.name, x, codec.bounds))
