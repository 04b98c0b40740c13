"""The plain actor classes in this process, over a synthetic setup: two sensors that cut after the stem, one phone.

Images are 8x8, gray, of two classes; the stem has 4 channels, so a sample's features are 4 * 8 * 8 floats.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actors.workers.actor_location import ActorLocation
from actors.workers.aggregator import Aggregator
from actors.workers.compute import prepare_process
from actors.workers.contract import AverageRefs, LoadAverages, RunLeg, SaveModel
from actors.workers.model_actor import ClientActor, ModelActor, ServerActor, own_rows
from actors.workers.origin import Origin, difference, versions
from actors.workers.store_resident import INLINE_LIMIT_BYTES, StoreResident, store_resident
from hsee_ray.config.files import load_config
from hsee_ray.config.fleet import ModelId
from hsee_ray.config.schema import ResourcesConfig, TrainingConfig
from hsee_ray.errors import RunError
from hsee_ray.method.aggregation import Copy
from hsee_ray.method.legs import TRAINING, Trip, Work, evaluating
from hsee_ray.method.setup import Setup, mapped_client_data, prepare_run
from hsee_ray.models.snapshot import Snapshot
from hsee_ray.models.state import ModelState, UnitState, named_tensors
from hsee_ray.models.torch_device import choose_device
from hsee_ray.models.weights import digest_lines
from hsee_ray.rundir.location import RunLocation

FEATURE_BYTES = 4 * 4 * 8 * 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def prepared(cache: Path, **training: Any) -> Setup:
    """8 training samples for each client, 2 of them set aside: batches of 4 and 2. 10 test samples."""
    return prepare_run(
        load_config(
            {
                "model": {"width": 4},
                "data": {
                    "name": "synthetic",
                    "cache": str(cache),
                    "train_samples": 24,
                    "test_samples": 10,
                    "image_size": 8,
                    "channels": 1,
                    "classes": 2,
                    "augment": True,
                    "calibration_fraction": 0.25,
                },
                "tiers": [
                    {"name": "sensor", "clients": 2, "cut": "stem"},
                    {"name": "phone", "clients": 1, "cut": "head"},
                ],
                "training": {"batch_size": 4, **training},
                "exits": {"taus": [0.0, 0.5, 1.0]},
            }
        )
    )


@pytest.fixture(scope="module")
def setup(cache: Path) -> Setup:
    return prepared(cache)


def sensor(setup: Setup, number: int = 0) -> ClientActor:
    return ClientActor(setup, number)


def leg(actor: ModelActor, trip: Trip, work: Work, packet: Any = None) -> tuple[Any, Any]:
    """What an actor's part in a trip sends on, and its report."""
    index = 0 if actor.side.__class__.__name__ == "Client" else 1
    payload = None if packet is None else 0
    sent, _, outcome = actor.perform(RunLeg(trip[index], work, False, payload), None, *([packet] if packet else []))
    return sent, outcome.report


def train(actor: ModelActor, first: int, last: int) -> tuple[Any, Any]:
    return leg(actor, TRAINING, Work(actor.client_id, 1, first, last))


def learn(actor: ModelActor, client: int, packet: Any) -> Any:
    return leg(actor, TRAINING, Work(client, 1, 0, 2), packet)[1]


def evaluate(actor: ModelActor, first: int, last: int) -> tuple[Any, Any]:
    return leg(actor, evaluating("test"), Work(actor.client_id, 1, first, last))


def judge(actor: ModelActor, client: int, packet: Any) -> Any:
    return leg(actor, evaluating("test"), Work(client, 1, 0, 10), packet)[1]


def load(actor: ModelActor, averages: AverageRefs, *objects: Any) -> None:
    assert actor.perform(LoadAverages(averages), None, *objects) is None


def state_of(actor: ModelActor) -> StoreResident[ModelState]:
    return store_resident(actor.side.snapshot().units)


def assert_same_state(one: StoreResident[ModelState], other: StoreResident[ModelState]) -> None:
    first, second = named_tensors(one.payload), named_tensors(other.payload)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


# Training and evaluation


def test_a_client_trains_and_its_server_learns_from_the_packet(setup: Setup) -> None:
    client, server = sensor(setup), ServerActor(setup, 0)
    before = named_tensors(state_of(client).payload), named_tensors(state_of(server).payload)
    packet, report = train(client, 0, 2)
    assert [batch.features.shape for batch in packet.payload] == [(4, 8, 8, 4), (2, 8, 8, 4)]
    assert (report.samples, len(report.losses)) == (6, 2)
    assert report.sent_bytes == 6 * (FEATURE_BYTES + 8)
    server_report = learn(server, 0, packet)
    assert (server_report.samples, len(server_report.losses), server_report.sent_bytes) == (6, 2, 0)
    after = named_tensors(state_of(client).payload), named_tensors(state_of(server).payload)
    for old, new in zip(before, after, strict=True):
        assert all((old[name] != new[name]).any() for name in old if name.endswith("weight"))
    assert {name.partition(".")[0] for name in after[0]} == {"stem", "exit"}
    assert "stem.conv1.weight" not in after[1]


