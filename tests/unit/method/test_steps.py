"""The steps of both sides, on networks of a few numbers that are worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hsee_ray.backbones import Backbone
from hsee_ray.config.files import load_config
from hsee_ray.config.schema import OptimizerConfig
from hsee_ray.errors import NonFiniteError
from hsee_ray.features.message import Packet, encode
from hsee_ray.method.client import Client
from hsee_ray.method.server import Server
from hsee_ray.method.setup import build_client, mapped_client_data, prepare_run
from hsee_ray.method.steps import NonFiniteStep, client_step, server_step, undone_if_nonfinite
from hsee_ray.method.strategies import build_fleet
from hsee_ray.models.optimizer import build_optimizer, set_learning_rate
from hsee_ray.models.split import UnitChain

CPU = torch.device("cpu")
X = torch.tensor([[1.0, 0.0]])
Y = torch.tensor([0])


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


def sgd(*modules: nn.Module, lr: float = 1.0) -> torch.optim.Optimizer:
    return build_optimizer(nn.ModuleList(modules), OptimizerConfig(lr=lr, momentum=0, weight_decay=0))


# One step by hand


def test_server_step_by_hand() -> None:
    # Zero weights: p = (1/2, 1/2), loss ln 2, and dloss/dW = (p - onehot(y)) x^T.
    network = linear([[0.0, 0.0], [0.0, 0.0]])
    _, loss = server_step(network, sgd(network), X, Y)
    assert loss == pytest.approx(math.log(2))
    assert network.weight.tolist() == [[0.5, 0.0], [-0.5, 0.0]]


def test_client_step_by_hand() -> None:
    # h = x; logits (1, -1): p_1 = 1 / (1 + e^2), loss ln(1 + e^-2).
    network, head = linear([[1.0, 0.0], [0.0, 1.0]]), linear([[1.0, 0.0], [-1.0, 0.0]])
    h, loss = client_step(network, head, sgd(network, head), X, Y)
    p = 1 / (1 + math.exp(2))
    assert loss == pytest.approx(math.log(1 + math.exp(-2)))
    # dlogits = (-p, p): the head changes by p (1, -1) h^T; h's gradient is -2p in its first place.
    np.testing.assert_allclose(head.weight.detach(), [[1 + p, 0], [-1 - p, 0]], rtol=1e-6)
    np.testing.assert_allclose(network.weight.detach(), [[1 + 2 * p, 0], [0, 1]], rtol=1e-6)
    # The features are from before the step, and nothing can flow back through them.
    assert h.tolist() == [[1.0, 0.0]]
    assert not h.requires_grad
    assert network(X).tolist() != h.tolist()


def test_exits_teach_each_other_by_hand() -> None:
    # The inner exit says p = (1/2, 1/2), the last one q = (1 - p', p') as above.
    network, head = UnitChain({name: linear([[1.0, 0.0], [0.0, 1.0]]) for name in "ab"}), linear([[1.0, 0], [-1, 0]])
    inner = linear([[0.0, 0.0], [0.0, 0.0]])
    _, loss = client_step(network, head, sgd(network, head, inner), X, Y, inner_exits={1: inner}, distillation=2.0)
    p = 1 / (1 + math.exp(2))
    assert loss == pytest.approx(math.log(1 + math.exp(-2))), "that of its own exit"
    # Of KL(q || p) the inner logits get p - q alone, of KL(p || q) the last ones q - p: a teacher learns nothing.
    np.testing.assert_allclose(inner.weight.detach(), [[1.5 - 2 * p, 0], [2 * p - 1.5, 0]], rtol=1e-6)
    np.testing.assert_allclose(head.weight.detach(), [[3 * p, 0], [-3 * p, 0]], rtol=1e-6)


def test_client_step_without_a_head_takes_the_networks_own_logits() -> None:
    network = linear([[0.0, 0.0], [0.0, 0.0]])
    h, loss = client_step(network, None, sgd(network), X, Y)
    assert loss == pytest.approx(math.log(2))
    assert h.tolist() == [[0.0, 0.0]]
    assert network.weight.tolist() == [[0.5, 0.0], [-0.5, 0.0]]


def test_loss_is_the_mean_over_the_batch() -> None:
    network = linear([[1.0, 0.0], [-1.0, 0.0]])
    x_BC, y_B = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    _, loss = server_step(network, sgd(network), x_BC, y_B)
    assert loss == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)


def test_steps_do_not_add_their_gradients_up() -> None:
    network = linear([[0.0, 0.0], [0.0, 0.0]])
    optimizer = sgd(network, lr=1e-12)
    for _ in range(3):
        server_step(network, optimizer, X, Y)
    assert network.weight.grad is not None
    np.testing.assert_allclose(network.weight.grad, [[-0.5, 0.0], [0.5, 0.0]], rtol=1e-6)


def test_the_servers_gradient_stops_at_the_features() -> None:
    network, head, server = linear([[1.0, 0.0], [0.0, 1.0]]), linear([[1.0, 0.0], [0.0, 0.0]]), linear([[1.0, 2.0]] * 2)
    h, _ = client_step(network, head, sgd(network, head), X, Y)
    assert network.weight.grad is not None
    gradient = network.weight.grad.clone()
    server_step(server, sgd(server), h, Y)
    assert torch.equal(network.weight.grad, gradient)


def test_a_long_gradient_is_clipped_over_the_whole_model() -> None:
    # As above: the head's gradient is p (-1, 1) in its first column, the network's -2p in one place; length p sqrt(6).
    p = 1 / (1 + math.exp(2))
    for clip_norm, share in ((p * math.sqrt(6) / 2, 0.5), (1.0, 1.0)):
        network, head = linear([[1.0, 0.0], [0.0, 1.0]]), linear([[1.0, 0.0], [-1.0, 0.0]])
        client_step(network, head, sgd(network, head), X, Y, clip_norm=clip_norm)
        np.testing.assert_allclose(head.weight.detach(), [[1 + share * p, 0], [-1 - share * p, 0]], rtol=1e-6)
        np.testing.assert_allclose(network.weight.detach(), [[1 + 2 * share * p, 0], [0, 1]], rtol=1e-6)
    # dloss/dW = (p - onehot(y)) x^T has the length sqrt(1/2).
    server = linear([[0.0, 0.0], [0.0, 0.0]])
    server_step(server, sgd(server), X, Y, clip_norm=0.1)
    np.testing.assert_allclose(server.weight.detach(), [[0.1 / 2**0.5, 0], [-0.1 / 2**0.5, 0]], rtol=1e-5, atol=1e-9)


# Optimisers


def test_sgd_with_momentum_and_weight_decay_by_hand() -> None:
    unit = linear([[2.0]])
    optimizer = build_optimizer(unit, OptimizerConfig(lr=0.5, momentum=0.5, weight_decay=0.25))
    # Gradient 1 and decay w/4. Buffer 1 + 1/2: 2 - 3/4. Then 3/4 + 1 + 5/16: 5/4 - 33/32.
    for weight in (1.25, 0.21875):
        optimizer.zero_grad()
        unit(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        assert unit.weight.item() == weight


def test_the_rate_of_a_round_and_the_options_of_adamw() -> None:
    config = OptimizerConfig(name="adamw", lr=0.5, betas=(0.8, 0.95), weight_decay=0.25)
    optimizer = build_optimizer(linear([[2.0]]), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 0.25, 0.5)
    set_learning_rate(optimizer, 0.125)
    assert group["lr"] == 0.125


# A shared server


def shared_server(units: dict[str, nn.Module], cuts: list[str], **training: Any) -> Server:
    """The shared server of Sequential for clients with these cuts, over these units and a first one, `stem`."""
    backbone = Backbone({"stem": nn.Identity(), **units}, None)
    tiers = [{"name": f"tier{number}", "clients": 1, "cut": cut} for number, cut in enumerate(cuts)]
    config = load_config({"tiers": tiers, "training": {"strategy": "sequential", **training}})
    fleet = build_fleet(config, tuple(backbone.units))
    return Server(config, fleet.clients, backbone, 2, CPU)


def packet(*rows: list[float]) -> Packet:
    return (encode(torch.tensor(rows), torch.tensor([number % 2 for number in range(len(rows))])),)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_unit_that_a_batch_does_not_pass_gets_no_update(optimizer: str) -> None:
    units = {name: linear([[1.0, 0.5], [0.25, 1.0]]) for name in ("middle", "head")}
    server = shared_server(
        units, ["stem", "middle"], optimizer={"name": optimizer, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    )
    server.train(0, 1, packet([1.0, 2.0]))
    before = server.model.state()
    assert before["middle"].optimizer["weight"], "its momentum would move it, were it not left alone"
    server.train(1, 1, packet([1.0, 2.0], [3.0, 4.0]))
    after = server.model.state()
    np.testing.assert_array_equal(after["middle"].parameters["weight"], before["middle"].parameters["weight"])
    for key, array in before["middle"].optimizer["weight"].items():
        np.testing.assert_array_equal(after["middle"].optimizer["weight"][key], array)
    assert (after["head"].parameters["weight"] != before["head"].parameters["weight"]).all()
    # The next batch that passes the unit moves it again.
    server.train(0, 1, packet([1.0, 2.0]))
    assert (server.model.state()["middle"].parameters["weight"] != before["middle"].parameters["weight"]).all()


def test_a_packet_is_one_step_per_batch() -> None:
    server = shared_server({"head": linear([[0.0, 0.0], [0.0, 0.0]])}, ["stem"])
    _, report = server.train(0, 1, packet([1.0, 0.0]) + packet([1.0, 0.0], [0.0, 1.0]))
    assert report.samples == 3
    assert len(report.losses) == 2
    assert report.losses[0] == pytest.approx(math.log(2))


def running_mean(server: Server, client: str) -> float:
    return float(server.tensors()[f"client-{client}.norm.running_mean"][0])


def normed_server(cuts: list[str], **training: Any) -> Server:
    norm, head = nn.BatchNorm1d(1), linear([[1.0], [-1.0]])
    return shared_server({"before": nn.Identity(), "norm": norm, "head": head}, cuts, **training)


def test_a_shared_server_keeps_statistics_per_client() -> None:
    server = normed_server(["stem", "before", "stem"])
    server.train(0, 1, packet([9.0], [11.0]))
    server.train(1, 1, packet([-39.0], [-41.0]))
    server.train(0, 1, packet([9.0], [11.0]))
    # Torch keeps 9/10 of the old mean and adds 1/10 of the batch's: 0, 1, 1.9 and, at another cut, 0, -4.
    assert running_mean(server, "000") == pytest.approx(1.9)
    assert running_mean(server, "001") == pytest.approx(-4.0)
    assert server.tensors()["client-000.norm.num_batches_tracked"] == 2
    assert "norm.running_mean" not in server.tensors()
    assert "norm.weight" in server.tensors()
    # Client 2 has not trained: it would start from the mean of those with its cut, which is client 0 alone.
    assert running_mean(server, "002") == pytest.approx(1.9)


def test_a_client_without_statistics_starts_from_the_mean_of_those_with_its_cut() -> None:
    server = normed_server(["stem", "stem", "stem", "before"])
    server.train(0, 1, packet([9.0], [11.0]))
    server.train(1, 1, packet([29.0], [31.0]))
    server.train(3, 1, packet([999.0], [1001.0]))
    server.train(2, 1, packet([-1.0], [1.0]))
    # Client 0: 1. Client 1 starts from that: 0.9 + 3 = 3.9. Client 2 starts from (1 + 3.9) / 2, of which 9/10
    # remain after a batch of mean 0. Client 3 cuts elsewhere, and starts from the initial 0.
    assert running_mean(server, "000") == pytest.approx(1.0)
    assert running_mean(server, "001") == pytest.approx(3.9)
    assert running_mean(server, "002") == pytest.approx(2.205)
    assert running_mean(server, "003") == pytest.approx(100.0)


def test_shared_statistics_are_a_single_set() -> None:
    server = normed_server(["stem", "stem"], norm_statistics="shared")
    server.train(0, 1, packet([9.0], [11.0]))
    server.train(1, 1, packet([-39.0], [-41.0]))
    assert float(server.tensors()["norm.running_mean"][0]) == pytest.approx(0.9 - 4.0)
    assert not any(name.startswith("client-") for name in server.tensors())


# Losses that are not finite


@pytest.mark.parametrize("batch", [0, 1])
def test_a_loss_that_is_not_finite_is_named_or_skipped(batch: int, tmp_path: Path) -> None:
    """Images of one batch are made useless; the client stops, or goes on as if that batch had not been."""

    def client_with(on_nonfinite: str) -> Client:
        config = load_config(
            {
                "model": {"name": "tests.networks:conv_units"},
                "data": {"name": "synthetic", "cache": str(tmp_path), "image_size": 8, "train_samples": 40},
                "tiers": [{"name": "a", "clients": 1, "cut": "stem"}],
                "training": {"batch_size": 8},
                "failures": {"on_nonfinite": on_nonfinite},
            }
        )
        setup = prepare_run(config)
        client = build_client(setup, 0, mapped_client_data(setup, 0), torch.device("cpu"))
        make_tensors = client._tensors
        calls = iter(range(100))

        def poisoned(*arrays: Any) -> Any:
            x_BCHW, y_B = make_tensors(*arrays)
            return (x_BCHW * float("nan"), y_B) if next(calls) == batch else (x_BCHW, y_B)

        client._tensors = poisoned  # type: ignore[method-assign]
        return client

    with pytest.raises(NonFiniteError, match=rf"is nan for client-000 in round 2, batch {batch + 1}; "):
        client_with("stop").train(2, 0, 3)

    packet, report = client_with("skip_batch").train(2, 0, 3)
    assert (report.skipped, len(report.losses), [sent.step for sent in packet]) == (
        1,
        2,
        [step for step in range(3) if step != batch],
    )
    assert all(np.isfinite(report.losses))


def test_a_skipped_batch_leaves_the_statistics_of_batch_norm(tmp_path: Path) -> None:
    network, exit_head = nn.Sequential(nn.BatchNorm1d(2)), nn.BatchNorm1d(2)
    buffers = [*network.buffers(), *exit_head.buffers()]
    before = [buffer.clone() for buffer in buffers]
    with pytest.raises(NonFiniteStep), undone_if_nonfinite(network, exit_head):
        exit_head(network(torch.full((4, 2), float("nan"))))
        raise NonFiniteStep("the exit loss", float("nan"))
    assert all(torch.equal(one, other) for one, other in zip(before, buffers, strict=True))
