"""Counts by hand, against torch's own counter, and against what real steps allocate."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hsee_ray.backbones import build_backbone, feature_shapes
from hsee_ray.config.files import load_config
from hsee_ray.config.schema import Config
from hsee_ray.devices.cost import CostTable, Memory, SideCost, UnitCost
from hsee_ray.devices.counter import Counter, OpCounts
from hsee_ray.features.message import encode
from hsee_ray.method.steps import client_step, server_step
from hsee_ray.models.exits import build_exit
from hsee_ray.models.model import Model
from hsee_ray.models.split import client_units, server_units
from tests.coded import coded

SHAPE = (32, 32, 3)
CLASSES = 10


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads that wait for one another take minutes where other processes have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(name: str, width: int, optimizer: str = "sgd") -> Config:
    return load_config(
        {
            "model": {"name": name, "width": width} if ":" not in name else {"name": name},
            "tiers": [{"name": "all", "clients": 1, "cut": 1}],
            "training": {"optimizer": {"name": optimizer}},
        }
    )


@cache
def table_of(name: str, width: int, optimizer: str = "sgd") -> CostTable:
    return CostTable(config_of(name, width, optimizer), SHAPE, CLASSES)


def real_step(config: Config, cut: int, batch_size: int, side: str) -> Callable[[], object]:
    """A step of training on the CPU, ready to be repeated."""
    backbone = build_backbone(config.model, SHAPE, CLASSES, config.seed)
    shapes, names = feature_shapes(backbone, SHAPE), list(backbone.units)
    y_B = torch.zeros(batch_size, dtype=torch.int64)
    exit_head, units = None, server_units(backbone.units, cut)
    x = torch.randn(batch_size, *shapes[cut - 1])
    if side == "client":
        units, x = client_units(backbone.units, cut), torch.randn(batch_size, 3, 32, 32)
        if cut < len(names):
            exit_head = build_exit(config, names[cut - 1], shapes[cut - 1], CLASSES)
    model = Model(units, exit_head, config.training, torch.device("cpu"))
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    model.train_mode(1)

    def step() -> object:
        if side == "client":
            return client_step(model.network, model.exit_head, model.optimizer, x, y_B)
        return server_step(model.network, model.optimizer, x, y_B)

    step()
    return step


def measured_peak_bytes(config: Config, cut: int, batch_size: int, side: str) -> int:
    """Most that a step has allocated at once, of all that is allocated from the network on."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step = real_step(config, cut, batch_size, side)
        begin = time.time_ns()
        step()
        end = time.time_ns()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        if begin <= event.start_ns() <= end:
            peak = max(peak, allocated)
    return peak


CASES = [
    *[("resnet18", width, optimizer, cut, batch_size)
      for width, optimizer in ((8, "sgd"), (8, "adamw"), (16, "sgd"), (16, "adamw"))
      for cut, batch_size in ((1, 32), (3, 8), (8, 4), (9, 64))],
    ("mobilenet_v2", 16, "sgd", 6, 16),
    ("vgg11_bn", 16, "adamw", 4, 8),
]  # fmt: skip


@pytest.mark.parametrize(("name", "width", "optimizer", "cut", "batch_size"), CASES)
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_side_costs_what_the_real_step_does(
    name: str, width: int, optimizer: str, cut: int, batch_size: int, side: str
) -> None:
    config = config_of(name, width, optimizer)
    counted = getattr(table_of(name, width, optimizer), side)(cut, batch_size)
    step = real_step(config, cut, batch_size, side)
    with FlopCounterMode(display=False) as flops:
        step()
    assert counted.train.multiply_adds == flops.get_total_flops() // 2
    with Counter() as real:
        step()
    # Gradients of 1 x 1 convolutions are cloned into the weights' strides, which differ between the devices.
    assert 0 <= real.work().operators - counted.train.operators <= 3
    assert counted.train.traffic_bytes == pytest.approx(real.work().traffic_bytes, rel=0.02)
    peak_bytes = measured_peak_bytes(config, cut, batch_size, side)
    assert counted.memory.total_bytes == pytest.approx(peak_bytes, rel=0.15)


