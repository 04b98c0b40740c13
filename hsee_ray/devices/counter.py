"""A mode of torch that counts what operators do: their arithmetic, the memory that they touch, and what is alive."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten
_FLOPS = {
    **flop_registry,
    # Torch's own counter leaves out the CPU's fused attention (2.14).
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


@dataclass(frozen=True)
class OpCounts:
    """Work of a device, in the terms of the time model (`devices.seconds`)."""

    multiply_adds: int
    """Of convolutions and matrix products, as torch's own counter sees them; of nothing else."""
    traffic_bytes: int
    """Read and written by operators, each input and output once."""
    operators: int
    """Calls of torch's operators, without those that only look at memory in another way."""

    def __add__(self, other: OpCounts) -> OpCounts:
        return OpCounts(
            self.multiply_adds + other.multiply_adds,
            self.traffic_bytes + other.traffic_bytes,
            self.operators + other.operators,
        )


@dataclass
class _Tally:
    flops: int = 0
    traffic_bytes: int = 0
    operators: int = 0
    kept_bytes: int = 0


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators in its block, by parts that the caller names; on the meta device nothing is computed.

    There `item()` gives 0, so that a step that looks at its loss runs to its end.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        """`held` is alive before the block, and belongs to nobody in it: parameters, what the optimiser knows, inputs.

        What is held is not counted as kept for the backward pass.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._part: object = None
        self._tallies: defaultdict[object, _Tally] = defaultdict(_Tally)
        self._alive: dict[int, weakref.finalize[Any, Any]] = {}
        self._alive_bytes = 0
        for tensor in held:
            self._watch(tensor)
        self._not_kept = set(self._alive)
        self.peak_bytes = self._alive_bytes
        """Most that was alive at once, with what is held; storages count once."""
        self._saving = saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def enter(self, part: object) -> None:
        """Attributes the operations that follow to this part."""
        self._part = part

    def work(self, part: object = None) -> OpCounts:
        """Of one part; without any, of what was before the first."""
        tally = self._tallies[part]
        # The registry counts a multiplication and an addition as two operations.
        return OpCounts(tally.flops // 2, tally.traffic_bytes, tally.operators)

    def kept_bytes(self, part: object = None) -> int:
        """Bytes that a part's forward pass keeps for its backward pass; a storage counts where it is first kept."""
        return self._tallies[part].kept_bytes

    def __enter__(self) -> Counter:
        self._saving.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._saving.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inputs = _tensors((args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and inputs[0].is_meta:
            result: Any = 0.0
        else:
            result = func(*args, **(kwargs or {}))
        outputs = _tensors(result)
        known = {_identity(tensor) for tensor in inputs}
        if outputs and not func._schema.is_mutable and all(_identity(tensor) in known for tensor in outputs):
            return result  # a view
        tally = self._tallies[self._part]
        tally.operators += 1
        tally.traffic_bytes += sum(map(_touched_bytes, inputs)) + sum(map(_touched_bytes, outputs))
        flops: Callable[..., int] | None = _FLOPS.get(func._overloadpacket)
        if flops is not None:
            tally.flops += flops(*args, **(kwargs or {}), out_val=result)
        for tensor in outputs:
            self._watch(tensor)
        self.peak_bytes = max(self.peak_bytes, self._alive_bytes + _hidden_bytes(func, args, result))
        return result

    def _watch(self, tensor: torch.Tensor) -> None:
        """Knows of the tensor's storage until nobody has it any more."""
        storage, identity = tensor.untyped_storage(), _identity(tensor)
        if identity in self._alive:
            return
        size = storage.nbytes()
        self._alive_bytes += size
        end = weakref.finalize(storage, self._freed, identity, size)
        end.atexit = False
        self._alive[identity] = end

    def _freed(self, identity: int, size: int) -> None:
        del self._alive[identity]
        self._alive_bytes -= size
        self._not_kept.discard(identity)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        identity = _identity(tensor)
        if identity not in self._not_kept:
            self._watch(tensor)
            self._not_kept.add(identity)
            self._tallies[self._part].kept_bytes += tensor.untyped_storage().nbytes()
        return tensor


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _identity(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _touched_bytes(tensor: torch.Tensor) -> int:
    """An expanded tensor is in memory once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _hidden_bytes(func: Any, args: tuple[Any, ...], result: Any) -> int:
    """Workspace of a CPU kernel beside its results, as its allocations show (torch 2.14).

    A convolution copies its weights into oneDNN's layout, and the gradient of its weights out of it. The backward pass
    of a batch norm allocates the gradient of its input twice.
    """
    held: torch.Tensor | None = None
    if func is torch.ops.aten.convolution.default:
        held = args[1]
    elif func is torch.ops.aten.convolution_backward.default:
        held = args[2]
    elif func is torch.ops.aten.native_batch_norm_backward.default:
        held = result[0]
    return 0 if held is None else _touched_bytes(held)