def test_steps_in_one_call_or_in_two_are_the_same(setup: Setup) -> None:
    once, twice = sensor(setup), sensor(setup)
    packet, report = train(once, 0, 2)
    first, first_report = train(twice, 0, 1)
    second, second_report = train(twice, 1, 2)
    assert first_report + second_report == report
    for one, other in zip(packet.payload, first.payload + second.payload, strict=True):
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.labels_B, other.labels_B)
    assert_same_state(state_of(once), state_of(twice))


def test_images_by_reference_or_mapped_are_the_same(setup: Setup) -> None:
    data = mapped_client_data(setup, 1)
    rows = {part: own_rows(getattr(data, part)) for part in ("train", "test", "calibration", "validation")}
    images_NHWC = rows["train"].images_NHWC
    assert images_NHWC.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(images_NHWC, data.train.images_NHWC[setup.parts[1].train])
    by_reference, mapped = ClientActor(setup, 1, **rows), sensor(setup, 1)
    assert train(by_reference, 0, 2)[1] == train(mapped, 0, 2)[1]
    assert_same_state(state_of(by_reference), state_of(mapped))


def test_evaluation_leaves_the_models_as_they_are_and_counts_both_sides(setup: Setup) -> None:
    client, server = sensor(setup), ServerActor(setup, 0)
    before = state_of(client), state_of(server)
    packet, nothing = evaluate(client, 0, 10)
    assert nothing is None
    (batch,) = packet.payload
    assert batch.confidence_B is not None and batch.prediction_B is not None
    report = judge(server, 0, packet)
    assert report.samples == 10
    assert report.label_counts == (5, 5)
    assert report.sent_bytes == 10 * FEATURE_BYTES
    assert report.client_correct == int((batch.prediction_B == batch.labels_B).sum())
    # tau 1 sends everything: the server's answers alone.
    assert (report.offloaded[2], report.gated_correct[2]) == (10, report.server_correct)
    assert_same_state(state_of(client), before[0])
    assert_same_state(state_of(server), before[1])


def test_a_part_of_the_test_samples(setup: Setup) -> None:
    client = sensor(setup)
    (whole,), (tail,) = evaluate(client, 0, 10)[0].payload, evaluate(client, 8, 16)[0].payload
    np.testing.assert_array_equal(tail.labels_B, whole.labels_B[8:])
    np.testing.assert_allclose(tail.features, whole.features[8:], rtol=1e-5, atol=1e-6)


def test_a_client_with_the_whole_network_sends_nothing(setup: Setup) -> None:
    phone = sensor(setup, 2)
    packet, report = train(phone, 0, 2)
    assert packet.payload == ()
    assert (report.samples, report.sent_bytes) == (6, 0)
    packet, evaluation = evaluate(phone, 0, 10)
    assert packet.payload == ()
    assert evaluation is not None
    assert (evaluation.samples, evaluation.server_correct, evaluation.offloaded) == (10, None, (0, 0, 0))
    assert "exit" not in state_of(phone).payload


def test_clients_start_from_one_network_and_one_head(setup: Setup) -> None:
    first, second, phone = (state_of(sensor(setup, number)) for number in range(3))
    assert_same_state(first, second)
    np.testing.assert_array_equal(
        first.payload["stem"].parameters["conv1.weight"], phone.payload["stem"].parameters["conv1.weight"]
    )
    server = state_of(ServerActor(setup, 0)).payload
    np.testing.assert_array_equal(server["head"].parameters["fc.weight"], phone.payload["head"].parameters["fc.weight"])


# States, averages, files


def test_a_loaded_state_is_the_other_actors(setup: Setup) -> None:
    one, other = sensor(setup, 0), sensor(setup, 1)
    train(one, 0, 2)
    train(other, 0, 2)
    state = state_of(one)
    load(other, {"stem": (0, "stem")}, state)
    np.testing.assert_array_equal(
        state_of(other).payload["stem"].statistics["bn1.running_mean"],
        state.payload["stem"].statistics["bn1.running_mean"],
    )
    assert (
        state_of(other).payload["exit"].parameters["fc.weight"] != state.payload["exit"].parameters["fc.weight"]
    ).any()
    load(other, {unit: (0, unit) for unit in state.payload}, state)
    assert_same_state(state_of(other), state)