def test_single_layers_by_hand() -> None:
    def multiply_adds(module: nn.Module, sample_shape: tuple[int, ...]) -> int:
        with Counter() as counter:
            module.eval()(torch.zeros(1, *sample_shape))
        return counter.work().multiply_adds

    # 16 outputs of 8 x 8 positions, each from 3 x 3 x 4 products.
    assert multiply_adds(nn.Conv2d(4, 16, 3, padding=1), (4, 8, 8)) == 16 * 8 * 8 * 3 * 3 * 4
    assert multiply_adds(nn.Conv2d(4, 16, 3, stride=2, padding=1, groups=4), (4, 8, 8)) == 16 * 4 * 4 * 3 * 3
    assert multiply_adds(nn.Linear(10, 7), (10,)) == 70
    assert multiply_adds(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)), (4, 8, 8)) == 0


def test_units_of_resnet18_as_published() -> None:
    # 1.814 billion for a 224 x 224 image (torchvision's table).
    def by_unit(model: dict[str, str], size: int, classes: int) -> list[int]:
        config = load_config({"model": model, "tiers": [{"name": "a", "clients": 1, "cut": 1}]})
        return [unit.multiply_adds for unit in CostTable(config, (size, size, 3), classes).units]

    assert round(sum(by_unit({"stem": "imagenet"}, 224, 1000)) / 1e6) == 1814
    by_hand = [64 * 27 * 1024, *[2 * 64 * 64 * 9 * 1024] * 2]
    # The first block of a stage halves the maps and doubles the channels, with a 1 x 1 convolution beside it.
    for width, positions in ((128, 256), (256, 64), (512, 16)):
        by_hand.append((width // 2 * width * 10 + width * width * 9) * positions)
        by_hand.append(2 * width * width * 9 * positions)
    assert by_unit({}, 32, 10) == [*by_hand, 512 * 10]


def test_exits_by_hand() -> None:
    def client(head: str) -> SideCost:
        values = {"model": {"width": 8}, "tiers": [{"name": "all", "clients": 1, "cut": 1}], "exits": {"head": head}}
        return CostTable(load_config(values), SHAPE, CLASSES).client(5, 4)  # after layer2: 16 channels of 16 x 16

    pool, mlp, conv = client("pool"), client("mlp"), client("conv")
    assert mlp.infer.multiply_adds - pool.infer.multiply_adds == 4 * (16 * 32 + 32 * 10 - 16 * 10)
    assert mlp.parameters["exit"] - pool.parameters["exit"] == 16 * 32 + 32 + 32 * 10 - 16 * 10
    convolution = 8 * 8 * 9 * 16 * 32
    assert conv.infer.multiply_adds - pool.infer.multiply_adds == 4 * (convolution + 32 * 10 - 16 * 10)
    assert conv.parameters["exit"] - pool.parameters["exit"] == 9 * 16 * 32 + 2 * 32 + 32 * 10 - 16 * 10
    # Forward, and backward to the weights and to the features.
    assert conv.train.multiply_adds - pool.train.multiply_adds == 3 * 4 * (convolution + 32 * 10 - 16 * 10)
    assert conv.memory.total_bytes > pool.memory.total_bytes


def test_clipping_passes_over_every_gradient() -> None:
    values = {"model": {"width": 8}, "tiers": [{"name": "all", "clients": 1, "cut": 1}]}
    free, clipped = (
        CostTable(load_config(values, [f"training.optimizer.clip_norm={norm}"]), SHAPE, CLASSES).server(5, 4)
        for norm in ("null", "1.0")
    )
    extra_bytes = clipped.train.traffic_bytes - free.train.traffic_bytes
    assert 0 <= extra_bytes - free.memory.gradient_bytes < 100


def test_operators_by_hand() -> None:
    x, w = torch.ones(4, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    with Counter([x, w]) as counter:
        (x @ w.T).relu().sum().backward()
    # mm, relu, sum; ones_like, threshold_backward and a product for each gradient. Transposing and expanding copy
    # nothing.
    product = 4 * (12 + 15 + 20)
    forward = product + 4 * (20 + 20) + 4 * (20 + 1)
    backward = 4 * (1 + 1) + 4 * (1 + 20 + 20) + 2 * product
    assert counter.work() == OpCounts(3 * 4 * 3 * 5, forward + backward, 7)
    # The products need x and w, which were held before; relu needs its result.
    assert counter.kept_bytes() == 4 * 20
    gradients = 4 * (12 + 15)
    assert counter.peak_bytes >= gradients + counter.kept_bytes() + gradients


def test_work_adds() -> None:
    assert OpCounts(1, 2, 3) + OpCounts(10, 20, 30) == OpCounts(11, 22, 33)


def test_memory_adds_up() -> None:
    assert Memory(1, 2, 4, 8, 16, 32).total_bytes == 63


def test_a_linear_network_by_hand() -> None:
    table = CostTable(config_of("tests.unit.devices.test_cost:linear_units", 1), (2, 2, 1), 3)
    assert table.units == (
        # 4 values to 5, and the ReLU keeps its 5; there is no gradient for the image.
        UnitCost("first", 25, 20, 20, 4 * 5, (5,)),
        # The input is kept already. The loss keeps what it needs after the last unit.
        UnitCost("last", 18, 15, 30, 0, (3,)),
    )
    client = table.client(1, 10)
    assert sum(client.parameters.values()) == 25 + 5 * 3 + 3
    assert client.infer.multiply_adds == 10 * (20 + 15)
    assert client.train.multiply_adds == 10 * (20 + 20 + 15 + 30)
    assert client.memory.parameter_bytes == client.memory.gradient_bytes == client.memory.optimizer_bytes == 4 * 43
    assert client.memory.batch_bytes == 10 * (4 * 4 + 8)
    server = table.server(1, 10)
    assert sum(server.parameters.values()) == 18
    assert server.train.multiply_adds == 10 * (15 + 15)
    assert server.memory.batch_bytes == 10 * (4 * 5 + 8)
    assert table.client(2, 10) == table.client(2, 10, with_exit=False)
    deep = table.client(2, 10, inner_exits=(1,))
    assert sum(deep.parameters.values()) == 43 + 18
    assert deep.infer == table.client(2, 10).infer, "no answer passes the inner exit"
    assert deep.train.multiply_adds == 10 * (20 + 20 + 2 * (15 + 30))


def test_optimizers_keep_what_they_keep() -> None:
    adamw = CostTable(config_of("tests.unit.devices.test_cost:linear_units", 1, "adamw"), (2, 2, 1), 3).server(1, 4)
    # Two moments for each parameter, and the number of its steps for each of two tensors.
    assert adamw.memory.optimizer_bytes == 4 * (2 * 18 + 2)


def test_one_sample_is_answered_and_never_trained() -> None:
    table = table_of("resnet18", 8)
    one, two = table.client(3, 1), table.client(3, 2)
    assert one.infer.multiply_adds * 2 == two.infer.multiply_adds
    assert (one.train, one.memory) == (two.train, two.memory)


@pytest.mark.parametrize("codec", ["none", "fp16", "int8"])
def test_bytes_of_a_batch_are_those_of_the_message(codec: str) -> None:
    table = table_of("resnet18", 8)
    h, y_B = torch.rand(6, *table.units[2].feature_shape), torch.zeros(6, dtype=torch.int64)
    message = coded(encode(h, y_B), codec)
    assert table.feature_bytes(3, codec, 6) == message.sent_bytes


def test_a_network_that_looks_at_values_is_counted_on_the_cpu() -> None:
    looks = CostTable(config_of("tests.unit.devices.test_cost:looking_units", 1), (2, 2, 1), 3)
    plain = CostTable(config_of("tests.unit.devices.test_cost:linear_units", 1), (2, 2, 1), 3)
    for unit, other in zip(looks.units, plain.units, strict=True):
        assert unit.multiply_adds == other.multiply_adds
        assert unit.backward_multiply_adds == other.backward_multiply_adds
    assert looks.client(1, 8).train.multiply_adds == plain.client(1, 8).train.multiply_adds
    assert looks.client(1, 8).memory.total_bytes >= plain.client(1, 8).memory.total_bytes


def linear_units(image_shape: tuple[int, int, int], n_classes: int) -> dict[str, nn.Module]:
    height, width, channels = image_shape
    first = nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, 5), nn.ReLU())
    return {"first": first, "last": nn.Linear(5, n_classes)}


def looking_units(image_shape: tuple[int, int, int], n_classes: int) -> dict[str, nn.Module]:
    return {"first": nn.Sequential(_Scaled(), *linear_units(image_shape, n_classes)["first"]),
            "last": nn.Linear(5, n_classes)}  # fmt: skip


class _Scaled(nn.Module):
    """Multiplies by a tensor that it makes on the CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.from_numpy(x.detach().numpy().max(axis=(1, 2, 3), keepdims=True))
