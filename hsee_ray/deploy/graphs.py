"""Parts of a network as graphs that run without their Python code: ONNX models and torch.export programs.

A part is traced with its tensors as inputs, so no tool can fold one weight into another: clients share the graph of
their cut, and parameters of equal content. Shapes: N or B samples, H, W, C of an image, K classes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hsee_ray.backbones import tensors_of
from hsee_ray.config.fleet import EXIT
from hsee_ray.errors import UserError
from hsee_ray.models.split import UnitChain

Array = np.ndarray[Any, Any]

_TRACED_BATCH = 2
"""A batch of 1 would be taken for a constant."""
_COUNTER = "num_batches_tracked"
"""Batch norm's counter, which only training reads."""


class DeviceNetwork(nn.Module):
    """A client's network from the pixels of an image: uint8 (N, H, W, C) -> logits (N, K), features (N, ...).

    Logits are the exit's, or the network's own at cut L; there are features only where they may be sent. Normalises as
    `hsee_ray.data.batches.normalise` does.
    """

    scale_C: Tensor
    shift_C: Tensor

    def __init__(
        self,
        chain: UnitChain,
        exit_head: nn.Module | None,
        mean_C: Sequence[float],
        std_C: Sequence[float],
        sends: bool,
    ) -> None:
        super().__init__()
        self.chain = chain
        self.exit_head = exit_head
        self.sends = sends
        mean, std = torch.tensor(mean_C, dtype=torch.float64), torch.tensor(std_C, dtype=torch.float64)
        self.register_buffer("scale_C", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift_C", (-mean / std).float(), persistent=False)

    def forward(self, images_NHWC: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        values_NHWC = images_NHWC.to(torch.float32) * self.scale_C + self.shift_C
        h: Tensor = self.chain(values_NHWC.permute(0, 3, 1, 2))
        logits_NK: Tensor = h if self.exit_head is None else self.exit_head(h)
        return (logits_NK, h) if self.sends else logits_NK

    @property
    def names(self) -> dict[str, str]:
        """As `chain_names`, with the exit head's."""
        head = {} if self.exit_head is None else {f"{EXIT}.{n}": f"exit_head.{n}" for n in tensors_of(self.exit_head)}
        return {**chain_names(self.chain, "chain."), **head}


def chain_names(chain: UnitChain, inside: str = "") -> dict[str, str]:
    """Names of a chain's tensors by ours, `<unit>.<name in the unit>`; without what only training reads."""
    return {
        f"{unit_name}.{name}": f"{inside}chain.{index}.{name}"
        for index, (unit_name, unit) in enumerate(chain.units.items())
        for name in tensors_of(unit)
        if name.rpartition(".")[2] != _COUNTER
    }


class _Stateless(nn.Module):
    """Calls a network with tensors that are given, by our names."""

    def __init__(self, network: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        self._network = (network,)  # torch finds no module in a tuple, and so none of its tensors
        places: dict[int, list[str]] = {}
        for prefix, module in network.named_modules():
            for named in (module.named_parameters, module.named_buffers):
                for place, tensor in named(prefix, recurse=False, remove_duplicate=False):
                    places.setdefault(id(tensor), []).append(place)
        own = tensors_of(network)
        self._places = {name: places[id(own[inside])] for name, inside in names.items()}
        """Of a tensor that several modules have, by our name: each of them is given it."""

    def forward(self, x: Tensor, tensors: dict[str, Tensor]) -> Any:
        inside = {place: tensor for name, tensor in tensors.items() for place in self._places[name]}
        return torch.func.functional_call(self._network[0], inside, (x,), tie_weights=False)


@dataclass(frozen=True)
class Graph:
    """One part, traced: (x, tensors by name) -> outputs. It holds no weights, and the batch may have any size."""

    program: ExportedProgram
    model: onnx.ModelProto
    """Its tensors are inputs behind the first; `with_tensors` fills them in."""
    names: tuple[str, ...]
    """Of the tensors, in the program's order."""

    def save_program(self, path: Path) -> None:
        """Writes the torch.export program."""
        torch.export.save(self.program, path)

    def with_tensors(self, tensors: Iterable[TensorProto]) -> bytes:
        """The ONNX model with these tensors as its own."""
        filled = onnx.ModelProto()
        filled.CopyFrom(self.model)
        used = {name for node in filled.graph.node for name in node.input}
        filled.graph.initializer.extend(tensor for tensor in tensors if tensor.name in used)
        first = filled.graph.input[0]
        del filled.graph.input[:]
        filled.graph.input.append(first)
        content: bytes = filled.SerializeToString(deterministic=True)
        return content


def trace(
    network: nn.Module, names: Mapping[str, str], sample: Tensor, input_name: str, output_names: Sequence[str]
) -> Graph:
    """Graph of a network in evaluation mode for inputs like one sample (without the batch).

    `names` are those of its tensors by ours. Raises UserError for a network that cannot be traced.
    """
    for module in network.modules():
        if getattr(module, "inplace", False):
            vars(module)["inplace"] = (
                False  # the same values; torch would trace each through its definition, many times slower
            )
    own = tensors_of(network)
    tensors = {name: own[inside].detach() for name, inside in names.items()}
    batch = torch.zeros((_TRACED_BATCH, *sample.shape), dtype=sample.dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                _Stateless(network, names).eval(),
                (batch, tensors),
                dynamic_shapes=({0: Dim("batch", min=1)}, dict.fromkeys(tensors)),
                strict=False,
            )
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
            exported = torch.onnx.export(
                program, input_names=[input_name, *tensors], output_names=list(output_names), verbose=False
            )
        except Exception as error:  # torch's own kinds are many, and have no common base
            reason = (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the network cannot be exported: {reason}; write its forward without decisions that depend on data"
            ) from error
    assert exported is not None
    program.example_inputs = None  # they hold the tensors
    return Graph(program, _tidy(exported.model_proto), tuple(tensors))


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes, and with a batch that is called so."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    del graph.value_info[:]
    for value in (graph.input[0], *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def inline_tensors(tensors: Mapping[str, Array]) -> list[TensorProto]:
    """Tensors for `Graph.with_tensors` that lie in the model's file."""
    return [numpy_helper.from_array(array, name) for name, array in tensors.items()]


def tensors_in(weights: Path, stored: Mapping[str, str]) -> list[TensorProto]:
    """Tensors for `Graph.with_tensors` that stay in a safetensors file beside the model.

    `stored` are their names there, by the names in the graph. Such a file is eight bytes of length, a JSON header of
    that length, and the tensors' bytes.
    """
    with open(weights, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found = []
    for name, stored_name in stored.items():
        entry = header[stored_name]
        begin, end = entry["data_offsets"]
        tensor = TensorProto(name=name, data_type=_ONNX_TYPES[entry["dtype"]], dims=entry["shape"])
        tensor.data_location = TensorProto.EXTERNAL
        places = {"location": weights.name, "offset": 8 + length + begin, "length": end - begin}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))
        found.append(tensor)
    return found


_ONNX_TYPES = {
    "F64": TensorProto.DOUBLE,
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "I64": TensorProto.INT64,
    "I32": TensorProto.INT32,
    "I16": TensorProto.INT16,
    "I8": TensorProto.INT8,
    "U8": TensorProto.UINT8,
    "BOOL": TensorProto.BOOL,
}
"""ONNX's types by those of safetensors."""
