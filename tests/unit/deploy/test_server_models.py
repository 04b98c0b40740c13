"""The server parts of an export in one process: what clients share, what is their own, and who gets which answer."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hsee_ray.deploy.server_models import PASS_SAMPLES, Array, ServerModels, find_bundles, sent_features
from hsee_ray.edge.protocol import BadRequest, Offload, SentFeatures, decode, encode
from hsee_ray.errors import DataError
from hsee_ray.rundir.run import Run
from tests.exports import coded_features, labels_of, tiny_export

SERVED = (0, 1, 2)


@dataclass(frozen=True)
class Served:
    run: Run
    out: Path
    models: ServerModels

    def features(self, client: int, samples: int, seed: int = 0) -> Array:
        images = np.random.default_rng(seed).integers(0, 256, (samples, 8, 8, 3), np.uint8)
        return coded_features(self.run, self.out, client, images)

    def expected(self, client: int, features: Array) -> list[int]:
        """What the trained modules make of it."""
        return labels_of(self.run, self.out, client, features)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    run, out = tiny_export(tmp_path_factory.mktemp("served"))
    return Served(run, out, ServerModels(find_bundles(out), torch.device("cpu")))


# Answers


@pytest.mark.parametrize("client", SERVED)
def test_answers_are_those_of_the_trained_modules(served: Served, client: int) -> None:
    features = served.features(client, 64)
    labels = served.models.answer(client, features)
    assert labels.dtype == np.int64
    assert labels.tolist() == served.expected(client, features)
    assert len(set(labels.tolist())) > 1, "the test could not tell a wrong answer"


def test_clients_share_parameters_and_keep_their_statistics(served: Served) -> None:
    first, second = served.models.tensors(0), served.models.tensors(1)
    shared = {name for name in first if first[name].data_ptr() == second[name].data_ptr()}
    statistics = {name for name in first if name.endswith(("running_mean", "running_var"))}
    parameters = {name for name in first if name.endswith((".weight", ".bias"))}
    assert statistics and parameters <= shared
    assert not statistics & shared
    deeper = served.models.tensors(2)
    assert {name for name in parameters & set(deeper) if deeper[name].data_ptr() == first[name].data_ptr()} == (
        parameters & set(deeper)
    )


def test_clients_of_one_cut_get_answers_in_their_own_statistics(served: Served) -> None:
    features = served.features(0, 256)
    logits = [served.models._logits(client, features) for client in (0, 1)]
    assert not torch.allclose(*logits)


def test_a_mixed_micro_batch_answers_as_one_by_one(served: Served) -> None:
    requests = [
        Offload(client, served.features(client, samples, seed))
        for seed, (client, samples) in enumerate([(1, 3), (0, 1), (2, 4), (1, 1), (0, 5), (2, 1), (1, 2)])
    ]
    together = served.models.answer_all(requests)
    for request, labels in zip(requests, together, strict=True):
        assert isinstance(labels, np.ndarray)
        assert labels.tolist() == served.models.answer(request.client, request.features).tolist()
        assert labels.tolist() == served.expected(request.client, request.features)


def test_a_request_larger_than_one_pass(served: Served) -> None:
    features = served.features(0, 2 * PASS_SAMPLES + 3)
    assert served.models.answer(0, features).tolist() == served.expected(0, features)


def test_features_over_a_body_are_not_copied_into_a_warning(served: Served) -> None:
    features = served.features(0, 2)
    body = encode(0, served.run.summary["weights_sha256"], features)
    offload = decode(body, served.run.summary["weights_sha256"], {0: SentFeatures(features.shape[1:])})
    assert not offload.features.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert served.models.answer(0, offload.features).tolist() == served.expected(0, features)


# Requests without an answer


def test_features_that_overflow_are_refused_and_their_neighbours_answered(served: Served) -> None:
    fine = served.features(0, 2)
    huge = np.full_like(fine, 3e38)
    first, refused, last = served.models.answer_all([Offload(0, fine), Offload(0, huge), Offload(0, fine)])
    assert isinstance(refused, BadRequest) and refused.status == 422
    assert isinstance(first, np.ndarray) and isinstance(last, np.ndarray)
    assert first.tolist() == last.tolist() == served.expected(0, fine)
    with pytest.raises(BadRequest, match="no finite numbers"):
        served.models.answer(0, huge)


def test_a_network_that_fails_leaves_the_other_clients_their_answers(served: Served) -> None:
    # No server lets features of another shape come so far: they stand for whatever else fails.
    requests = [Offload(0, served.features(0, 1)), Offload(2, np.zeros((1, 7, 2, 2), np.uint8))]
    labels, error = served.models.answer_all(requests)
    assert isinstance(labels, np.ndarray) and labels.tolist() == served.expected(0, requests[0].features)
    assert isinstance(error, Exception) and not isinstance(error, BadRequest)


# Bundles


@pytest.fixture
def copy(served: Served, tmp_path: Path) -> Path:
    return Path(shutil.copytree(served.out, tmp_path / "copy"))


def refusal(directory: Path) -> str:
    with pytest.raises(DataError) as caught:
        find_bundles(directory)
    return str(caught.value)


def test_an_export_serves_all_clients_that_have_a_server_part(served: Served) -> None:
    assert [bundle.client for bundle in find_bundles(served.out).values()] == [0, 1, 2]


def test_what_each_client_sends(served: Served) -> None:
    sent = sent_features(find_bundles(served.out))
    assert sent == {0: SentFeatures((4, 8, 8)), 1: SentFeatures((4, 8, 8)), 2: SentFeatures((4, 4, 4), "int8")}


def test_programs_are_not_read_by_what_runs_their_code(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.export, "load")
    ServerModels(find_bundles(served.out), torch.device("cpu"))


def test_a_single_client_can_be_served(served: Served) -> None:
    bundles = find_bundles(served.out / "client-001")
    features = served.features(1, 16)
    models = ServerModels(bundles, torch.device("cpu"))
    assert models.answer(1, features).tolist() == served.expected(1, features)
    with pytest.raises(KeyError):
        models.answer(0, features)


def test_a_client_with_the_whole_network_cannot(served: Served) -> None:
    assert "no client has a server part" in refusal(served.out / "client-003")


def test_a_directory_without_bundles(tmp_path: Path) -> None:
    assert "holds no bundle.json" in refusal(tmp_path)
    assert "holds no bundle.json" in refusal(tmp_path / "missing")


def test_a_client_twice(copy: Path) -> None:
    shutil.copytree(copy / "client-000", copy / "client-000-old")
    assert "two bundles of one client" in refusal(copy)


def test_bundles_of_two_runs(copy: Path) -> None:
    bundle = copy / "client-001" / "bundle.json"
    text = bundle.read_text(encoding="utf-8")
    (network,) = {found.network for found in find_bundles(copy).values()}
    bundle.write_text(text.replace(network, network[::-1]), encoding="utf-8")
    assert "bundles of 2 networks" in refusal(copy)


@pytest.mark.parametrize("name", ["weights.safetensors", "stem.pt2"])
def test_a_damaged_file(copy: Path, name: str) -> None:
    path = copy / "server" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert f"{name}: is not the file that bundle.json names" in refusal(copy)
    path.unlink()
    assert f"{name}: cannot be read" in refusal(copy)
