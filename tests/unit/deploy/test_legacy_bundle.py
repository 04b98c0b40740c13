"""A bundle that release 0.1.0 exported still answers, on the device and at the server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from hsee_ray.deploy.server_models import ServerModels, find_bundles
from hsee_ray.edge import EdgeClient

BUNDLES = Path(__file__).parents[2] / "data" / "legacy" / "bundles"


@pytest.mark.parametrize("client", [0, 2])
def test_answers_are_those_of_the_release_that_made_it(client: int) -> None:
    expected = json.loads((BUNDLES / "expected.json").read_text())[str(client)]
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    directory = BUNDLES / f"client-{client:03d}"
    with EdgeClient(directory) as device:
        assert [prediction.label for prediction in device.predict(images)] == expected["exit"]
    session = onnxruntime.InferenceSession(directory / "client.onnx")
    _, features = session.run(None, {"images": images})
    models = ServerModels(find_bundles(BUNDLES), torch.device("cpu"))
    codec = device.bundle.codec
    sent = codec.encode(features) if features.dtype == np.float32 else features
    assert models.answer(client, sent).tolist() == expected["server"]
