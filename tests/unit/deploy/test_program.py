"""torch.export programs as a server reads them: the same values, and nothing that a file says is run."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hsee_ray.deploy.graphs import chain_names, trace
from hsee_ray.deploy.program import Program
from hsee_ray.errors import DataError
from hsee_ray.models.split import UnitChain


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.register_buffer("offset", torch.linspace(0, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        encoded: Tensor = self.encoder(mixed + self.offset)
        return encoded


class Sizes(nn.Module):
    """Sizes that depend on the batch, pieces, factories, constants, dtypes and writes in place."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        first, second = x.chunk(2, dim=2)
        places = torch.arange(tokens, device=x.device).to(x.dtype)
        y = torch.cat([first * torch.tensor([0.5, 2.0, 1.0, -1.0]), second], dim=2) + places[:, None]
        y = y.clamp(min=-3).add_(1)
        top, _ = y.max(dim=1)
        halved = nn.functional.pad(y, (0, 1)).view(batch * tokens, -1).half().float()
        return torch.nn.functional.gelu(halved.reshape(batch, tokens * 9), approximate="tanh") + top.mean(1, True)


def written(network: UnitChain, sample: Tensor, path: Path) -> dict[str, Tensor]:
    """Writes a network's program; returns the tensors that it takes."""
    graph = trace(network.eval(), chain_names(network), sample, "features", ["logits"])
    graph.save_program(path)
    own = network.state_dict()
    return {name: own[inside] for name, inside in chain_names(network).items()}


@pytest.mark.parametrize("batch", [1, 5])
def test_values_are_those_of_the_network(tmp_path: Path, batch: int) -> None:
    units = {"conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "mix": Attention(), "sizes": Sizes()}
    network = UnitChain(units)
    tensors = written(network, torch.zeros(3, 6, 6), tmp_path / "x.pt2")
    x = torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = network.eval()(x)
        found = Program(tmp_path / "x.pt2")(x, tensors)
        theirs = torch.export.load(tmp_path / "x.pt2").module()(x, tensors)
    assert torch.equal(found, theirs)
    # Sizes rounds to half precision, where one float32 rounding error may become a whole half step.
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=5e-3)


# Foreign files


class _Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "code has run")


def changed(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Writes a .pt2 file again with other entries, by their names without the folder."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"x/{name}", content)


def pickled_constant(entries: dict[str, bytes], proof: Path, file: str = "tensor_0") -> None:
    where = "data/constants/model_constants_config.json"
    config = json.loads(entries[where])
    (entry,) = config["config"].values()
    entry.update(use_pickle=True, path_name=file)
    stream = io.BytesIO()
    torch.save(_Payload(proof), stream)
    entries[where] = json.dumps(config).encode()
    entries[f"data/constants/{file}"] = stream.getvalue() if file == "tensor_0" else pickle.dumps(_Payload(proof))


def opaque_constant(entries: dict[str, bytes], proof: Path) -> None:
    pickled_constant(entries, proof, "opaque_obj_0")


def sample_input(entries: dict[str, bytes], proof: Path) -> None:
    stream = io.BytesIO()
    torch.save(_Payload(proof), stream)
    entries["data/sample_inputs/model.pt"] = stream.getvalue()


def model(entries: dict[str, bytes]) -> Any:
    return json.loads(entries["models/model.json"])


def size_expression(entries: dict[str, bytes], proof: Path) -> None:
    content = model(entries)
    code = f"__import__('pathlib').Path({str(proof)!r}).write_text('code has run')"
    for value in content["graph_module"]["graph"]["tensor_values"].values():
        value["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}
    entries["models/model.json"] = json.dumps(content).encode()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "x.pt2"
    written(UnitChain({"sizes": Sizes()}), torch.zeros(6, 8), path)
    return path


@pytest.fixture
def program(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path))


@pytest.mark.parametrize("foreign", [pickled_constant, opaque_constant, sample_input, size_expression])
def test_no_code_of_a_file_is_run(program: Path, tmp_path: Path, foreign: Callable[..., None]) -> None:
    proof = tmp_path / "proof"
    changed(program, lambda entries: foreign(entries, proof))
    try:  # Neither a sample input nor an expression is read.
        Program(program)
    except DataError as error:
        assert foreign in (pickled_constant, opaque_constant) and "as a pickle" in str(error)
    assert not proof.exists()
    with contextlib.suppress(Exception):  # what torch makes of it does not matter
        torch.export.load(program)
    if not proof.exists():
        pytest.skip("this release of torch does not run it either: the test cannot tell")


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten._print.default",
        "torch.ops.prim.Print.default",
        "torch.ops.higher_order.cond",
        "torch.load",
        "torch.hub.load",
        "math.__loader__.load_module",
        "_operator.methodcaller",
        "torch.ops.aten.nothing.default",
        "torch.ops.aten.add.nothing",
    ],
)
def test_what_is_no_operator_on_tensors_is_refused(program: Path, target: str) -> None:
    def change(entries: dict[str, bytes]) -> None:
        content = model(entries)
        content["graph_module"]["graph"]["nodes"][0]["target"] = target
        entries["models/model.json"] = json.dumps(content).encode()

    changed(program, change)
    with pytest.raises(DataError) as caught:
        Program(program)
    assert "\n" not in str(caught.value) and "export the run again" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"[" * 5000, b"{}", b"null", b'{"schema_version": {"major": 9}}'])
def test_a_damaged_file(program: Path, content: bytes) -> None:
    changed(program, lambda entries: entries.update({"models/model.json": content}))
    with pytest.raises(DataError, match="export the run again"):
        Program(program)
    program.write_bytes(content)
    with pytest.raises(DataError, match="export the run again"):
        Program(program)
