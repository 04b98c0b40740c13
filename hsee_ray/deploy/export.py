"""A trained run as bundles: files that devices and a server run without the run. `hsee_ray.edge.bundle` lists them.

Each graph is traced once per cut and filled with each client's own tensors; before a bundle is written, what it names
has answered some images as the trained modules do.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from hsee_ray.backbones import published_state_dict, tensors_of
from hsee_ray.config.fleet import EXIT, ClientSpec
from hsee_ray.deploy.graphs import DeviceNetwork, Graph, chain_names, inline_tensors, tensors_in, trace
from hsee_ray.deploy.program import Program
from hsee_ray.edge.bundle import CLIENT_MODEL, Bundle, ServerPart, write_bundle
from hsee_ray.edge.gate import NEVER_SENDS, Gate
from hsee_ray.edge.protocol import MOST_DIMENSIONS
from hsee_ray.edge.stages import DeviceStage
from hsee_ray.errors import RunError, UserError
from hsee_ray.evaluation.calibration import calibration_of
from hsee_ray.features.message import decode, encode
from hsee_ray.features.path import FeaturePath
from hsee_ray.method.task import named_task
from hsee_ray.models.split import UnitChain
from hsee_ray.models.state import to_array
from hsee_ray.models.weights import write_model
from hsee_ray.rng import generator
from hsee_ray.rundir.run import MODELS_DIR, Run
from hsee_ray.storage import write_whole

Array = np.ndarray[Any, Any]

SERVER_DIR = "server"
NETWORKS_DIR = "networks"
TOLERANCE = 1e-4
"""How far a graph's values may lie from the trained module's, relative to the sample's largest or to 1."""

_CHECKED_IMAGES = 8


@dataclass(frozen=True)
class ExportedClient:
    """Export of one client; sizes in bytes."""

    spec: ClientSpec
    gate: Gate
    device_bytes: int
    server_graph_bytes: int | None
    """None without a server. The weights lie in the file that all clients share."""


@dataclass(frozen=True)
class Export:
    """A whole export; sizes in bytes."""

    clients: tuple[ExportedClient, ...]
    left_out: tuple[ClientSpec, ...]
    """Clients without a trained model, because they never had a place on the cluster, or no range for int8."""
    shared_bytes: int
    """Weights of all server parts."""
    total_bytes: int


def export(run: Run, out: Path, tau: float | None = None) -> Export:
    """Writes the bundles of a run's clients into a new or empty directory.

    tau is the calibrated one unless given. Raises UserError when there is neither, for a directory that holds
    something, and for a network that cannot be traced or a stage that no device can apply; RunError when a graph
    answers otherwise than its module. Then the directory is removed.
    """
    run.models.check()
    found = {spec.client_id: run.models.feature_path(spec.client_id) for spec in run.fleet.clients}
    paths = {client_id: path for client_id, path in found.items() if path is not None}
    trained = [spec for spec in run.fleet.clients if spec.client_id in paths]
    if not trained:
        raise UserError(f"{run.path}: has no trained clients in {MODELS_DIR}; copy the run directory again")
    gates = choose_gates(run, trained, tau)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is not empty; give a new directory")
    out.mkdir(parents=True, exist_ok=True)
    try:
        clients = _Exporter(run, out, gates, paths).write(trained)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    weights = out / SERVER_DIR / "weights.safetensors"
    return Export(
        clients=clients,
        left_out=tuple(spec for spec in run.fleet.clients if spec not in trained),
        shared_bytes=weights.stat().st_size if weights.exists() else 0,
        total_bytes=sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    )


def choose_gates(run: Run, specs: list[ClientSpec], tau: float | None) -> dict[int, tuple[Gate, str | None]]:
    """By client number: its gate, with this tau where one is given, else the target that it was calibrated to.

    Raises UserError when a client needs a tau and there is none.
    """
    if tau is not None and not 0 <= tau <= 1:
        raise UserError(f"--tau {tau:g}: give a number from 0 to 1")
    calibration = calibration_of(run)
    kind = run.config.exits.confidence if calibration is None else calibration.confidence
    gates: dict[int, tuple[Gate, str | None]] = {}
    for spec in specs:
        calibrated = None if calibration is None else calibration.gate(spec.tier)
        if not spec.has_server:
            gates[spec.client_id] = Gate(kind, NEVER_SENDS), None
        elif tau is not None:
            gates[spec.client_id] = Gate(kind, tau, 1.0 if calibrated is None else calibrated.temperature), None
        elif calibration is not None and calibrated is not None:
            gates[spec.client_id] = calibrated, calibration.target
        else:
            raise UserError(
                f"{run.path}: has no calibrated tau; run hsee calibrate --run {run.path}, or give one with --tau"
            )
    return gates


