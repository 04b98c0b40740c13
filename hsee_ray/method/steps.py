"""The training step of Hetero-SplitEE on both sides of the cut: nothing flows back over it.

The exit at the cut separates the backward passes (Sepehri et al. 2024, arXiv:2303.02384), so a client never waits
for a server. Legend: B batch, K classes; h is the features at the cut, x the normalised images, y the labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from hsee_ray.config.schema import Config
from hsee_ray.errors import NonFiniteError
from hsee_ray.models.torch_device import mixed_precision

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scalar loss of float32 logits (B, K) and labels (B,)."""


class NonFiniteStep(ArithmeticError):
    """The loss of a batch, or its features, are NaN or infinite; no parameter has been changed."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"{what} is {value}")


def client_step(
    network: nn.Module,
    exit_head: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    x_BCHW: torch.Tensor,
    y_B: torch.Tensor,
    autocast: str | None = None,
    objective: Loss = functional.cross_entropy,
    clip_norm: float | None = None,
) -> tuple[torch.Tensor, float]:
    """One step on f^c and f^o: loss = CE(f^o(f^c(x)), y), or another objective.

    Returns (h, loss in nats), h detached, from before the step.

    Without an exit head (cut L) the network's own output is the logits. h is float32, also from a forward pass in
    the lower precision `autocast`; so are the logits that the loss is of. Raises NonFiniteStep.
    """
    with mixed_precision(autocast, x_BCHW.device):
        h = network(x_BCHW)
        logits_BK = h if exit_head is None else exit_head(h)
    loss = objective(logits_BK.float(), y_B)
    h = h.float()
    # One sum over h tells: it is finite if all of h is.
    _check_finite("the sum of the features", h.detach().sum().item())
    return h.detach(), _descend(optimizer, loss, "the exit loss", clip_norm)


def server_step(
    network: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    h: torch.Tensor,
    y_B: torch.Tensor,
    autocast: str | None = None,
    objective: Loss = functional.cross_entropy,
    clip_norm: float | None = None,
) -> float:
    """One step on f^s: loss = CE(f^s(h), y) in nats, or another objective, returned. Its gradient stops at h.

    Raises NonFiniteStep.
    """
    with mixed_precision(autocast, h.device):
        logits_BK = network(h)
    return _descend(optimizer, objective(logits_BK.float(), y_B), "the server loss", clip_norm)


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, what: str, clip_norm: float | None) -> float:
    """One step against the gradient, which is first brought to the norm `clip_norm` where it is longer.

    The norm is that of the side's whole gradient (Pascanu et al. 2013, arXiv:1211.5063).
    """
    value = loss.item()
    _check_finite(what, value)
    # Gradients are dropped, not zeroed: a unit that the batch did not pass gets no update, not even weight decay.
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    # Not `get_total_norm`, which takes another way on the meta device, where steps are counted.
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    _check_finite(f"the gradient norm of {what}", norm.item())
    if clip_norm is not None:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step()
    return value


def _check_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise NonFiniteStep(what, value)


@contextmanager
def undone_if_nonfinite(network: nn.Module, exit_head: nn.Module | None = None) -> Iterator[None]:
    """Puts buffers back when a step in the block fails: its forward pass has updated batch norm."""
    buffers = [*network.buffers(), *(() if exit_head is None else exit_head.buffers())]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    except NonFiniteStep:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        raise


def refuse_nonfinite(config: Config, who: str, round_number: int, step: int, error: NonFiniteStep) -> None:
    """Raises NonFiniteError that names client, round, batch and loss, unless such batches are to be skipped."""
    if config.failures.on_nonfinite == "stop":
        raise NonFiniteError(
            f"{error} for {who} in round {round_number}, batch {step + 1}; lower training.optimizer.lr, or leave such "
            "batches out (failures.on_nonfinite=skip_batch)"
        ) from error
