"""Networks of users' own that train, are read again and are exported; or are refused at the start, in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hsee_ray.backbones import build_backbone
from hsee_ray.config.schema import ModelConfig
from hsee_ray.deploy.export import export
from hsee_ray.deploy.server_models import ServerModels, find_bundles
from hsee_ray.errors import ConfigError
from tests.exports import coded_features, labels_of
from tests.run_directories import train_run

CONFIG = {
    "data": {"name": "synthetic", "train_samples": 32, "test_samples": 8, "image_size": 8, "classes": 3},
    "tiers": [{"name": "low", "clients": 2, "cut": 1}, {"name": "high", "clients": 1, "cut": 2}],
    "training": {"rounds": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
}
SHAPE = (8, 8, 3)


class Unit(nn.Module):
    """Three channels in, three out; subclasses change one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x).relu()


# Networks that work


class NotPersistent(Unit):
    """Remembers a mean that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean((0, 2, 3))[:, None, None]
        return h - self.mean


class UsedTwice(Unit):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.conv
        self.norm = nn.BatchNorm2d(3)
        self.other_norm = self.norm

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.other_norm(self.again(self.norm(self.conv(x)).relu()))
        return h


class Tied(Unit):
    """One parameter of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.other(self.conv(x).relu())
        return h


class Lazy(Unit):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(3, 3, padding=1)


class OtherTypes(Unit):
    """Buffers of other types, and features that are double on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("offset", torch.ones(3, 1, 1, dtype=torch.float16))
        self.register_buffer("factor", torch.ones(3, 1, 1, dtype=torch.float64))
        self.register_buffer("mask", torch.tensor([True, False, True])[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        h = self.conv(x).double() * self.factor + self.offset
        return torch.where(self.mask, h, -h).float()


WORKING = (NotPersistent, UsedTwice, Tied, Lazy, OtherTypes)


# Networks that are refused


class Returns(Unit):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.conv(x))


class Has(Unit):
    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.register_buffer("odd", buffer)


class Parameters(Unit):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.scale).float()


class Remembers(Unit):
    def get_extra_state(self) -> int:
        return 3

    def set_extra_state(self, state: int) -> None: ...


class Grows(Has):
    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(x)
        if self.training:
            self.odd = torch.cat([self.odd, h.detach().mean()[None]])
        return h


class Noisy(Unit):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.conv(x), 0.3, self.training)


class WritesInTraining(Unit):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x.mul_(2)
        h: Tensor = self.conv(x)
        return h


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one number each": (lambda: Returns(lambda h: h.mean((1, 2, 3))), r"returns shape \(2,\) for 2 sample"),
    "double": (lambda: Returns(Tensor.double), r"returns float64: .*\.float\(\)"),
    "half": (lambda: Returns(Tensor.half), "returns float16"),
    "integers": (lambda: Returns(Tensor.long), "returns int64"),
    "complex": (lambda: Returns(torch.fft.fft2), "returns complex64"),
    "sparse": (lambda: Returns(lambda h: h.flatten(1).to_sparse()), "returns sparse_coo"),
    "a tuple": (lambda: Returns(lambda h: (h, h)), "returns tuple"),
    "none": (lambda: Returns(lambda h: None), "returns NoneType"),
    "squeezed": (lambda: Returns(Tensor.squeeze), r"shape \(3, 8, 8\) for 1 sample"),
    "a batch of two": (lambda: Returns(lambda h: h.reshape(2, 3, 8, 8)), "cannot take features of shape"),
    "neighbours": (lambda: Returns(lambda h: h - h.mean(0)), "depend on the others of its batch"),
    "bfloat16 buffer": (lambda: Has(torch.ones(3, dtype=torch.bfloat16)), "odd of type bfloat16"),
    "complex buffer": (lambda: Has(torch.ones(3, dtype=torch.complex64)), "odd of type complex64"),
    "sparse buffer": (lambda: Has(torch.eye(3).to_sparse()), "odd of type sparse_coo"),
    "buffer on meta": (lambda: Has(torch.ones(3, device="meta")), "odd of type meta"),
    "expanded buffer": (lambda: Has(torch.ones(1).expand(3)), "odd, whose values share memory"),
    "double parameter": (lambda: Parameters(torch.float64), "scale of type float64: use float32"),
    "bfloat16 parameter": (lambda: Parameters(torch.bfloat16), "scale of type bfloat16: use float32"),
    "half parameter": (lambda: Parameters(torch.float16), "scale of type float16: use float32"),
    "extra state": (Remembers, "has _extra_state"),
    "growing buffer": (lambda: Grows(torch.zeros(1)), "odd another shape or type in training"),
    "functional dropout": (Noisy, "random values in training"),
    "in place in training": (WritesInTraining, "changes its input in place in training"),
}


def around(unit: nn.Module, image_shape: tuple[int, int, int], n_classes: int) -> list[tuple[str, nn.Module]]:
    """A network with the unit on both sides of a cut."""
    height, width, channels = image_shape
    head = nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, n_classes))
    return [("first", unit), ("second", type(unit)() if type(unit) in WORKING else Unit()), ("head", head)]


def working(image_shape: tuple[int, int, int], n_classes: int, number: int) -> list[tuple[str, nn.Module]]:
    return around(WORKING[number](), image_shape, n_classes)


def refused(image_shape: tuple[int, int, int], n_classes: int, name: str) -> list[tuple[str, nn.Module]]:
    return around(REFUSED[name][0](), image_shape, n_classes)


def shares_memory(image_shape: tuple[int, int, int], n_classes: int) -> list[tuple[str, nn.Module]]:
    """Two parameters over the same values, on both sides of a cut."""
    (first, unit), (second, other), head = around(Unit(), image_shape, n_classes)
    other.conv.weight = nn.Parameter(unit.conv.weight.data)
    return [(first, unit), (second, other), head]


def model(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    return {"name": f"{__name__}:{function.__name__}", "options": options}


@pytest.mark.parametrize("number", range(len(WORKING)), ids=[unit.__name__ for unit in WORKING])
def test_a_network_trains_and_is_read_exported_and_served(tmp_path: Path, number: int) -> None:
    run = train_run(tmp_path / "run", {**CONFIG, "model": model(working, number=number)})
    images = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8)
    export(run, tmp_path / "export", tau=0.5)
    models = ServerModels(find_bundles(tmp_path / "export"), torch.device("cpu"))
    for client in (0, 1, 2):
        codes = coded_features(run, tmp_path / "export", client, images)
        assert models.answer(client, codes).tolist() == labels_of(run, tmp_path / "export", client, codes)


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_is_refused(name: str) -> None:
    config = ModelConfig(**model(refused, name=name))
    with pytest.raises(ConfigError, match=f"the unit first .*{REFUSED[name][1]}") as caught:
        build_backbone(config, SHAPE, 3, seed=0)
    assert "\n" not in str(caught.value)


def test_units_over_the_same_memory_are_refused() -> None:
    with pytest.raises(ConfigError, match="the units first and second share a parameter or buffer"):
        build_backbone(ModelConfig(**model(shares_memory)), SHAPE, 3, seed=0)


def test_the_look_leaves_a_network_as_it_was() -> None:
    backbone = build_backbone(ModelConfig(**model(working, number=WORKING.index(NotPersistent))), SHAPE, 3, seed=0)
    assert torch.equal(backbone.units["first"].mean, torch.zeros(3, 1, 1))
    assert backbone.units["first"].training
