"""The third leg: what comes back over the cut."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from hsee_ray.config.files import load_config
from hsee_ray.method.schedule import learning_rate
from hsee_ray.method.setup import Setup, build_client, build_network, mapped_client_data, prepare_run
from hsee_ray.models.optimizer import build_optimizer, set_learning_rate
from hsee_ray.models.split import UnitChain
from hsee_ray.reference import Reference

CPU = torch.device("cpu")


def prepared(cache: Path) -> Setup:
    return prepare_run(
        load_config(
            {
                "model": {"name": "tests.networks:conv_units"},
                "data": {
                    "name": "synthetic",
                    "image_size": 8,
                    "classes": 3,
                    "train_samples": 48,
                    "test_samples": 8,
                    "cache": str(cache),
                },
                "tiers": [{"name": "only", "clients": 1, "cut": "body.0"}],
                "training": {
                    "strategy": "tests.extensions.splitfed:SplitFed",
                    "rounds": 2,
                    "batch_size": 16,
                    "memory_format": "contiguous",
                },
            }
        )
    )


def test_splitfed_of_one_client_is_the_whole_network_trained_end_to_end(tmp_path: Path) -> None:
    """Two optimisers, one on each side of the cut, and one backward pass through both."""
    setup = prepared(tmp_path)
    reference = Reference(setup)
    for _ in reference.run():
        pass

    training, cut = setup.config.training, setup.fleet.clients[0].cut
    units = list(build_network(setup.config, setup.files).units.items())
    below, above = UnitChain(dict(units[:cut])), UnitChain(dict(units[cut:]))
    optimizers = [build_optimizer(part, training.optimizer) for part in (below, above)]
    data = build_client(setup, 0, mapped_client_data(setup, 0), CPU)
    for round_number in (1, 2):
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate(training, round_number))
        for _, x_BCHW, y_B in data.training_batches(round_number, 0, 99):
            loss = cross_entropy(above(below(x_BCHW)), y_B)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()

    trained = {**reference.clients[0].model.network.units, **reference.servers[0].model.network.units}
    for name, unit in {**below.units, **above.units}.items():
        for wanted, found in zip(unit.parameters(), trained[name].parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
