"""A torch.export program, read without running anything that its file says.

`torch.export.load` unpickles and evaluates parts of a file, so whoever wrote the file runs code with it. Here only its
JSON graph and the plain bytes of its constants are read. A node may call an operator of `torch.ops.aten` on tensors, or
arithmetic on sizes; whatever else a file names is refused.
"""

from __future__ import annotations

import json
import math
import operator
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hsee_ray.errors import DataError

SCHEMA_VERSION = 8
"""Of the JSON graph, as torch numbers it."""

_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_INTERNAL = {"_native_multi_head_attention", "_transformer_encoder_layer_fwd", "_to_copy", "_unsafe_view"}
"""Operators with a leading underscore that networks use; many others do not check their arguments."""
_FACTORIES = {"arange", "empty", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros"}
"""Operators that take no tensor and yet read and write nothing outside of memory."""
_CHECKS = ("torch.ops.aten._assert", "torch.ops.aten.sym_constrain_range")
"""Nodes that compute nothing: sizes are checked before a program runs."""
_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    **{
        f"_operator.{function.__name__}": function
        for function in (
            *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod),
            *(operator.neg, operator.pos, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
        )
    },
    "math.trunc": math.trunc,
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
}
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_KEYWORD = 2
_CONSTANTS = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
"""Kinds of a graph's inputs that its file holds, with the field that names them there."""


class _Value(str):
    """Name of a value among a node's arguments, which are plain otherwise, or lists of both."""


_DEVICE = _Value(" device")
"""Under this name a program's values hold the device that it computes on; no node has such a name."""


@dataclass(frozen=True)
class _Node:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[str, ...]
    several: bool
    """Whether the function returns one value for each output."""
    done: tuple[str, ...] = ()
    """Values that no later node reads."""