def test_a_servers_state_can_be_loaded(setup: Setup) -> None:
    one, other = ServerActor(setup, 0), ServerActor(setup, 1)
    learn(one, 0, train(sensor(setup), 0, 2)[0])
    state = state_of(one)
    load(other, {unit: (0, unit) for unit in state.payload}, state)
    assert_same_state(state_of(other), state)


def test_reset_forgets_the_optimisers_state_of_what_is_loaded(cache: Path) -> None:
    client = sensor(prepared(cache, optimizer_state="reset"))
    train(client, 0, 2)
    stem = state_of(client).payload["stem"]
    load(client, {"stem": (0, "all/stem")}, store_resident({"all/stem": UnitState(stem.parameters, {}, {}, {})}))
    state = state_of(client).payload
    assert state["stem"].optimizer == {}
    assert set(state["exit"].optimizer) == {"fc.weight", "fc.bias"}


def test_saved_files_hold_the_models(setup: Setup, tmp_path: Path) -> None:
    client, server = sensor(setup), ServerActor(setup, 0)
    client_lines = client.perform(SaveModel(str(tmp_path), "client-000"), None)
    server_lines = server.perform(SaveModel(str(tmp_path), "server-000"), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client-000.safetensors", "server-000.safetensors"]
    assert client_lines == digest_lines("client-000", named_tensors(state_of(client).payload))
    assert server_lines == digest_lines("server-000", load_file(tmp_path / "server-000.safetensors"))


def test_a_shared_server_serves_both_sensors_in_their_own_statistics(cache: Path, tmp_path: Path) -> None:
    setup = prepared(cache, strategy="sequential")
    shared = ServerActor(setup, 0)
    for number in (0, 1):
        learn(shared, number, train(sensor(setup, number), 0, 2)[0])
        assert judge(shared, number, evaluate(sensor(setup, number), 0, 10)[0]).samples == 10
    shared.perform(SaveModel(str(tmp_path), "server"), None)
    tensors = load_file(tmp_path / "server.safetensors")
    means = [tensors[f"client-{label}.layer1.0.bn1.running_mean"] for label in ("000", "001")]
    assert (means[0] != means[1]).any()
    assert "layer1.0.bn1.running_mean" not in tensors
    assert "layer1.0.bn1.weight" in tensors


def test_aggregator_by_hand(setup: Setup) -> None:
    def sealed(**values: float) -> StoreResident[Snapshot]:
        return store_resident(
            Snapshot({name: UnitState({"w": np.float32([value])}, {}, {}, {}) for name, value in values.items()})
        )

    client, server = ModelId("client", 0), ModelId("server", 1)
    aggregator = Aggregator(setup.config.training)
    states = sealed(a=1.0, b=8.0), sealed(b=2.0)
    of_a = (Copy(client, "a", 1.0),)
    of_b = (Copy(client, "b", 1.0), Copy(server, "b", 2.0))
    averages, nothing = aggregator.average({"all/a": of_a, "all/b": of_b}, {client: 0, server: 1}, {}, *states)
    assert nothing is None
    values = {key: average.parameters["w"].tolist() for key, average in averages.payload.items()}
    assert values == {"all/a": [1.0], "all/b": [4.0]}


# Sealed objects and devices


@pytest.mark.parametrize("payload", [(), None, {"w": np.zeros(1, np.float32)}])
def test_even_a_tiny_sealed_object_is_larger_than_what_ray_inlines(payload: object) -> None:
    assert INLINE_LIMIT_BYTES == 102_400
    for protocol in (4, pickle.HIGHEST_PROTOCOL):
        assert len(pickle.dumps(store_resident(payload), protocol)) > 102_400
    # Protocol 5 keeps arrays out of band, as Ray does: the padding is such a buffer.
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(store_resident(payload), 5, buffer_callback=buffers.append)
    assert sum(buffer.raw().nbytes for buffer in buffers) > 102_400


def test_a_sealed_object_gives_its_payload_back() -> None:
    assert pickle.loads(pickle.dumps(store_resident(("a", 1)))).payload == ("a", 1)


@pytest.mark.parametrize(
    ("wanted", "num_gpus", "cuda_available", "device"),
    [
        ("auto", 0.0, True, "cpu"),
        ("auto", 0.25, True, "cuda"),
        ("auto", 1.0, True, "cuda"),
        ("auto", 1.0, False, "cpu"),
        ("cpu", 1.0, True, "cpu"),
        ("cuda", 0.0, True, "cuda"),
    ],
)
def test_device(wanted: str, num_gpus: float, cuda_available: bool, device: str) -> None:
    assert choose_device(wanted, num_gpus, cuda_available) == torch.device(device)


def test_cuda_that_is_not_there_is_refused() -> None:
    with pytest.raises(RunError, match="is cuda, and torch finds no CUDA on this node"):
        choose_device("cuda", 1.0, False)


def test_who_asked_for_no_gpu_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingConfig()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    prepare_process(training, ResourcesConfig(num_gpus=0.5), None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    prepare_process(training, ResourcesConfig(), None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


# What they must find on their node


def test_other_software_than_the_drivers_is_refused() -> None:
    assert difference({"torch": "2.15.0"}, {"torch": "2.14.1"}) == "torch 2.14.1 and not 2.15.0"
    assert difference({"torch": "2.15.0", "hsee-ray": "0.1.0"}, {"torch": "2.15.0"}) is None
    origin = Origin({**versions(), "numpy": "1.0"}, None)
    with pytest.raises(RunError, match=r"node 10.0.0.7 has numpy \S+ and not 1.0; install on it what the driver has"):
        origin.check("10.0.0.7")
    Origin(versions(), None).check("10.0.0.7")


def test_a_run_that_a_node_does_not_see_is_refused(tmp_path: Path) -> None:
    location = RunLocation(tmp_path)
    origin = Origin(versions(), location.uri, location.token)
    with pytest.raises(
        RunError, match=f"node 10.0.0.7 does not see {tmp_path} .nothing is there.; keep runs where every node"
    ):
        origin.check("10.0.0.7")
    location.claim()
    origin.check("10.0.0.7")


@pytest.mark.parametrize(("actor_class", "name"), [(ClientActor, "client 001 (sensor)"), (ServerActor, "server 001")])
def test_an_actor_has_its_name_where_it_cannot_start(
    actor_class: type[ModelActor], name: str, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray asks for it then; an error there would end the process, and the run would replace it again and again."""
    here = ActorLocation("node", "10.0.0.7", "cpu")
    monkeypatch.setattr("actors.workers.compute.location_here", lambda device: here)  # Ray's own would start a Ray
    actor = actor_class.__new__(actor_class)
    with pytest.raises(RunError, match="install on it what the driver has"):
        actor_class.__init__(actor, setup, 1, Origin({**versions(), "numpy": "1.0"}, None))  # type: ignore[call-arg]
    assert repr(actor) == name


# The setup they are built from


def test_setup_by_hand(setup: Setup) -> None:
    assert setup.n_classes == 2
    assert setup.local_samples == (6, 6, 6)
    assert [len(part.calibration) for part in setup.parts] == [2, 2, 2]
    assert setup.class_counts.shape == (3, 2)
    assert setup.class_counts.sum(axis=1).tolist() == [6, 6, 6]
    assert len(setup.test_indices) == 10
    # Stem and first stage: 4 channels of 8x8; then half the side and twice the channels at every stage.
    assert setup.feature_shapes[0] == setup.feature_shapes[2] == (4, 8, 8)
    assert setup.feature_shapes[4] == (8, 4, 4)
    assert setup.feature_shapes[-1] == (2,)
    spec = setup.fleet.clients[0]
    coded = {codec: replace(spec, cut=5, codec=codec) for codec in ("none", "fp16", "int8")}
    assert setup.feature_bytes(spec, 3) == 3 * FEATURE_BYTES
    # Of the range, two float32 for each of the 8 channels.
    assert {codec: setup.feature_bytes(own, 3) for codec, own in coded.items()} == {
        "none": 3 * 4 * 128,
        "fp16": 3 * 2 * 128,
        "int8": 3 * 128 + 8 * 8,
    }


def test_setup_deals_every_sample_out_once(setup: Setup) -> None:
    rows = np.concatenate([rows for part in setup.parts for rows in (part.train, part.calibration)])
    assert sorted(rows.tolist()) == list(range(24))


def test_centralized_trains_on_the_union_of_what_the_clients_have(setup: Setup, cache: Path) -> None:
    central = prepared(cache, strategy="centralized")
    (part,) = central.parts
    assert part.train.tolist() == sorted(np.concatenate([each.train for each in setup.parts]).tolist())
    assert part.calibration.tolist() == sorted(np.concatenate([each.calibration for each in setup.parts]).tolist())
    assert central.local_samples == (18,)
    assert central.class_counts.tolist() == [setup.class_counts.sum(axis=0).tolist()]
    np.testing.assert_allclose(central.mean_C, setup.mean_C)
    actor = sensor(central)
    assert train(actor, 0, 5)[1].samples == 18
