"""Snapshots: equal after a file, put back into models, and with averages taken into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hsee_ray.config.files import load_config
from hsee_ray.errors import DataError
from hsee_ray.method.client import Client
from hsee_ray.method.server import Server
from hsee_ray.method.setup import Setup, build_client, build_server, mapped_client_data, prepare_run
from hsee_ray.models.snapshot import Snapshot, from_bytes, to_bytes, with_averages
from hsee_ray.models.state import UnitState, named_tensors

CPU = torch.device("cpu")


@pytest.fixture(params=["sgd", "adamw"])
def setup(request: Any, tmp_path: Path) -> Setup:
    return prepare_run(
        load_config(
            {
                "model": {"name": "tests.networks:conv_units"},
                "data": {
                    "name": "synthetic",
                    "cache": str(tmp_path),
                    "image_size": 8,
                    "classes": 3,
                    "train_samples": 60,
                    "test_samples": 12,
                    "augment": True,
                },
                "tiers": [
                    {"name": "sensor", "clients": 1, "cut": "stem", "codec": "int8"},
                    {"name": "hub", "clients": 1, "cut": "body.1"},
                ],
                "training": {"strategy": "sequential", "batch_size": 8, "optimizer": {"name": request.param}},
            }
        )
    )


def client_of(setup: Setup, number: int = 0) -> Client:
    return build_client(setup, number, mapped_client_data(setup, number), CPU)


def server_of(setup: Setup) -> Server:
    return build_server(setup, (0, 1), CPU)


def assert_equal(one: Snapshot, other: Snapshot) -> None:
    assert to_bytes(one) == to_bytes(other)


def test_a_file_gives_the_snapshot_back(setup: Setup) -> None:
    client, server = client_of(setup), server_of(setup)
    server.train(0, 1, client.train(1, 0, 2)[0])
    for snapshot in (client.snapshot(), server.snapshot()):
        again = from_bytes(to_bytes(snapshot))
        assert_equal(again, snapshot)
        assert list(again.units) == list(snapshot.units)
    assert set(server.snapshot().sets) == {0}


def test_the_future_of_a_snapshot_is_that_of_its_model(setup: Setup) -> None:
    """A new client and a new server go on from files as the old ones do, and old ones go back to them."""
    clients, server = [client_of(setup, 0), client_of(setup, 1)], server_of(setup)
    for number, client in enumerate(clients):
        server.train(number, 1, client.train(1, 0, 3)[0])
    before = [from_bytes(to_bytes(part.snapshot())) for part in (*clients, server)]

    def second_round(parts: list[Client], taught: Server) -> list[Snapshot]:
        for number, part in enumerate(parts):
            taught.train(number, 2, part.train(2, 0, 3)[0])
        return [part.snapshot() for part in (*parts, taught)]

    wanted = second_round(clients, server)
    new_clients, new_server = [client_of(setup, 0), client_of(setup, 1)], server_of(setup)
    for parts in ((*new_clients, new_server), (*clients, server)):
        for part, snapshot in zip(parts, before, strict=True):
            part.restore(snapshot)
    for found in (second_round(new_clients, new_server), second_round(clients, server)):
        for one, other in zip(found, wanted, strict=True):
            # What a shared server wears in units below its last client's cut is nobody's.
            assert_equal(Snapshot({}, one.sets), Snapshot({}, other.sets))
            for name, unit in one.units.items():
                for key, array in {**unit.parameters, **unit.buffers}.items():
                    np.testing.assert_array_equal(array, named_tensors(other.units)[f"{name}.{key}"])


def test_a_model_that_has_not_trained_goes_back_to_no_momentum(setup: Setup) -> None:
    client = client_of(setup)
    before = client.snapshot()
    client.train(1, 0, 1)
    client.restore(before)
    assert_equal(client.snapshot(), before)


@pytest.mark.parametrize(("reset", "momentum"), [(False, [9.0]), (True, None)])
def test_averages_over_a_snapshot_by_hand(reset: bool, momentum: list[float] | None) -> None:
    def unit(value: float, optimizer: dict[str, Any]) -> UnitState:
        return UnitState({"w": np.float32([value])}, {}, {"mean": np.float32([value])}, optimizer)

    state = Snapshot({"a": unit(1, {"w": {"m": np.float32([9])}}), "b": unit(2, {})}, {3: {"a.mean": np.float32([5])}})
    taken = with_averages(state, {"a": UnitState({"w": np.float32([7])}, {}, {}, {})}, reset)
    assert taken.units["a"].parameters["w"].tolist() == [7]
    assert taken.units["a"].statistics["mean"].tolist() == [1]
    found = taken.units["a"].optimizer
    assert (found["w"]["m"].tolist() if found else None) == momentum
    assert taken.units["b"] == state.units["b"]
    assert taken.sets == state.sets
    assert state.units["a"].parameters["w"].tolist() == [1]


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"not a safetensors file at all"])
def test_a_file_that_is_no_snapshot(content: bytes) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        from_bytes(content)