class Program:
    """Features (B, ...) and the tensors that it takes -> logits (B, K)."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that is damaged, or that asks for more than arithmetic on tensors."""
        try:
            with zipfile.ZipFile(path) as archive:
                self._read(_Archive(archive))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); copy the bundle again") from None
        except _NotAllowed as error:
            raise DataError(f"{path}: {error}; it is not served: export the run again") from None
        except (
            *(zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, IndexError),
            *(ArithmeticError, RecursionError, RuntimeError, NotImplementedError),
        ) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(f"{path}: is no torch.export program ({reason}); export the run again") from None

    def __call__(self, x: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits; tensors are taken by their order. Computes on the device of x."""
        given = (x, *tensors.values())
        values: dict[str, Any] = dict(zip(self._inputs, given, strict=True))
        values[_DEVICE] = x.device
        values.update({name: constant.to(x.device) for name, constant in self._constants.items()})
        for node in self._nodes:
            args = [_read(argument, values) for argument in node.args]
            kwargs = {name: _read(argument, values) for name, argument in node.kwargs.items()}
            found = node.function(*args, **kwargs)
            values.update(zip(node.outputs, found if node.several else (found,), strict=True))
            for name in node.done:
                del values[name]
        logits: torch.Tensor = values[self._output]
        return logits

    def _read(self, archive: _Archive) -> None:
        content = archive.json("models/model.json")
        version = content["schema_version"]["major"]
        if version != SCHEMA_VERSION:
            raise _NotAllowed(f"has version {version!r} of the graph, and this version reads {SCHEMA_VERSION}")
        graph, signature = content["graph_module"]["graph"], content["graph_module"]["signature"]
        self._inputs: list[str] = []
        self._constants: dict[str, torch.Tensor] = {}
        for given in signature["input_specs"]:
            kind, spec = _only(given)
            if kind == "user_input":
                self._inputs.append(_only(spec["arg"])[1]["name"])
            elif kind in _CONSTANTS:
                self._constants[spec["arg"]["name"]] = archive.tensor(spec[_CONSTANTS[kind]])
            else:
                raise _NotAllowed(f"takes a {kind}")
        outputs = [_only(given) for given in signature["output_specs"]]
        if [kind for kind, _ in outputs] != ["user_output"]:
            raise _NotAllowed("changes its own tensors, or returns several")
        self._output: str = outputs[0][1]["arg"]["as_tensor"]["name"]
        nodes = [node for node in graph["nodes"] if not node["target"].startswith(_CHECKS)]
        self._nodes = _with_last_uses([_node(node) for node in nodes], self._output)


class _NotAllowed(Exception):
    """What a file asks for beyond arithmetic on tensors."""


class _Archive:
    """JSON and plain tensors of a .pt2 file, whose entries lie in a folder of any name."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        weights = self.json("data/weights/model_weights_config.json")["config"]
        constants = self.json("data/constants/model_constants_config.json")["config"]
        self._places = {
            **{name: ("data/weights/", entry) for name, entry in weights.items()},
            **{name: ("data/constants/", entry) for name, entry in constants.items()},
        }

    def json(self, name: str) -> Any:
        return json.loads(self._bytes(name))

    def tensor(self, name: str) -> torch.Tensor:
        folder, entry = self._places[name]
        if entry["use_pickle"]:
            raise _NotAllowed(f"holds {name} as a pickle, which could run code")
        meta = entry["tensor_meta"]
        content = torch.frombuffer(bytearray(self._bytes(folder + entry["path_name"])), dtype=_DTYPES[meta["dtype"]])
        sizes, strides = ([size["as_int"] for size in meta[which]] for which in ("sizes", "strides"))
        return content.as_strided(sizes, strides, meta["storage_offset"]["as_int"])

    def _bytes(self, name: str) -> bytes:
        info = self._entries[name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise _NotAllowed(f"holds {name} compressed")
        return self._archive.read(info)


def _only(union: Mapping[str, Any]) -> tuple[str, Any]:
    ((kind, value),) = union.items()
    return kind, value


def _node(node: Mapping[str, Any]) -> _Node:
    outputs, several = _outputs(node["outputs"])
    return _Node(
        function=_function(node["target"]),
        args=tuple(_argument(given["arg"]) for given in node["inputs"] if given["kind"] != _KEYWORD),
        kwargs={given["name"]: _argument(given["arg"]) for given in node["inputs"] if given["kind"] == _KEYWORD},
        outputs=outputs,
        several=several,
    )


def _with_last_uses(nodes: list[_Node], kept: str) -> list[_Node]:
    """The nodes, each with the values that can go after it: activations take no more memory than they have to."""
    later = {kept, _DEVICE}
    found = []
    for node in reversed(nodes):
        touched = {*node.outputs, *_names([*node.args, *node.kwargs.values()])}
        found.append(replace(node, done=tuple(touched - later)))
        later |= touched
    return found[::-1]


def _function(target: str) -> Callable[..., Any]:
    """Raises _NotAllowed for anything but arithmetic on tensors and sizes."""
    if target in _ARITHMETIC:
        return _ARITHMETIC[target]
    match = _OPERATOR.fullmatch(target)
    if match is not None and (not match[1].startswith("_") or match[1] in _INTERNAL):
        found = getattr(getattr(torch.ops.aten, match[1]), match[2])
        if match[1] in _FACTORIES or any("Tensor" in str(argument.type) for argument in found._schema.arguments):
            operation: Callable[..., Any] = found
            return operation
    raise _NotAllowed(f"calls {target}, which is no operator on tensors")


def _outputs(outputs: list[Mapping[str, Any]]) -> tuple[tuple[str, ...], bool]:
    """Names of what a node gives, and whether its function returns a sequence of them."""
    kinds = [_only(output) for output in outputs]
    if len(kinds) == 1 and kinds[0][0] == "as_tensors":
        return tuple(part["name"] for part in kinds[0][1]), True
    return tuple(value.get("name") or value["as_name"] for _, value in kinds), len(kinds) != 1


def _argument(union: Mapping[str, Any]) -> Any:
    """An argument as `_read` takes it. Raises _NotAllowed for a kind that networks do not need."""
    kind, value = _only(union)
    if kind == "as_none":
        return None
    if kind == "as_device":
        return _DEVICE
    if kind == "as_optional_tensor":
        return _argument(value)
    if kind in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
        name = value.get("name") or value.get("as_name")
        return _only(value)[1] if name is None else _Value(name)
    if kind in ("as_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [_argument({kind.removesuffix("s"): part}) for part in value]
    if kind == "as_optional_tensors":
        return [_argument(part) for part in value]
    if kind in _PLAIN:
        return _PLAIN[kind](value)
    raise _NotAllowed(f"has an argument of kind {kind}")


_PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "as_int": int,
    "as_ints": lambda values: [int(value) for value in values],
    "as_float": float,
    "as_floats": lambda values: [float(value) for value in values],
    "as_bool": bool,
    "as_bools": lambda values: [bool(value) for value in values],
    "as_string": str,
    "as_scalar_type": _DTYPES.__getitem__,
    "as_memory_format": _MEMORY_FORMATS.__getitem__,
    "as_layout": lambda _: torch.strided,
}


def _read(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, _Value):
        return values[argument]
    return [_read(part, values) for part in argument] if isinstance(argument, list) else argument


def _names(argument: Any) -> set[str]:
    if isinstance(argument, list):
        return {name for part in argument for name in _names(part)}
    return {argument} if isinstance(argument, _Value) else set()
