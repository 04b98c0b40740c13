"""Stages of one's own on the way of the features: in training, in use, in checkpoints, and in what a device gets."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsee_ray.config.files import load_config
from hsee_ray.deploy.export import export
from hsee_ray.edge import EdgeClient
from hsee_ray.edge.bundle import BUNDLE_FILE, load_bundle, write_bundle
from hsee_ray.edge.codecs import ChannelRange, FeatureCodec
from hsee_ray.edge.gate import SENDS_ALL, Gate
from hsee_ray.edge.named import NamedPart
from hsee_ray.errors import ConfigError, DataError, UserError
from hsee_ray.features.message import FeatureBatch
from hsee_ray.features.stages import Array, Coded, Int8, Stage
from hsee_ray.method.client import Client
from hsee_ray.method.setup import Setup, build_client, mapped_client_data, prepare_run
from hsee_ray.models.snapshot import from_bytes, to_bytes
from hsee_ray.models.weights import read_model
from hsee_ray.reference import Reference
from tests.device import UNSURE, images_of, running_server, write_client
from tests.run_directories import train_run

CPU = torch.device("cpu")
NOISE = {"name": "tests.extensions.noise:Noise", "options": {"share": 0.5}}
LIMIT = {"name": "tests.extensions.limit:Limit", "options": {"high": 0.25}}
HERE = "tests.unit.features.test_path"
SEND_ALL = Gate("entropy", SENDS_ALL)


def content(*stages: Any, codec: str = "none", **values: Any) -> dict[str, Any]:
    """Two sensors with 20 training images each; batches of 8."""
    return {
        "model": {"name": "tests.networks:conv_units"},
        "data": {
            "name": "synthetic",
            "image_size": 8,
            "train_samples": 40,
            "test_samples": 16,
            "calibration_fraction": 0.0,
        },
        "tiers": [{"name": "sensor", "clients": 2, "cut": "body.1", "stages": list(stages), "codec": codec}],
        "training": {"batch_size": 8, "rounds": 2},
        **values,
    }


def prepared(cache: Path, *stages: Any, **values: Any) -> Setup:
    given = content(*stages, **values)
    return prepare_run(load_config({**given, "data": {**given["data"], "cache": str(cache)}}))


def client_of(setup: Setup, number: int = 0) -> Client:
    return build_client(setup, number, mapped_client_data(setup, number), CPU)


def bits(packet: Sequence[FeatureBatch]) -> list[bytes]:
    return [message.features.tobytes() for message in packet]


# Training


def test_noise_is_keyed_by_client_round_and_step(tmp_path: Path) -> None:
    setup, plain = prepared(tmp_path, NOISE), prepared(tmp_path)
    packet, _ = client_of(setup).train(1, 0, 3)
    # In one piece or in several, and in another process, the same.
    pieces = client_of(setup)
    assert bits(packet) == bits([*pieces.train(1, 0, 1)[0], *pieces.train(1, 1, 3)[0]])
    added = []
    for number, round_number in ((0, 1), (0, 2), (1, 1)):
        noisy, exact = (client_of(each, number).train(round_number, 0, 2)[0] for each in (setup, plain))
        for message, without in zip(noisy, exact, strict=True):
            noise = message.features - without.features
            assert noise.dtype == np.float32 and 0.3 < noise.std() / without.features.std() < 0.7
            added.append(noise / noise.std())
    assert all(abs(float((a * b).mean())) < 0.2 for i, a in enumerate(added) for b in added[:i]), "no draw is another's"


def test_what_a_stage_knows_is_in_snapshots_and_files(tmp_path: Path) -> None:
    setup = prepared(tmp_path, LIMIT, NOISE, codec="int8")
    client = client_of(setup)
    assert list(client.model.units)[-3:] == ["exit", "path.1", "codec"]
    client.train(1, 0, 2)
    snapshot = from_bytes(to_bytes(client.snapshot()))
    expected, _ = client.train(1, 2, 3)
    assert client.tensors()["path.1.spread"] != snapshot.units["path.1"].buffers["spread"] > 0
    again = client_of(setup)
    again.restore(snapshot)
    assert bits(again.train(1, 2, 3)[0]) == bits(expected)
    from_file = client_of(setup)
    from_file.take_tensors(client.tensors())
    assert from_file.tensors().keys() == client.tensors().keys()
    assert float(from_file.path.units["path.1"].spread) == float(client.path.units["path.1"].spread)


def test_a_codec_codes_what_the_stages_before_it_give(tmp_path: Path) -> None:
    (message,), _ = client_of(prepared(tmp_path, LIMIT, codec="int8")).train(1, 0, 1)
    (coder,) = message.decoders
    assert isinstance(coder, FeatureCodec) and coder.bounds is not None
    assert coder.bounds.high_C.max() == np.float32(0.25)


@pytest.mark.parametrize("stages", [[NOISE], [f"{HERE}:Signs"], [LIMIT, f"{HERE}:Signs"]])
def test_the_reference_repeats_itself(stages: list[Any], tmp_path: Path) -> None:
    digests = set()
    for given in (stages, stages, []):
        reference = Reference(prepared(tmp_path, *given))
        list(reference.run())
        digests.add(reference.digest())
    assert len(digests) == 2, "the stages make a difference, and twice the same one"


# A codec of one's own


@dataclasses.dataclass(frozen=True)
class FromSigns:
    size: float
    nbytes: int = 4

    def decode(self, codes: Array, axis: int) -> Array:
        return codes.astype(np.float32) * np.float32(self.size)


class Signs(Stage):
    """Above the mean or not, in a byte each."""

    def for_training(self, features: Array, axis: int, rng: np.random.Generator) -> Coded:
        return self.for_inference(features, axis)

    def for_inference(self, features: Array, axis: int) -> Coded:
        return Coded(np.sign(features - np.float32(0.5)).astype(np.int8), FromSigns(0.5))

    def feature_bytes(self, feature_shape: Sequence[int], samples: int) -> int:
        return samples * int(np.prod(feature_shape)) + 4


def test_a_codec_of_ones_own_is_decoded_by_its_class_and_tells_its_size(tmp_path: Path) -> None:
    setup = prepared(tmp_path, f"{HERE}:Signs")
    (message,), report = client_of(setup).train(1, 0, 1)
    assert message.features.dtype == np.int8 and message.decoders == (FromSigns(0.5),)
    assert set(np.unique(message.decoded().numpy())) <= {-0.5, 0.0, 0.5}
    assert report.sent_bytes == 8 * (64 + 8) + 4 == setup.feature_bytes(setup.fleet.clients[0], 8) + 8 * 8


# Inference


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_no_noise_in_inference(codec: str, tmp_path: Path) -> None:
    client, plain = (client_of(prepared(tmp_path, *stages, codec=codec)) for stages in ([NOISE], []))
    plain.take_tensors({name: array for name, array in client.tensors().items() if not name.startswith("path.")})
    together = client.answer("test", 0, 16, SEND_ALL)[0]
    assert bits(together) == bits(client.answer("test", 0, 16, SEND_ALL)[0]) == bits(client.evaluate("test", 0, 16)[0])
    if codec == "none":
        assert bits(together) == bits(plain.answer("test", 0, 16, SEND_ALL)[0])
    assert client.tensors()["path.0.spread"] == 0, "a client that has not trained keeps nothing of what it showed"


def test_tokens_have_a_range_for_each_channel() -> None:
    stage, rng = Int8({}, (5, 3)), np.random.default_rng(0)
    h_BTC = rng.standard_normal((4, 5, 3), np.float32)
    coded = stage.for_training(h_BTC, 2, rng)
    assert isinstance(coded.decoder, FeatureCodec)
    assert coded.decoder.bounds == ChannelRange(h_BTC.min(axis=(0, 1)), h_BTC.max(axis=(0, 1))) == stage.codec.bounds
    np.testing.assert_allclose(stage.codec.decode(stage.codec.encode(h_BTC)), h_BTC, atol=0.02)


# What is wrong is said at load


class Doubles(Signs):
    def for_training(self, features: Array, axis: int, rng: np.random.Generator) -> Array:  # type: ignore[override]
        return features + rng.standard_normal(features.shape)


class Halves(Signs):
    def for_training(self, features: Array, axis: int, rng: np.random.Generator) -> Array:  # type: ignore[override]
        return features[:, ::2]


class Nothing(Stage):
    pass


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("noise", "there is no stage 'noise'; use fp16, int8, or package.module:name for your own"),
        ("no.such:Noise", "tiers.0.stages.0 is 'no.such:Noise': the module no.such cannot be imported"),
        (f"{HERE}:content", "that is no subclass of hsee_ray.features.stages:Stage"),
        (f"{HERE}:Nothing", "the class has no for_training"),
        (
            {**NOISE, "options": {"share": -1}},
            "tiers.0.stages.0.options.share is -1: should be greater than or equal to 0",
        ),
        (f"{HERE}:Doubles", "tiers.0.stages: float64 features of shape (2, 4, 4, 4) arrive where float32 ones"),
        (
            f"{HERE}:Halves",
            "float32 features of shape (2, 2, 4, 4) arrive where float32 ones of (2, 4, 4, 4) were sent",
        ),
    ],
)
def test_a_wrong_stage_is_one_line(stage: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        prepared(tmp_path, stage)
    assert "\n" not in str(raised.value)


# On a device


def test_an_export_names_what_a_device_applies(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", content(NOISE, LIMIT, codec="int8"))
    export(run, tmp_path / "out", tau=0.5)
    written = json.loads((tmp_path / "out" / "client-000" / BUNDLE_FILE).read_text(encoding="utf-8"))
    assert written["stages"] == [{"name": "tests.extensions.limit_on_device:Limit", "options": {"high": 0.25}}]
    bundle = load_bundle(tmp_path / "out" / "client-000")
    assert bundle.stages == (NamedPart("tests.extensions.limit_on_device:Limit", {"high": 0.25}),)
    saved = read_model(run.path / "final" / "client-000.safetensors")
    assert bundle.codec.bounds == ChannelRange(saved["codec.low_C"], saved["codec.high_C"])
    assert bundle.codec.bounds.high_C.max() <= np.float32(0.25) < saved["path.0.spread"] * 2


def test_a_stage_that_only_trains_leaves_no_trace_in_a_bundle(tmp_path: Path) -> None:
    export(train_run(tmp_path / "run", content(NOISE)), tmp_path / "out", tau=0.5)
    assert "stages" not in json.loads((tmp_path / "out" / "client-000" / BUNDLE_FILE).read_text(encoding="utf-8"))


def test_a_stage_without_a_counterpart_is_not_exported(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", content(f"{HERE}:Signs"))
    with pytest.raises(UserError, match="the stage Signs cannot be applied on a device") as raised:
        export(run, tmp_path / "out", tau=0.5)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_device_puts_features_through_the_stages_of_its_bundle(tmp_path: Path) -> None:
    """The server answers a pixel of the features: 2, or with the limit 1."""
    directory = write_client(tmp_path / "client")
    bundle = load_bundle(directory)
    limit = NamedPart("tests.extensions.limit_on_device:Limit", {"high": 1.0})
    with running_server() as server:
        for stages, label in (((), 2), ((limit,), 1)):
            write_bundle(directory, dataclasses.replace(bundle, stages=stages))
            with EdgeClient(directory, server.url) as device:
                assert device.predict(images_of(UNSURE))[0].label == label


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (NamedPart("not_installed:Limit"), "not_installed:Limit cannot be loaded (No module named"),
        (NamedPart("tests.extensions.limit_on_device:Other"), "has no attribute 'Other'); install it on this machine"),
        (NamedPart("os:system", {"command": "true"}), "os:system is no subclass of hsee_ray.edge.stages:DeviceStage"),
        (NamedPart("tests.extensions.limit_on_device:Limit", {"low": 1}), "cannot be made with its options"),
        (NamedPart("nothing"), "nothing cannot be loaded ("),
    ],
)
def test_a_stage_that_a_device_lacks_is_one_line(stage: NamedPart, message: str, tmp_path: Path) -> None:
    directory = write_client(tmp_path / "client")
    write_bundle(directory, dataclasses.replace(load_bundle(directory), stages=(stage,)))
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        EdgeClient(directory)
    assert "\n" not in str(raised.value)


def test_a_devices_half_needs_numpy_only() -> None:
    script = "import sys, tests.extensions.limit_on_device; print({'torch', 'pydantic', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
