"""A network whose features are tokens, (T, D): trained, counted, exported and served like one of feature maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hsee_ray.backbones import Backbone, check_backbone
from hsee_ray.config.files import load_config
from hsee_ray.deploy.export import export
from hsee_ray.deploy.server_models import ServerModels, find_bundles
from hsee_ray.devices.cost import CostTable
from hsee_ray.devices.counter import Counter
from hsee_ray.errors import ConfigError
from hsee_ray.features.message import decode, encode
from hsee_ray.rundir.run import Run
from tests.extensions.tiny_vit import Block
from tests.run_directories import train_run

CONFIG: dict[str, Any] = {
    "model": {"name": "tests.extensions.tiny_vit:units"},
    "data": {"name": "synthetic", "train_samples": 96, "test_samples": 8, "image_size": 8, "classes": 4},
    "tiers": [
        {"name": "sensor", "clients": 2, "cut": "patches"},
        {"name": "hub", "clients": 1, "cut": "block0", "codec": "fp16"},
        {"name": "gateway", "clients": 1, "cut": "head"},
    ],
    "training": {"rounds": 1, "batch_size": 8},
}
TOKENS = (4, 16)
LINEARS, ATTENTION = 4 * 16 * (48 + 16 + 64 + 64), 2 * (2 * 4 * 4 * 8)
"""Multiply-adds of a block: four linear layers on 4 tokens; two products of 2 heads, of 4 x 4 pairs, 8 wide."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_run(tmp_path_factory.mktemp("tokens") / "run", CONFIG)


def test_costs_by_hand() -> None:
    table = CostTable(load_config(CONFIG), (8, 8, 3), 4)
    assert [unit.feature_shape for unit in table.units] == [TOKENS, TOKENS, TOKENS, (4,)]
    block = table.units[1]
    assert (block.multiply_adds, block.backward_multiply_adds) == (LINEARS + ATTENTION, 2 * (LINEARS + ATTENTION))
    assert table.client(2, 8).infer.multiply_adds >= 8 * (table.units[0].multiply_adds + block.multiply_adds)
    assert table.server(2, 8).memory.batch_bytes == table.feature_bytes(2, "none", 8)


@pytest.mark.parametrize(("kernel", "products"), [(SDPBackend.MATH, 4), (SDPBackend.FLASH_ATTENTION, 5)])
def test_attention_counts_where_it_is_fused_too(kernel: SDPBackend, products: int) -> None:
    """The fused kernel multiplies queries and keys once more on its way back."""
    block, x = Block(16, 2), torch.randn(1, *TOKENS, requires_grad=True)
    with sdpa_kernel(kernel), Counter() as counter:
        counter.enter("forward")
        h = block(x).sum()
        counter.enter("backward")
        h.backward()
    assert counter.work("forward").multiply_adds == LINEARS + ATTENTION
    assert counter.work("backward").multiply_adds == 2 * LINEARS + products * ATTENTION // 2


def test_a_message_of_tokens_keeps_their_bits() -> None:
    h = torch.randn(3, *TOKENS).transpose(1, 2).contiguous().transpose(1, 2)
    received, _ = decode(encode(h, torch.zeros(3, dtype=torch.int64)), torch.device("cpu"))
    assert torch.equal(received, h)


def test_bundles_answer_as_the_trained_modules(run: Run, tmp_path: Path) -> None:
    export(run, tmp_path / "out", tau=0.5)
    bundles = find_bundles(tmp_path / "out")
    assert [bundle.feature_shape for bundle in bundles.values()] == [TOKENS] * 3
    images_NHWC = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    device = ort.InferenceSession(tmp_path / "out" / "client-000" / "client.onnx")
    _, features = device.run(None, {device.get_inputs()[0].name: images_NHWC})
    with torch.no_grad():
        h = run.client(0)(run.preprocess(images_NHWC))
        labels = run.server(0)(h).argmax(dim=1).tolist()
    np.testing.assert_allclose(features, h, atol=1e-5)
    assert ServerModels(bundles, torch.device("cpu")).answer(0, features).tolist() == labels


def test_attention_with_dropout_is_refused() -> None:
    units = {"first": nn.TransformerEncoderLayer(4, 2, dropout=0.0), "last": nn.MultiheadAttention(4, 2, dropout=0.1)}
    with pytest.raises(ConfigError, match=r"unit last has dropout \(last, p=0\.1\)"):
        check_backbone(Backbone(units, None), (8, 8, 3), 4)
