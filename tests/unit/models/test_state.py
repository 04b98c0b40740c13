"""State in and out of units: everything comes back, and what comes out is a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hsee_ray.models.state import (
    UnitState,
    named_tensors,
    read_unit,
    reset_optimizer,
    statistics_names,
    write_unit,
)


class Counting(nn.Module):
    """A unit with a norm, and buffers of its own that are no norm statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("temperature", torch.tensor([2.0]))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        self.seen += len(x_BCHW)
        return self.norm(self.conv(x_BCHW)) * self.gain


FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def trained(name: str, memory_format: str, seed: int) -> tuple[Counting, torch.optim.Optimizer]:
    """A unit after two steps."""
    torch.manual_seed(seed)
    unit = Counting().to(memory_format=FORMATS[memory_format])
    parameters = unit.parameters()
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9) if name == "sgd" else torch.optim.AdamW(parameters, lr=0.1)
    )
    for _ in range(2):
        step(unit, optimizer, memory_format)
    return unit, optimizer


def step(unit: nn.Module, optimizer: torch.optim.Optimizer, memory_format: str) -> None:
    x_BCHW = torch.randn(2, 3, 5, 6).to(memory_format=FORMATS[memory_format])
    optimizer.zero_grad(set_to_none=True)
    unit(x_BCHW).square().sum().backward()
    optimizer.step()


def flat(state: UnitState) -> dict[str, np.ndarray]:
    moments = {f"{key}/{name}": array for name, kept in state.optimizer.items() for key, array in kept.items()}
    return {**named_tensors({"unit": state}), **moments}


def assert_equal(one: UnitState, other: UnitState) -> None:
    first, second = flat(one), flat(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        np.testing.assert_array_equal(first[name], second[name], err_msg=name, strict=True)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("optimizer_name", "kept"), [("sgd", {"momentum_buffer"}), ("adamw", {"step", "exp_avg", "exp_avg_sq"})]
)
def test_what_is_read_can_be_written(optimizer_name: str, kept: set[str], memory_format: str) -> None:
    unit, optimizer = trained(optimizer_name, memory_format, seed=0)
    other, other_optimizer = trained(optimizer_name, memory_format, seed=1)
    state = read_unit(unit, optimizer)
    assert {key for arrays in state.optimizer.values() for key in arrays} == kept
    assert state.optimizer.keys() == state.parameters.keys()

    write_unit(other, other_optimizer, state)
    assert_equal(read_unit(other, other_optimizer), state)
    assert other.conv.weight.is_contiguous(memory_format=FORMATS[memory_format])
    moment = other_optimizer.state[other.conv.weight]["momentum_buffer" if optimizer_name == "sgd" else "exp_avg"]
    assert moment.stride() == other.conv.weight.stride()

    # The next step is the same to the bit, which it would not be with anything left behind.
    for each, its_optimizer in ((unit, optimizer), (other, other_optimizer)):
        torch.manual_seed(2)
        step(each, its_optimizer, memory_format)
    assert_equal(read_unit(other, other_optimizer), read_unit(unit, optimizer))


def test_a_fresh_optimiser_takes_a_state() -> None:
    unit, optimizer = trained("adamw", "channels_last", seed=0)
    fresh = Counting().to(memory_format=torch.channels_last)
    fresh_optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    assert read_unit(fresh, fresh_optimizer).optimizer == {}
    write_unit(fresh, fresh_optimizer, read_unit(unit, optimizer))
    assert_equal(read_unit(fresh, fresh_optimizer), read_unit(unit, optimizer))


def test_statistics_are_told_from_other_buffers() -> None:
    state = read_unit(Counting(), None)
    assert set(state.statistics) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(state.buffers) == {"temperature", "seen"}
    assert set(state.parameters) == {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "gain"}
    assert state.optimizer == {}
    assert state.buffers["seen"].dtype == np.int64
    assert state.buffers["seen"].shape == ()


def test_statistics_of_a_unit_that_is_itself_a_norm() -> None:
    assert statistics_names(nn.BatchNorm1d(2)) == {"running_mean", "running_var", "num_batches_tracked"}
    assert statistics_names(nn.GroupNorm(1, 2)) == frozenset()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_arrays_are_row_major_copies(memory_format: str) -> None:
    unit, optimizer = trained("sgd", memory_format, seed=0)
    state = read_unit(unit, optimizer)
    before = {name: array.copy() for name, array in flat(state).items()}
    assert all(array.flags.c_contiguous for array in before.values())
    np.testing.assert_array_equal(state.parameters["conv.weight"], unit.conv.weight.detach().numpy())
    step(unit, optimizer, memory_format)
    for name, array in flat(state).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_written_state_is_copied() -> None:
    unit, optimizer = trained("adamw", "contiguous", seed=0)
    state = read_unit(unit, optimizer)
    for array in flat(state).values():
        array[...] = 0
    assert unit.conv.weight.detach().abs().sum() > 0
    write_unit(unit, optimizer, state)
    step(unit, optimizer, "contiguous")
    assert all(not array.any() for array in flat(state).values())


def test_what_a_state_does_not_name_stays() -> None:
    unit, optimizer = trained("sgd", "contiguous", seed=0)
    before = read_unit(unit, optimizer)
    bias = np.float32([1, 2, 3, 4])
    write_unit(unit, optimizer, UnitState({"conv.bias": bias}, {}, {}, {}))
    after = read_unit(unit, optimizer)
    np.testing.assert_array_equal(after.parameters.pop("conv.bias"), bias)
    before.parameters.pop("conv.bias")
    assert_equal(after, before)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_state_can_be_written() -> None:
    unit = nn.Linear(2, 1)
    weight = np.float32([[3, 4]])
    weight.setflags(write=False)
    write_unit(unit, None, UnitState({"weight": weight}, {}, {}, {}))
    assert unit.weight.tolist() == [[3.0, 4.0]]


def test_reset_forgets_one_units_momentum() -> None:
    units = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = torch.optim.SGD(units.parameters(), lr=0.1, momentum=0.9)
    units[1](units[0](torch.ones(1, 2))).sum().backward()
    optimizer.step()
    reset_optimizer(units[0], optimizer)
    assert read_unit(units[0], optimizer).optimizer == {}
    assert set(read_unit(units[1], optimizer).optimizer) == {"weight", "bias"}


def test_names_across_units() -> None:
    state = {"stem": read_unit(nn.Linear(1, 1), None), "layer1.0": read_unit(nn.BatchNorm1d(1), None)}
    assert set(named_tensors(state)) == {
        "stem.weight",
        "stem.bias",
        "layer1.0.weight",
        "layer1.0.bias",
        "layer1.0.running_mean",
        "layer1.0.running_var",
        "layer1.0.num_batches_tracked",
    }
