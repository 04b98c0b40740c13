"""To a device and back, and mixed precision. What only a GPU can show is not shown here."""

from __future__ import annotations

import torch

from hsee_ray.config.files import load_config
from hsee_ray.config.schema import OptimizerConfig
from hsee_ray.method.steps import client_step, server_step
from hsee_ray.models.optimizer import build_optimizer
from hsee_ray.models.torch_device import mixed_precision, to_device

CPU = torch.device("cpu")


def test_on_the_cpu_nothing_is_copied() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, CPU) is tensor


def test_forward_passes_compute_in_the_lower_precision_and_only_they() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with mixed_precision("bfloat16", CPU):
        assert layer(x).dtype == torch.bfloat16
    with mixed_precision(None, CPU):
        assert layer(x).dtype == torch.float32


def test_features_and_parameters_of_a_mixed_step_are_float32() -> None:
    torch.manual_seed(0)
    network, head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)
    optimizer = build_optimizer(torch.nn.ModuleList([network, head]), OptimizerConfig())
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    exact = network(x).detach()
    before = network.weight.detach().clone()
    h, loss = client_step(network, head, optimizer, x, y, "bfloat16")
    assert h.dtype == network.weight.dtype == torch.float32
    assert torch.equal(h, h.to(torch.bfloat16).float()), "it was computed in bfloat16"
    assert torch.allclose(h, exact, rtol=2**-6, atol=2**-6)
    assert not torch.equal(network.weight, before)
    server = torch.nn.Linear(8, 3)
    assert server_step(server, build_optimizer(server, OptimizerConfig()), h, y, "bfloat16")[1] > 0
    assert loss > 0


def test_autocast_is_part_of_what_was_trained() -> None:
    config = load_config({"tiers": [{"name": "a", "clients": 1, "cut": 1}], "training": {"autocast": "bfloat16"}})
    assert config.training.autocast == "bfloat16"
