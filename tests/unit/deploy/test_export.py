"""Bundles of trained runs: graphs answer as the modules do, shared bytes lie there once, files are what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file

from hsee_ray.deploy.export import SharedTensors, choose_gates, export
from hsee_ray.edge.bundle import BUNDLE_FILE, Bundle, checked_file, load_bundle
from hsee_ray.edge.edge_client import EdgeClient
from hsee_ray.edge.gate import NEVER_SENDS, Gate
from hsee_ray.edge.task import Classification
from hsee_ray.errors import RunError, UserError
from hsee_ray.evaluation.calibration import Calibration, TierCalibration, save_calibration
from hsee_ray.rundir.run import MODELS_DIR, Run, load_run
from jobs.export import main
from tests.run_directories import train_run, without_client

TOLERANCE = 1e-4
NEAR_TAU, NEAR_TIE = 1e-5, 2e-4
DATA = {"name": "synthetic", "train_samples": 96, "test_samples": 8, "image_size": 8, "classes": 4}
AVERAGING = {
    "model": {"name": "tests.networks:conv_units"},
    "data": DATA,
    "tiers": [
        {"name": "sensor", "clients": 2, "cut": "stem"},
        {"name": "hub", "clients": 1, "cut": "body.1"},
        {"name": "gateway", "clients": 1, "cut": "head"},
    ],
    "training": {"rounds": 6, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
}
SEQUENTIAL = {
    **AVERAGING,
    "model": {"name": "resnet18", "stem": "imagenet", "width": 64},
    "data": {**DATA, "train_samples": 16, "image_size": 32},
    "tiers": [{"name": "sensor", "clients": 2, "cut": "layer2"}],
    "training": {"strategy": "sequential", "rounds": 1, "batch_size": 8},
}


@dataclass(frozen=True)
class Exported:
    run: Run
    out: Path

    def directory(self, client: int) -> Path:
        return self.out / f"client-{client:03}"

    def bundle(self, client: int) -> Bundle:
        return load_bundle(self.directory(client))

    def onnx(self, client: int) -> tuple[ort.InferenceSession, ort.InferenceSession | None]:
        """Sessions of the client's part and of its server's."""
        server = self.bundle(client).server
        device = ort.InferenceSession(self.directory(client) / "client.onnx")
        return device, None if server is None else ort.InferenceSession(self.directory(client) / server.onnx)


@pytest.fixture(scope="module")
def averaging(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("averaging")
    run = train_run(path / "run", AVERAGING)
    export(run, path / "out", tau=0.5)
    return Exported(run, path / "out")


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("sequential")
    run = train_run(path / "run", SEQUENTIAL)
    export(run, path / "out", tau=0.5)
    return Exported(run, path / "out")


@pytest.fixture(params=["averaging", "sequential"])
def exported(request: pytest.FixtureRequest) -> Iterator[Exported]:
    yield request.getfixturevalue(request.param)


def images_of(run: Run, samples: int, seed: int = 0) -> np.ndarray:
    shape = (samples, *run.summary["data"]["image_shape"])
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@torch.no_grad()
def trained(run: Run, client: int, images_NHWC: np.ndarray) -> list[np.ndarray]:
    """Exit logits, features and server logits of the trained modules; of cut L, the logits."""
    h = run.client(client)(run.preprocess(images_NHWC))
    if not run.fleet.clients[client].has_server:
        return [h.numpy()]
    return [run.exit(client)(h).numpy(), h.numpy(), run.server(client)(h).numpy()]


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("samples", [1, 3, 64])
def test_graphs_give_the_values_of_the_trained_modules(exported: Exported, samples: int) -> None:
    images_NHWC = images_of(exported.run, samples, seed=samples)
    for spec in exported.run.fleet.clients:
        wanted = trained(exported.run, spec.client_id, images_NHWC)
        device, server = exported.onnx(spec.client_id)
        found = device.run(None, {"images": images_NHWC})
        if server is not None:
            found += server.run(["logits"], {"features": found[1]})
        for values, expected in zip(found, wanted, strict=True):
            assert_close(values, expected)


@pytest.mark.parametrize("head", ["conv", "mlp"])
def test_graphs_have_the_exits_of_every_kind(head: str, tmp_path: Path) -> None:
    values = {**AVERAGING, "training": {**AVERAGING["training"], "rounds": 1}, "exits": {"head": head}}
    run = train_run(tmp_path / "run", values)
    export(run, tmp_path / "out", tau=0.5)
    images_NHWC = images_of(run, 3)
    for client in (0, 2):
        device, _ = Exported(run, tmp_path / "out").onnx(client)
        for found, expected in zip(
            device.run(None, {"images": images_NHWC}), trained(run, client, images_NHWC)[:2], strict=True
        ):
            assert_close(found, expected)


@pytest.mark.parametrize("strategy", ["fedavg", "smallest", "per_tier", "depthfl"])
def test_without_servers_a_bundle_answers_alone(strategy: str, tmp_path: Path) -> None:
    tiers = [{**tier, "codec": "int8"} for tier in AVERAGING["tiers"]]
    run = train_run(tmp_path / "run", {**AVERAGING, "tiers": tiers, "training": {"strategy": strategy, "rounds": 1}})
    export(run, tmp_path / "out")
    images_NHWC, exported = images_of(run, 5), Exported(run, tmp_path / "out")
    assert not (tmp_path / "out" / "server").exists()
    for spec in run.fleet.clients:
        bundle, (device, _) = exported.bundle(spec.client_id), exported.onnx(spec.client_id)
        assert (bundle.server, bundle.feature_shape, bundle.gate.tau) == (None, None, NEVER_SENDS)
        with torch.no_grad():
            h = run.client(spec.client_id)(run.preprocess(images_NHWC))
            logits_BK = run.exit(spec.client_id)(h) if spec.has_exit else h
        (found,) = device.run(None, {"images": images_NHWC})
        assert_close(found, logits_BK.numpy())
        answers = EdgeClient(exported.directory(spec.client_id)).predict(images_NHWC)
        assert [answer.label for answer in answers] == logits_BK.argmax(1).tolist()
        assert all(answer.exited for answer in answers)
        network = load_file(exported.directory(spec.client_id) / bundle.network_file)
        assert set(network) == set(run.models._tensors(spec.client_file)), "its units, and its exit"
        with pytest.raises(UserError, match="has no server: it answers alone"):
            run.server(spec.client_id)
        if not spec.has_exit:
            with pytest.raises(UserError, match="holds the whole network: it has no exit"):
                run.exit(spec.client_id)


@pytest.mark.parametrize("samples", [1, 3, 64])
def test_the_program_is_the_server_module(exported: Exported, samples: int) -> None:
    for spec in exported.run.fleet.clients:
        bundle, directory = exported.bundle(spec.client_id), exported.directory(spec.client_id)
        if bundle.server is None:
            continue
        assert bundle.feature_shape is not None
        program = torch.export.load(directory / bundle.server.program).module()
        weights = load_file(directory / bundle.server.weights)
        tensors = {name: torch.from_numpy(weights[kept]) for name, kept in bundle.server.tensors.items()}
        h = torch.randn(samples, *bundle.feature_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(
                program(h, tensors), exported.run.server(spec.client_id)(h), rtol=1e-6, atol=1e-6
            )


def test_device_and_server_decide_as_the_trained_modules(averaging: Exported) -> None:
    run, images_NHWC = averaging.run, images_of(averaging.run, 1000)
    for client in (0, 1, 2):
        exit_BK, _, server_BK = trained(run, client, images_NHWC)
        task = Classification()
        gate = Gate("entropy", float(np.median(task.confidence(exit_BK, "entropy"))))  # half of them are sent
        device, server = averaging.onnx(client)
        assert server is not None
        found_exit_BK, h = device.run(None, {"images": images_NHWC})
        (found_server_BK,) = server.run(None, {"features": h})

        confidence_B, found_confidence_B = gate.confidence(exit_BK, task), gate.confidence(found_exit_BK, task)
        sent_B, found_sent_B = confidence_B <= gate.tau, found_confidence_B <= gate.tau
        assert 400 < sent_B.sum() < 600
        answered_BK = np.where(sent_B[:, None], server_BK, exit_BK)
        found_BK = np.where(found_sent_B[:, None], found_server_BK, found_exit_BK)
        top_two_B2 = np.sort(answered_BK, axis=1)[:, -2:]
        near_B = (np.abs(confidence_B - gate.tau) < NEAR_TAU) | (top_two_B2[:, 1] - top_two_B2[:, 0] < NEAR_TIE)
        same_B = (sent_B == found_sent_B) & (answered_BK.argmax(axis=1) == found_BK.argmax(axis=1))
        assert bool((same_B | near_B).all())
        assert near_B.sum() <= 10, "of a thousand, so few are too near to tell"


def test_shared_parameters_lie_there_once(averaging: Exported) -> None:
    weights = load_file(averaging.out / "server" / "weights.safetensors")
    tensors = [server.tensors for n in (0, 1, 2) if (server := averaging.bundle(n).server) is not None]
    own = {name for name in tensors[0] if "running" in name}
    for name in tensors[0]:
        copies = {kept[name] for kept in tensors if name in kept}
        assert len(copies) == (len([kept for kept in tensors if name in kept]) if name in own else 1)
    assert tensors[0]["body.0.norm.running_mean"] == "body.0.norm.running_mean"
    assert tensors[1]["body.0.norm.running_mean"] == "client-001.body.0.norm.running_mean"
    assert not any("num_batches_tracked" in name for name in weights)
    # Whatever is there is somebody's; together it is one server, and the others' statistics.
    assert set(weights) == {kept for names in tensors for kept in names.values()}
    contents = [(name.removeprefix("client-001."), array.tobytes()) for name, array in weights.items()]
    assert len(set(contents)) == len(contents)


def test_server_graphs_hold_no_weights_of_their_own(sequential: Exported) -> None:
    weights_bytes = (sequential.out / "server" / "weights.safetensors").stat().st_size
    for path in (sequential.out / "server").glob("*.onnx"):
        assert path.stat().st_size < 100_000 < weights_bytes
        graph = onnx.load(path, load_external_data=False).graph
        assert {value.name for value in graph.input} == {"features"}
        inside = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
        assert all(int(np.prod(tensor.dims)) < 10 for tensor in inside)
    (program,) = (sequential.out / "server").glob("*.pt2")
    assert program.name == "layer2.1.pt2"
    assert program.stat().st_size < 500_000


def test_no_graph_tells_of_the_machine_that_wrote_it(averaging: Exported) -> None:
    graphs = [*averaging.out.rglob("*.onnx"), *averaging.out.rglob("*.pt2")]
    assert len(graphs) == 4 + 3 + 2
    for path in graphs:
        assert b"networks.py" not in path.read_bytes()


def test_the_whole_network_loads_into_torchvision(sequential: Exported) -> None:
    from torchvision.models import resnet18

    for client in (0, 1):
        tensors = load_file(sequential.out / "networks" / f"client-{client:03}.safetensors")
        network = resnet18(num_classes=4)
        network.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
        images_NHWC = images_of(sequential.run, 4)
        with torch.no_grad():
            logits = network.eval()(sequential.run.preprocess(images_NHWC)).numpy()
        assert_close(logits, trained(sequential.run, client, images_NHWC)[2])


def test_a_network_of_ones_own_keeps_its_names(averaging: Exported) -> None:
    for client in range(4):
        tensors = load_file(averaging.out / "networks" / f"client-{client:03}.safetensors")
        assert {"stem.conv.weight", "body.2.norm.num_batches_tracked", "head.2.bias"} <= set(tensors)
        assert not any(name.startswith("exit") for name in tensors)


def test_bundles_say_what_they_are(averaging: Exported) -> None:
    bundle, whole = averaging.bundle(2), averaging.bundle(3)
    assert (bundle.client, bundle.tier, bundle.cut, bundle.cut_index) == (2, "hub", "body.1", 3)
    assert bundle.image_shape == (8, 8, 3)
    assert bundle.feature_shape == (4, 4, 4)
    assert bundle.class_names == tuple(averaging.run.summary["data"]["class_names"])
    assert bundle.network == averaging.run.summary["weights_sha256"]
    assert (bundle.gate, bundle.calibrated_for) == (Gate("entropy", 0.5), None)
    assert (whole.cut, whole.feature_shape, whole.server) == ("head", None, None)
    assert whole.gate == Gate("entropy", NEVER_SENDS)
    assert json.loads((averaging.directory(2) / BUNDLE_FILE).read_text())["format_version"] == 2


def test_digests_are_of_the_files(averaging: Exported) -> None:
    for client in range(4):
        bundle, directory = averaging.bundle(client), averaging.directory(client)
        assert len(bundle.files) == (5 if client < 3 else 2)
        for name, digest in bundle.files.items():
            assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == digest
            assert checked_file(directory, bundle, name) == directory / name


def test_equal_content_under_one_name_is_kept_once() -> None:
    shared, ones, twos = SharedTensors(), np.ones(3, np.float32), np.full(3, 2, np.float32)
    assert shared.add("client-000", {"a.w": ones, "a.m": ones}) == {"a.w": "a.w", "a.m": "a.m"}
    assert shared.add("client-001", {"a.w": ones.copy(), "a.m": twos}) == {"a.w": "a.w", "a.m": "client-001.a.m"}
    assert shared.add("client-002", {"a.m": twos.copy()}) == {"a.m": "client-001.a.m"}
    assert shared.add("client-003", {"a.m": ones.astype(np.float64)}) == {"a.m": "client-003.a.m"}
    assert shared.add("client-004", {"a.m": ones.reshape(3, 1)}) == {"a.m": "client-004.a.m"}
    assert list(shared.tensors) == ["a.w", "a.m", "client-001.a.m", "client-003.a.m", "client-004.a.m"]


NETWORKS = [
    {"name": "resnet18", "width": 8, "norm": "group"},
    {"name": "resnet34", "width": 8},
    {"name": "mobilenet_v2", "width": 8},
    {"name": "vgg11_bn", "width": 8},
]


@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: "-".join(map(str, model.values())))
def test_every_built_in_network(model: dict[str, str], tmp_path: Path) -> None:
    """Export compares all graphs with the modules itself; resnet18 with batch norm is `sequential`."""
    content = {
        "model": model,
        "data": {**DATA, "train_samples": 4, "image_size": 32},
        "tiers": [{"name": "sensor", "clients": 1, "cut": 2}],
        "training": {"rounds": 1, "batch_size": 2},
    }
    exported = export(train_run(tmp_path / "run", content), tmp_path / "out", tau=0.5)
    assert [client.spec.client_id for client in exported.clients] == [0]


def test_a_calibrated_run(averaging: Exported, tmp_path: Path) -> None:
    run = only(copied(averaging.run, tmp_path / "run"), 2, 3)
    hub = TierCalibration(1.5, 0.75, 100, 0.3, 0.5, 0.4, 0.6, 0.02, 1024.0)
    save_calibration(run.path, Calibration("offload<=0.3", "margin", run.summary["weights_sha256"], {"hub": hub}))
    specs = list(run.fleet.clients[2:])
    never = Gate("margin", NEVER_SENDS), None
    assert choose_gates(run, specs, None) == {2: (Gate("margin", 0.75, 1.5), "offload<=0.3"), 3: never}
    assert choose_gates(run, specs, 0.7) == {2: (Gate("margin", 0.7, 1.5), None), 3: never}
    export(run, tmp_path / "out")
    bundle = load_bundle(tmp_path / "out" / "client-002")
    assert (bundle.gate, bundle.calibrated_for) == (Gate("margin", 0.75, 1.5), "offload<=0.3")


def copied(run: Run, path: Path) -> Run:
    """The same models in a directory of their own."""
    path.mkdir()
    for file in run.path.rglob("*"):
        target = path / file.relative_to(run.path)
        if file.is_file():
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    return load_run(path)


def only(run: Run, *clients: int) -> Run:
    """The run when the others never had a place on the cluster."""
    for spec in run.fleet.clients:
        if spec.client_id not in clients and (run.path / MODELS_DIR / f"{spec.client_file}.safetensors").is_file():
            run = without_client(run, spec.client_id)
    return run


def test_clients_that_were_never_trained_are_left_out(
    averaging: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = only(copied(averaging.run, tmp_path / "run"), 3)
    assert main(["--run", str(run.path), "--out", str(tmp_path / "out")]) == 0, "cut L needs no tau"
    said = capsys.readouterr().out
    assert "client-003  gateway  head" in said
    assert "client-001: left out, it was never trained" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["client-003", "networks"]


def test_bad_input_is_one_line_and_writes_nothing(
    averaging: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = averaging.run, tmp_path / "out"
    cases = {
        "has no calibrated tau; run hsee calibrate --run": [],
        "--tau 1.5: give a number from 0 to 1": ["--tau", "1.5"],
        "--tau nan: give a number from 0 to 1": ["--tau", "nan"],
    }
    for said, options in cases.items():
        assert main(["--run", str(run.path), "--out", str(out), *options]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("kept")
    assert main(["--run", str(run.path), "--out", str(out), "--tau", "0.5"]) == 2
    assert "is not empty; give a new directory" in capsys.readouterr().err
    assert (out / "mine").read_text() == "kept"
    with pytest.raises(UserError, match="is not empty"):
        export(run, out / "mine", tau=0.5)
    with pytest.raises(UserError, match="no trained clients"):
        export(only(copied(run, tmp_path / "run")), tmp_path / "new", tau=0.5)


def test_an_export_that_answers_otherwise_is_taken_back(
    averaging: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hsee_ray.deploy.graphs.DeviceNetwork.forward", lambda self, x: self.chain(x.permute(0, 3, 1, 2) / 9)
    )
    run = only(copied(averaging.run, tmp_path / "run"), 3)
    with pytest.raises(RunError, match=r"client\.onnx gives values that lie .* from the trained network's"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bundles_are_written_last(averaging: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(directory: Path, bundle: Bundle) -> None:
        for name in bundle.files:
            checked_file(directory, bundle, name)
        assert not list((tmp_path / "out").rglob(BUNDLE_FILE))
        raise KeyboardInterrupt

    monkeypatch.setattr("hsee_ray.deploy.export.write_bundle", killed)
    run = only(copied(averaging.run, tmp_path / "run"), 3)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Deciding(torch.nn.Module):
    """Looks at its values to decide what it computes."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h.relu() if h.mean().item() > 0 else h.sigmoid()


def deciding_units(image_shape: tuple[int, int, int], n_classes: int) -> list[tuple[str, torch.nn.Module]]:
    from tests.networks import conv_units

    return [*conv_units(image_shape, n_classes)[:4], ("decide", Deciding()), conv_units(image_shape, n_classes)[4]]


def test_a_network_that_cannot_be_traced(tmp_path: Path) -> None:
    content = {**AVERAGING, "model": {"name": f"{__name__}:deciding_units"}, "tiers": AVERAGING["tiers"][:1]}
    run = train_run(tmp_path / "run", content)
    with pytest.raises(UserError, match=r"the network cannot be exported: .*write its forward without") as raised:
        export(run, tmp_path / "out", tau=0.5)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