class SharedTensors:
    """Tensors of all server parts: what is equal under one name is kept once."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self._known: dict[tuple[str, str, tuple[int, ...], bytes], str] = {}

    def add(self, owner: str, tensors: Mapping[str, Array]) -> dict[str, str]:
        """Names under which one client's tensors are kept: their own, or `<owner>.<name>` where that is taken."""
        stored = {}
        for name, array in tensors.items():
            content = (name, array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
            if content not in self._known:
                free = f"{owner}.{name}" if name in self.tensors else name
                self.tensors[free] = array
                self._known[content] = free
            stored[name] = self._known[content]
        return stored


@dataclass(frozen=True)
class _Written:
    """One client's part of an export whose server graph is yet to be written, with what that graph must answer."""

    spec: ClientSpec
    stored: dict[str, str] | None
    """Names of the server part's tensors; None without a server."""
    h: Tensor
    server_logits_BK: Tensor | None


class _Exporter:
    def __init__(
        self,
        run: Run,
        out: Path,
        gates: Mapping[int, tuple[Gate, str | None]],
        paths: Mapping[int, FeaturePath],
    ) -> None:
        self.run = run
        self.out = out
        self.gates = gates
        self.paths = paths
        self.stages = {client_id: path.on_device() for client_id, path in paths.items()}
        self.data = run.summary["data"]
        self.backbone = run.models.backbone()
        self.shared = SharedTensors()
        self.device_graphs: dict[int, Graph] = {}
        self.server_graphs: dict[int, Graph] = {}
        shape = (_CHECKED_IMAGES, *self.data["image_shape"])
        self.images_NHWC = generator(run.config.seed, "export").integers(0, 256, shape, np.uint8)
        self._sha256: dict[Path, str] = {}

    def write(self, specs: list[ClientSpec]) -> tuple[ExportedClient, ...]:
        """Graphs and networks first; bundle.json of every client at the very end, when all is there and checked."""
        with torch.no_grad():
            written = [self._write_client(spec) for spec in specs]
            if self.shared.tensors:
                write_model(str(self.out / SERVER_DIR), "weights", self.shared.tensors)
            for client in written:
                if client.stored is not None:
                    self._write_server_graph(client, client.stored)
            self._check_programs(written)
        return tuple(self._write_bundle(client) for client in written)

    def _write_client(self, spec: ClientSpec) -> _Written:
        """The client's ONNX model and its network's tensors; those of its server part join the shared ones."""
        client_id, directory = spec.client_id, self.out / spec.client_file
        chain = self.run.client(client_id)
        server = self.run.server(client_id) if spec.has_server else None
        head = self.run.exit(client_id) if spec.has_exit else None
        mean, std = self.data["mean"], self.data["std"]
        network = DeviceNetwork(chain, head, mean, std, sends=spec.has_server).eval()
        if spec.cut not in self.device_graphs:
            pixels = torch.zeros(self.data["image_shape"], dtype=torch.uint8)
            outputs = ["logits", "features"] if spec.has_server else ["logits"]
            self.device_graphs[spec.cut] = trace(network, network.names, pixels, "images", outputs)
        directory.mkdir()
        content = self.device_graphs[spec.cut].with_tensors(inline_tensors(_arrays(network, network.names)))
        write_whole(directory / CLIENT_MODEL, content)

        h = chain(self.run.preprocess(self.images_NHWC))
        logits_BK = h if head is None else head(h)
        expected = [logits_BK, h] if spec.has_server else [logits_BK]
        _check(directory / CLIENT_MODEL, self.images_NHWC, expected)
        write_model(str(self.out / NETWORKS_DIR), spec.client_file, self._state_dict(chain, server, head))
        if server is None:
            return _Written(spec, None, h, None)
        if h.dim() > MOST_DIMENSIONS:
            raise UserError(
                f"features at the cut {spec.cut_name} have {h.dim() - 1} dimensions; a device sends up to 4"
            )
        self._check_stages(spec, h)
        if spec.cut not in self.server_graphs:
            self.server_graphs[spec.cut] = trace(server, chain_names(server), h[0], "features", ["logits"])
            (self.out / SERVER_DIR).mkdir(exist_ok=True)
            self.server_graphs[spec.cut].save_program(self.out / SERVER_DIR / f"{spec.cut_name}.pt2")
        stored = self.shared.add(spec.client_file, _arrays(server, chain_names(server)))
        return _Written(spec, stored, h, server(h))

    def _check_stages(self, spec: ClientSpec, h: Tensor) -> None:
        """Raises RunError when the device's stages and codec give other features than the client's."""
        path = self.paths[spec.client_id]
        features: Array = to_array(h)
        for stage in self.stages[spec.client_id]:
            features = stage.load(DeviceStage)(features)
        sent, _ = decode(path.for_inference(encode(h, torch.zeros(0))), h.device)
        _compare(Path(spec.client_file), [path.codec.decode(path.codec.encode(features))], [sent])

    def _write_server_graph(self, client: _Written, stored: Mapping[str, str]) -> None:
        directory = self.out / SERVER_DIR
        tensors = tensors_in(directory / "weights.safetensors", stored)
        path = directory / f"{client.spec.client_file}.onnx"
        write_whole(path, self.server_graphs[client.spec.cut].with_tensors(tensors))
        assert client.server_logits_BK is not None
        _check(path, to_array(client.h), [client.server_logits_BK])

    def _check_programs(self, written: list[_Written]) -> None:
        """Runs the programs as they lie on disk."""
        programs: dict[Path, Program] = {}
        for client in written:
            if client.stored is not None and client.server_logits_BK is not None:
                path = self.out / SERVER_DIR / f"{client.spec.cut_name}.pt2"
                if path not in programs:
                    programs[path] = Program(path)
                tensors = {n: torch.from_numpy(self.shared.tensors[kept]) for n, kept in client.stored.items()}
                _compare(path, [to_array(programs[path](client.h, tensors))], [client.server_logits_BK])

    def _state_dict(self, chain: UnitChain, server: UnitChain | None, head: nn.Module | None) -> dict[str, Array]:
        """Tensors of a client's whole network, under torchvision's names where it has such a network.

        Without a server they are those of its own units, and `exit.<name>`.
        """
        units: dict[str, nn.Module] = {**chain.units, **({} if server is None else server.units)}
        tensors = {f"{unit}.{name}": t for unit, module in units.items() for name, t in module.state_dict().items()}
        if self.backbone.published_prefix is not None:
            tensors = published_state_dict(self.backbone, tensors)
        if server is None and head is not None:
            tensors |= {f"{EXIT}.{name}": tensor for name, tensor in head.state_dict().items()}
        return {name: to_array(tensor) for name, tensor in tensors.items()}

    def _write_bundle(self, client: _Written) -> ExportedClient:
        spec, directory = client.spec, self.out / client.spec.client_file
        gate, calibrated_for = self.gates[spec.client_id]
        network_file = f"../{NETWORKS_DIR}/{spec.client_file}.safetensors"
        server = None
        if client.stored is not None:
            server = ServerPart(
                onnx=f"../{SERVER_DIR}/{spec.client_file}.onnx",
                program=f"../{SERVER_DIR}/{spec.cut_name}.pt2",
                weights=f"../{SERVER_DIR}/weights.safetensors",
                tensors=client.stored,
            )
        named = [CLIENT_MODEL, network_file, *([] if server is None else [server.onnx, server.program, server.weights])]
        bundle = Bundle(
            network=self.run.summary["weights_sha256"],
            run=self.run.name,
            client=spec.client_id,
            tier=spec.tier,
            image_shape=tuple(self.data["image_shape"]),
            class_names=tuple(self.data["class_names"]),
            cut=spec.cut_name,
            cut_index=spec.cut,
            gate=gate,
            calibrated_for=calibrated_for,
            feature_shape=None if server is None else tuple(client.h.shape[1:]),
            server=server,
            network_file=network_file,
            files={name: self._digest((directory / name).resolve()) for name in named},
            codec=self.paths[spec.client_id].codec,
            stages=self.stages[spec.client_id],
            task=named_task(self.run.config),
            image_bits=self.run.config.data.bits,
        )
        write_bundle(directory, bundle)
        graph_bytes = None if server is None else (directory / server.onnx).stat().st_size
        return ExportedClient(spec, gate, (directory / CLIENT_MODEL).stat().st_size, graph_bytes)

    def _digest(self, path: Path) -> str:
        if path not in self._sha256:
            with open(path, "rb") as file:
                self._sha256[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._sha256[path]


def _arrays(network: nn.Module, names: Mapping[str, str]) -> dict[str, Array]:
    own = tensors_of(network)
    return {name: to_array(own[inside]) for name, inside in names.items()}


def _check(path: Path, inputs: Array, expected: list[Tensor]) -> None:
    """Raises RunError when an ONNX model answers otherwise than the trained module."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    _compare(path, session.run(None, {session.get_inputs()[0].name: inputs}), expected)


def _compare(path: Path, found: list[Array], expected: list[Tensor]) -> None:
    for values, wanted in zip(found, expected, strict=True):
        wanted_BM = to_array(wanted).reshape(len(wanted), -1)
        distance_B = np.abs(values.reshape(wanted_BM.shape) - wanted_BM).max(axis=1)
        farthest = float((distance_B / np.abs(wanted_BM).max(axis=1).clip(min=1)).max())
        if not farthest <= TOLERANCE:
            raise RunError(f"{path.name} gives values that lie {farthest:.1g} from the trained network's: not exported")
