"""A sample that a device codes with its bundle: the code and the label are those of the run's own client and server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from hsee_ray.deploy.export import export
from hsee_ray.deploy.server_models import ServerModels, find_bundles, sent_features
from hsee_ray.edge.bundle import load_bundle
from hsee_ray.edge.codecs import Codec
from hsee_ray.edge.gate import SENDS_ALL, Gate
from hsee_ray.edge.protocol import decode, encode
from hsee_ray.method.client import ClientData, Samples
from hsee_ray.method.setup import build_client, build_server, mapped_client_data, prepare_run
from hsee_ray.models.weights import read_model
from tests.coded import range_of
from tests.exports import CONFIG
from tests.run_directories import train_run

CPU = torch.device("cpu")
SAMPLES = 500
EDGE = 1e-4
"""Of a step between two codes: how near to its middle a value may fall to either side of it."""


def with_codec(codec: Codec, **training: float) -> dict[str, object]:
    tiers = [{**tier, "codec": codec} for tier in CONFIG["tiers"]]
    return {**CONFIG, "tiers": tiers, "training": {**CONFIG["training"], **training}}


@pytest.mark.parametrize(
    ("codec", "strategy"), [("none", "averaging"), ("fp16", "averaging"), ("int8", "averaging"), ("int8", "sequential")]
)
def test_device_and_server_code_and_answer_as_the_runs_own(codec: Codec, strategy: str, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", with_codec(codec, strategy=strategy))
    export(run, tmp_path / "out", tau=SENDS_ALL)
    setup = prepare_run(run.config)
    shared = build_server(setup, [0, 1, 2], CPU) if strategy == "sequential" else None
    bundles = find_bundles(tmp_path / "out")
    models, served = ServerModels(bundles, CPU), sent_features(bundles)
    images = np.random.default_rng(0).integers(0, 256, (SAMPLES, 8, 8, 3), np.uint8)
    for number in (0, 1, 2):
        spec = setup.fleet.clients[number]
        client = build_client(setup, number, data_of(mapped_client_data(setup, number), images), CPU)
        client.take_tensors(read_model(run.path / "final" / f"{spec.client_file}.safetensors"))
        server = shared or build_server(setup, [number], CPU)
        server.take_tensors(read_model(run.path / "final" / f"{'server' if shared else spec.server_file}.safetensors"))
        (message,), _ = client.answer("test", 0, SAMPLES, Gate("entropy", SENDS_ALL))

        directory = tmp_path / "out" / spec.client_file
        bundle = load_bundle(directory)
        assert bundle.codec.name == codec and bundle.codec.bounds == range_of(message)
        _, features = ort.InferenceSession(directory / "client.onnx").run(None, {"images": images})
        codes = bundle.codec.encode(features)
        own_codes = message.features.transpose(0, 3, 1, 2)
        assert codes.dtype == own_codes.dtype
        # Graph and module differ in float32's last bits, and only there.
        differs = codes != own_codes
        if codec == "none":
            np.testing.assert_allclose(codes, own_codes, rtol=0, atol=1e-5)
        else:
            assert differs.mean() < 1e-3
        if codec == "int8":
            bounds = bundle.codec.bounds
            assert bounds is not None
            steps = (features - bounds.low_C.reshape(-1, 1, 1)) / bounds.scale_C.reshape(-1, 1, 1)
            assert (np.abs(np.abs(steps - np.floor(steps)) - 0.5)[differs] < EDGE).all()

        arrived = decode(encode(number, bundle.network, codes), bundle.network, served)
        labels = models.answer(number, arrived.features)
        own_labels = server.answer(number, (message,)).prediction_B
        # Of float32, every value differs somewhere in its last bits.
        coded_alike_B = ~differs.reshape(SAMPLES, -1).any(axis=1) | (codec == "none")
        assert coded_alike_B.mean() > 0.8
        near_B = near_ties(run.server(number), bundle.codec.decode(codes))
        assert (labels == own_labels)[coded_alike_B & ~near_B].all()
        assert (labels == own_labels).mean() > 0.99


def data_of(data: ClientData, images_NHWC: np.ndarray) -> ClientData:
    """The client's data with other test images."""
    labels_N = np.zeros(len(images_NHWC), np.int64)
    test = Samples(images_NHWC, labels_N, np.arange(len(images_NHWC)))
    return ClientData(data.train, test, data.calibration, data.validation, data.class_names, data.mean_C, data.std_C)


@torch.no_grad()
def near_ties(network: torch.nn.Module, features: np.ndarray) -> np.ndarray:
    top_B2 = network(torch.from_numpy(features)).topk(2, dim=1).values.numpy()
    near_B: np.ndarray = top_B2[:, 0] - top_B2[:, 1] < 2e-4
    return near_B


def test_a_client_that_never_trained_has_no_range_and_is_left_out(tmp_path: Path) -> None:
    # One of four clients takes part in the only round.
    content = with_codec("int8", rounds=1, clients_per_round=0.25)
    run = train_run(tmp_path / "run", content)
    trained = {
        spec.client_id
        for spec in run.fleet.clients
        if not spec.has_server
        or read_model(run.path / "final" / f"{spec.client_file}.safetensors")["codec.batches"] > 0
    }
    exported = export(run, tmp_path / "out", tau=0.5)
    assert {client.spec.client_id for client in exported.clients} == trained
    assert {spec.client_id for spec in exported.left_out} == {0, 1, 2, 3} - trained != set()
