"""What comes back over the cut: gradients, by hand against one network trained end to end, and soft labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hsee_ray.backbones import build_backbone
from hsee_ray.config.files import load_config
from hsee_ray.config.schema import SoftLabelFeedback
from hsee_ray.data import open_images
from hsee_ray.data.batches import normalise
from hsee_ray.errors import ConfigError, NonFiniteError
from hsee_ray.method.legs import TRAINING, WITH_GRADIENTS, Work
from hsee_ray.method.setup import Setup, prepare_run
from hsee_ray.method.soft_labels import SoftLabels
from hsee_ray.method.steps import NonFiniteStep, client_step, forward_step, returned_step
from hsee_ray.reference import Reference
from hsee_ray.rng import generator


def setup_of(cache: Path, *overrides: str, **training: Any) -> Setup:
    values = {
        "model": {"name": "resnet18", "width": 4},
        "data": {"name": "synthetic", "image_size": 8, "train_samples": 40, "test_samples": 8, "cache": str(cache)},
        "tiers": [{"name": "sensor", "clients": 1, "cut": "layer1"}],
        "training": {"rounds": 2, "batch_size": 8, "feedback": "gradients", "exit_weight": 0, **training},
    }
    return prepare_run(load_config(values, overrides))


@pytest.mark.parametrize("strategy", ["averaging", "sequential"])
def test_splitfed_with_one_client_is_the_whole_network_with_two_optimisers(strategy: str, tmp_path: Path) -> None:
    setup = setup_of(tmp_path, strategy=strategy)
    reference = Reference(setup)
    list(reference.run())

    config, rows = setup.config, setup.parts[0].train
    units = build_backbone(config.model, setup.files.image_shape, setup.n_classes, config.seed).units
    network = nn.Sequential(*units.values()).to(memory_format=torch.channels_last).train()
    optimizers = [
        torch.optim.SGD(part.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        for part in (network[:3], network[3:])
    ]
    images = open_images(setup.files.train)
    for round_number in (1, 2):
        shuffled = rows[generator(config.seed, "order", 0, round_number, 0).permutation(len(rows))]
        for first in range(0, len(rows), 8):
            batch = shuffled[first : first + 8]
            x = normalise(images.images_NHWC[batch], setup.mean_C, setup.std_C, torch.channels_last)
            for optimizer in optimizers:
                optimizer.zero_grad()
            functional.cross_entropy(network(x), torch.from_numpy(images.labels_N[batch])).backward()
            for optimizer in optimizers:
                optimizer.step()

    files = reference.files()
    trained = files["client-000"] | files["server" if strategy == "sequential" else "server-000"]
    for name, unit in units.items():
        for of_unit, tensor in unit.state_dict().items():
            np.testing.assert_allclose(trained[f"{name}.{of_unit}"], tensor, rtol=1e-5, atol=1e-6)


def test_gradients_come_back_as_many_bytes_as_features_went_up(tmp_path: Path) -> None:
    setup = setup_of(tmp_path)
    (report, _) = Reference(setup).run()
    trained = report.client_training[0]
    samples = setup.local_samples[0]
    assert (trained.samples, len(trained.losses)) == (samples, 5)
    assert trained.received_bytes == samples * 4 * 8 * 8 * 4
    assert trained.sent_bytes == trained.received_bytes + 8 * samples


def test_soft_labels_come_back_in_k_numbers_a_sample(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, feedback="soft_labels", exit_weight=1)
    first, second = Reference(setup).run()
    assert first.client_training[0].received_bytes == setup.local_samples[0] * 4 * 4
    assert first.client_training[0].samples == setup.local_samples[0]
    without, later = Reference(setup_of(tmp_path, feedback="none", exit_weight=1)).run()
    assert first.client_training[0].losses == without.client_training[0].losses, "nothing is known in the first round"
    assert second.client_training[0].losses != later.client_training[0].losses


def test_soft_labels_are_in_use_from_the_next_round_on() -> None:
    soft = SoftLabels(SoftLabelFeedback(name="soft_labels", weight=0.5, temperature=2.0), samples=3, n_classes=2)
    rows, logits = np.array([2, 0]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    soft.begin_round(1)
    soft.receive(rows, logits)
    assert soft.loss_of(rows)(logits) == 0
    soft.begin_round(1)
    assert soft.loss_of(rows)(logits) == 0, "a round that is repeated, or goes on, has not begun"
    soft.begin_round(2)
    assert soft.loss_of(rows)(logits) == pytest.approx(0, abs=1e-7), "the exit says the same"
    # Row 2: q = softmax(1, 0), p = (1/2, 1/2); rows 0 and 1 add nothing: one is agreed on, one unknown.
    q = 1 / (1 + np.exp(-1))
    by_hand = 0.5 * 4 * (q * np.log(2 * q) + (1 - q) * np.log(2 * (1 - q))) / 3
    assert soft.loss_of(np.array([2, 0, 1]))(torch.zeros(3, 2)).item() == pytest.approx(by_hand, rel=1e-5)


def network_and_head() -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network, head = nn.Linear(3, 2), nn.Linear(2, 2)
    return network, head, torch.optim.SGD([*network.parameters(), *head.parameters()], lr=1.0)


def test_the_exit_weight_scales_what_reaches_the_units_and_not_the_exit() -> None:
    x, y = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([1])
    moved: dict[float, list[torch.Tensor]] = {}
    for weight in (1.0, 0.25, 0.0):
        network, head, optimizer = network_and_head()
        before = [each.detach().clone() for each in (network.weight, head.weight)]  # type: ignore[operator,union-attr]
        client_step(
            network, head, optimizer, x, y, exit_weight=weight, look_ahead=nn.Linear(2, 2).requires_grad_(False)
        )
        moved[weight] = [network.weight - before[0], head.weight - before[1]]  # type: ignore[operator]
    assert all(torch.equal(moved[weight][1], moved[1.0][1]) for weight in moved)


def test_the_units_take_the_gradient_that_comes_back() -> None:
    network, head, optimizer = network_and_head()
    x, y, gradient = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([1]), torch.tensor([[1.0, 10.0]])
    before = network.weight.detach().clone()  # type: ignore[operator,union-attr]
    h = forward_step(network, x)
    returned_step(h, gradient, head, optimizer, y, exit_weight=0)
    torch.testing.assert_close(before - network.weight, gradient.T @ x)  # type: ignore[operator,arg-type]


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    network, head, optimizer = network_and_head()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    h = forward_step(network, torch.ones(1, 3))
    with pytest.raises(NonFiniteStep, match="gradient norm"):
        returned_step(h, torch.tensor([[1.0, float("inf")]]), head, optimizer, torch.tensor([0]))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_batches_that_the_server_cannot_take_are_left_out_by_both_sides(tmp_path: Path) -> None:
    setup = setup_of(tmp_path, "failures.on_nonfinite=skip_batch")
    reference = Reference(setup)
    with torch.no_grad():
        next(reference.servers[0].model.network.parameters()).fill_(1e38)
    before = reference.clients[0].tensors()
    reports = reference.trip("train", WITH_GRADIENTS, Work(0, 1, 0, 1))
    assert reports["client"].skipped == reports["server"].skipped == 1
    assert reports["client"].samples == 0
    for name, array in reference.clients[0].tensors().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_client_that_goes_back_waits_for_no_gradient(tmp_path: Path) -> None:
    reference = Reference(setup_of(tmp_path))
    client, before = reference.clients[0], reference.clients[0].snapshot()
    client.send(1, 3, 4)
    client.restore(before)
    again = Reference(setup_of(tmp_path))
    assert reference.run_round(1).client_training == again.run_round(1).client_training


def test_a_client_names_the_batch_whose_features_are_not_finite(tmp_path: Path) -> None:
    reference = Reference(setup_of(tmp_path))
    with torch.no_grad():
        next(reference.clients[0].model.network.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"features is nan for client-000 in round 1, batch 1; "):
        reference.run_round(1)


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"exit_weight": 0}, r"exit_weight is 0: a client's units would learn from nothing; raise it, or set "),
        ({"feedback": "gradients", "look_ahead": {"units": 1}}, r"feedback is 'gradients': leave out one of them"),
        (
            {"look_ahead": {"units": 1, "copies": "network"}, "aggregate": "both"},
            r"only aggregate=all makes one network",
        ),
        ({"feedback": "labels"}, r"training.feedback"),
        ({"feedback": {"name": "soft_labels", "temperature": 0}}, r"training.feedback.temperature is 0"),
        ({"look_ahead": 2}, r"training.look_ahead is 2"),
        (
            {"feedback": "gradients", "strategy": "tests.extensions.splitfed:SplitFed"},
            r"training.feedback is 'gradients', and tests.extensions.splitfed:SplitFed has legs of its own: leave ",
        ),
    ],
)
def test_ways_to_learn_that_cannot_be(training: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        setup_of(tmp_path, **{"feedback": "none", "exit_weight": 1, **training})


def test_a_server_learns_again_from_what_it_has_room_for(tmp_path: Path) -> None:
    # 40 images less 2 set aside: four batches of 8 and one of 6. At the stem a sample is 4 x 128 x 128 floats.
    options = {"feedback": "none", "exit_weight": 1, "server_epochs": 3}
    small = setup_of(tmp_path, **options)
    steps = Reference(small).run_round(1).server_training[0]
    assert (steps.samples, len(steps.losses)) == (38, 3 * 5)
    large = setup_of(tmp_path, "data.image_size=128", "tiers.0.cut=stem", "training.server_memory_mib=6", **options)
    steps = Reference(large).run_round(1).server_training[0]
    # 2 MiB a batch, 1.5 MiB the last: two of 8 are kept, and then the last one fits.
    assert (steps.samples, len(steps.losses)) == (38, 5 + 2 * 3)


def test_what_a_server_keeps_does_not_depend_on_how_batches_travel(tmp_path: Path) -> None:
    setup = setup_of(
        tmp_path, "data.image_size=128", "training.server_memory_mib=6", feedback="none", exit_weight=1, server_epochs=2
    )
    digests = set()
    for together in (1, 2, 5):
        reference = Reference(setup)
        for first in range(0, 5, together):
            last = min(first + together, 5)
            reference.trip("train", TRAINING, Work(0, 1, first, last, ends_round=last == 5))
        digests.add(reference.digest())
    assert len(digests) == 1
