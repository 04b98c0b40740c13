"""A client whose features are coded: what it sends, and what it knows of their range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import CODEC, ModelId
from hsee_ray.edge.codecs import ChannelRange, Codec, channel_range
from hsee_ray.edge.gate import NEVER_SENDS, SENDS_ALL, Gate
from hsee_ray.edge.task import Classification
from hsee_ray.features.message import decode
from hsee_ray.features.stages import Int8
from hsee_ray.method.client import Client
from hsee_ray.method.server import Server
from hsee_ray.method.setup import Setup, build_client, build_server, mapped_client_data, prepare_run
from hsee_ray.method.strategies import strategy_of
from hsee_ray.models.state import named_tensors
from hsee_ray.reference import Reference
from tests.coded import range_of

CPU = torch.device("cpu")
SEND_ALL = Gate("entropy", SENDS_ALL)


def prepared(cache: Path, codec: Codec, **values: Any) -> Setup:
    """One sensor with 40 training images and a whole network; batches of 8."""
    return prepare_run(
        load_config(
            {
                "model": {"name": "tests.networks:conv_units"},
                "data": {
                    "name": "synthetic",
                    "cache": str(cache),
                    "image_size": 8,
                    "train_samples": 80,
                    "test_samples": 24,
                    "calibration_fraction": 0.0,
                },
                "tiers": [
                    {"name": "sensor", "clients": 1, "cut": "body.1", "codec": codec},
                    {"name": "whole", "clients": 1, "cut": "head", "codec": codec},
                ],
                "training": {"batch_size": 8, "rounds": 2},
                **values,
            }
        )
    )


def client_of(setup: Setup, number: int = 0) -> Client:
    return build_client(setup, number, mapped_client_data(setup, number), CPU)


def server_of(setup: Setup) -> Server:
    return build_server(setup, [0], CPU)


def observer_of(client: Client) -> Int8:
    observer = client.path.stages[CODEC]
    assert isinstance(observer, Int8)
    return observer


# The observer


def test_ranges_are_averaged_by_hand() -> None:
    observer = Int8({}, (2,))
    assert not observer.ready
    for low, high in (([-1, 0], [1, 2]), ([-2, 0], [3, 12])):
        observer.observe(ChannelRange(np.float32(low), np.float32(high)))
    assert observer.batches == 2
    bounds = observer.codec.bounds
    assert bounds is not None
    np.testing.assert_allclose(bounds.low_C, [-1.1, 0], rtol=1e-6)
    np.testing.assert_allclose(bounds.high_C, [1.2, 3], rtol=1e-6)


def test_the_first_batch_sets_the_range_bit_by_bit() -> None:
    observer, first = Int8({}, (1,)), ChannelRange(np.float32([-1 / 3]), np.float32([1e-30]))
    observer.observe(first)
    assert observer.codec.bounds == first


@pytest.mark.parametrize("codec", ["none", "fp16", "int8"])
def test_only_a_client_that_sends_int8_has_an_observer(codec: Codec, tmp_path: Path) -> None:
    setup = prepared(tmp_path, codec)
    names = list(client_of(setup).model.units)
    assert names == ["stem", "body.0", "body.1", "exit", *([CODEC] if codec == "int8" else [])]
    assert CODEC not in client_of(setup, 1).model.units
    assert all(
        CODEC not in units
        for units in strategy_of(setup.config).averaged_units(setup.config.training, setup.fleet).values()
    )
    assert ModelId("client", 0) in strategy_of(setup.config).averaged_units(setup.config.training, setup.fleet)


# Training


def test_a_training_message_has_the_range_of_its_batch_and_the_observer_sees_it(tmp_path: Path) -> None:
    client = client_of(prepared(tmp_path, "int8"))
    plain = client_of(prepared(tmp_path, "none"))
    packet, report = client.train(1, 0, 2)
    exact, _ = plain.train(1, 0, 2)
    expected = Int8({}, (4, 1, 1))
    for message, uncoded in zip(packet, exact, strict=True):
        bounds = channel_range(uncoded.features, 3)
        assert range_of(message) == bounds
        h, _ = decode(message, CPU)
        assert (np.abs(h.numpy() - decode(uncoded, CPU)[0].numpy()) <= 0.51 * bounds.scale_C.reshape(-1, 1, 1)).all()
        expected.observe(bounds)
    assert observer_of(client).codec.bounds == expected.codec.bounds
    # 8 samples of 4 x 4 x 4 codes and 8 bytes of label; two float32 for each of 4 channels.
    assert report.sent_bytes == 2 * (8 * (64 + 8) + 4 * 8)
    assert plain.train(1, 2, 3)[1].sent_bytes == 8 * (4 * 64 + 8)


@pytest.mark.parametrize("batch", [0, 1])
def test_a_skipped_batch_does_not_reach_the_observer(batch: int, tmp_path: Path) -> None:
    setup = prepared(tmp_path, "int8", failures={"on_nonfinite": "skip_batch"})
    client = client_of(setup)
    poison(client, batch)
    packet, report = client.train(1, 0, 2)
    assert report.skipped == 1
    (message,) = packet
    assert observer_of(client).batches == 1
    assert observer_of(client).codec.bounds == range_of(message)


def poison(client: Client, batch: int) -> None:
    """Images of one batch become useless."""
    make_tensors, calls = client._tensors, iter(range(100))

    def poisoned(*arrays: Any) -> Any:
        x_BCHW, y_B = make_tensors(*arrays)
        return (x_BCHW * float("nan"), y_B) if next(calls) == batch else (x_BCHW, y_B)

    client._tensors = poisoned  # type: ignore[method-assign]


# Inference


@pytest.fixture(params=["trained", "untrained"])
def sensor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Client, Server]]:
    """An int8 client that has seen batches, or none."""
    setup = prepared(tmp_path, "int8")
    client, server = client_of(setup), server_of(setup)
    if request.param == "trained":
        server.train(0, 1, client.train(1, 0, 5)[0])
    yield client, server


def test_a_sample_has_one_code_whatever_is_beside_it(sensor: tuple[Client, Server]) -> None:
    client, server = sensor
    before = client.snapshot()
    ((together,), _) = client.answer("test", 0, 24, SEND_ALL)
    labels = server.answer(0, (together,)).prediction_B
    alone = [client.answer("test", index, index + 1, SEND_ALL)[0][0] for index in range(24)]
    # The features of one image differ in their last bits from those in a batch; hardly ever does a code.
    codes = np.concatenate([message.features for message in alone]).astype(int)
    assert (abs(codes - together.features) <= 1).all() and (codes != together.features).mean() < 0.01
    assert all(range_of(message) == range_of(together) for message in alone)
    assert [int(server.answer(0, (message,)).prediction_B[0]) for message in alone] == labels.tolist()
    ((tested,), _) = client.evaluate("test", 0, 24)
    np.testing.assert_array_equal(tested.features, together.features)
    assert server.evaluate(0, (tested,)).sent_bytes == 24 * 64
    assert_same(client, before)


def test_only_unsure_samples_are_coded_and_no_constants_are_counted(sensor: tuple[Client, Server]) -> None:
    client, _ = sensor
    (everything,), sent = client.answer("test", 0, 24, SEND_ALL)
    assert sent.sent_bytes == everything.features.nbytes == 24 * 64
    tau = float(np.median(SEND_ALL.confidence(sent.logits_BK, Classification())))
    (some,), answers = client.answer("test", 0, 24, Gate("entropy", tau))
    np.testing.assert_array_equal(some.features, everything.features[~answers.exited_B])
    assert client.answer("test", 0, 24, Gate("entropy", NEVER_SENDS))[0] == ()


def test_the_range_is_the_observers_or_before_training_that_of_the_first_images(tmp_path: Path) -> None:
    setup = prepared(tmp_path, "int8")
    client, plain = client_of(setup), client_of(prepared(tmp_path, "none"))
    (message,), _ = client.evaluate("test", 0, 3)
    with torch.no_grad():
        plain.model.eval_mode()
        first = plain.data.train.indices[:8]
        x_BCHW, _ = plain._tensors(plain.data.train.images_NHWC[first], plain.data.train.labels_N[first])
        h_BCHW = plain.model.network(x_BCHW).numpy()
    assert range_of(message) == channel_range(h_BCHW, 1)
    assert not observer_of(client).ready, "nothing of it is kept"
    client.train(1, 0, 3)
    (message,), _ = client.evaluate("test", 0, 3)
    assert range_of(message) == observer_of(client).codec.bounds


def assert_same(client: Client, before: Any) -> None:
    tensors = named_tensors(client.snapshot().units)
    for name, array in named_tensors(before.units).items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


# Whole runs


def test_the_observer_is_in_the_files_and_taken_from_them(tmp_path: Path) -> None:
    setup = prepared(tmp_path, "int8")
    reference = Reference(setup)
    list(reference.run())
    tensors = reference.files()["client-000"]
    assert tensors["codec.batches"] == 10 and tensors["codec.low_C"].shape == (4,)
    again = client_of(setup)
    again.take_tensors(tensors)
    assert observer_of(again).codec.bounds == observer_of(reference.clients[0]).codec.bounds


def test_codecs_change_what_a_server_learns_and_nothing_below_the_cut(tmp_path: Path) -> None:
    """With `aggregate: server` nothing comes back to a client."""
    training = {"batch_size": 8, "rounds": 2, "aggregate": "server"}
    files: dict[Codec, Any] = {}
    for codec in ("none", "fp16", "int8"):
        reference = Reference(prepared(tmp_path, codec, training=training))
        list(reference.run())
        files[codec] = reference.files()
    for codec in ("fp16", "int8"):
        for name, array in files["none"]["client-000"].items():
            assert array.tobytes() == files[codec]["client-000"][name].tobytes()
        different = [
            name for name, a in files["none"]["server-000"].items() if (a != files[codec]["server-000"][name]).any()
        ]
        assert "head.2.weight" in different
