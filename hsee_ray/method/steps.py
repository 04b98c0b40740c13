"""The training steps on both sides of the cut. In Hetero-SplitEE nothing flows back over it.

The exit at the cut separates the backward passes (Sepehri et al. 2024, arXiv:2303.02384), so a client never waits
for a server; with `training.feedback: gradients` it does. Legend: B batch, K classes; h is the features at the cut, x
the normalised images, y the labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import permutations
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hsee_ray.config.schema import Config
from hsee_ray.errors import NonFiniteError
from hsee_ray.models.split import UnitChain
from hsee_ray.models.torch_device import mixed_precision

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scalar loss of float32 logits (B, K) and labels (B,)."""
ExitLoss = Callable[[torch.Tensor], torch.Tensor]
"""Scalar loss of an exit's float32 logits (B, K)."""


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
    exit_weight: float = 1.0,
    look_ahead: nn.Module | None = None,
    soft_labels: ExitLoss | None = None,
    auxiliary: Loss = functional.cross_entropy,
    inner_exits: Mapping[int, nn.Module] | None = None,
    distillation: float = 0.0,
) -> tuple[torch.Tensor, float]:
    """One step on f^c and f^o: loss = CE(f^o(f^c(x)), y), or another objective.

    Returns (h, loss in nats), h detached, from before the step. `exit_weight` is the share of the exit's gradient that
    reaches f^c; the exit itself takes all of it. `look_ahead`, logits of h, adds its loss `auxiliary` to what f^c
    minimises (Belilovsky et al. 2020, arXiv:1901.08164), and `soft_labels` another one of the exit's logits.
    `inner_exits`, by their cuts in f^c, add their losses, and all exits teach each other (DepthFL): with p_i the
    softmax of exit i of n, distillation / (n - 1) sum_i sum_{j != i} KL(p_j || p_i), where p_j gets no gradient.

    Without an exit head (cut L) the network's own output is the logits. h is float32, also from a forward pass in
    the lower precision `autocast`; so are the logits that the losses are of. Raises NonFiniteStep.
    """
    with mixed_precision(autocast, x_BCHW.device):
        if inner_exits:
            assert isinstance(network, UnitChain), "cuts are counted in units"
            *taps, h = network.taps(x_BCHW, tuple(inner_exits))
        else:
            taps, h = [], network(x_BCHW)
        inner = [head(tap).float() for head, tap in zip((inner_exits or {}).values(), taps, strict=True)]
        logits_BK = h if exit_head is None else exit_head(scaled_gradient(h, exit_weight))
        ahead_BK = None if look_ahead is None else look_ahead(h)
    losses = [_exit_loss(logits_BK.float(), y_B, objective, soft_labels)]
    losses += [auxiliary(each, y_B) for each in inner]
    if inner and distillation:
        losses.append(distillation * _mutual_distillation([*inner, logits_BK.float()]))
    if ahead_BK is not None:
        losses.append(auxiliary(ahead_BK.float(), y_B))
    h = h.float()
    # One sum over h tells: it is finite if all of h is.
    _check_finite("the sum of the features", h.detach().sum().item())
    return h.detach(), _descend(optimizer, losses, "the exit loss", clip_norm)


def forward_step(network: nn.Module, x_BCHW: torch.Tensor, autocast: str | None = None) -> torch.Tensor:
    """h = f^c(x) in float32, with its graph: the first half of a step whose gradient comes from the server.

    Raises NonFiniteStep.
    """
    with mixed_precision(autocast, x_BCHW.device):
        h: torch.Tensor = network(x_BCHW)
    h = h.float()
    _check_finite("the sum of the features", h.detach().sum().item())
    return h


def returned_step(
    h: torch.Tensor,
    gradient: torch.Tensor,
    exit_head: nn.Module,
    optimizer: torch.optim.Optimizer,
    y_B: torch.Tensor,
    autocast: str | None = None,
    objective: Loss = functional.cross_entropy,
    clip_norm: float | None = None,
    exit_weight: float = 1.0,
) -> float:
    """A client's step with the server's gradient dL/dh, of h with its graph (Thapa et al. 2022, arXiv:2004.12088).

    f^c takes that gradient, and `exit_weight` times the exit's. Returns the exit's loss in nats. Raises NonFiniteStep.
    """
    with mixed_precision(autocast, h.device):
        logits_BK = exit_head(scaled_gradient(h, exit_weight))
    loss = _exit_loss(logits_BK.float(), y_B, objective, None)
    return _descend(optimizer, [loss], "the exit loss", clip_norm, (h, gradient))


def server_step(
    network: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    h: torch.Tensor,
    y_B: torch.Tensor,
    autocast: str | None = None,
    objective: Loss = functional.cross_entropy,
    clip_norm: float | None = None,
) -> tuple[torch.Tensor, float]:
    """One step on f^s: loss = CE(f^s(h), y), or another objective. Returns (logits (B, K), loss in nats).

    Its gradient stops at h, and is in `h.grad` where h requires one. The logits are detached, from before the step.
    Raises NonFiniteStep.
    """
    with mixed_precision(autocast, h.device):
        logits_BK = network(h)
    logits_BK = logits_BK.float()
    return logits_BK.detach(), _descend(optimizer, [objective(logits_BK, y_B)], "the server loss", clip_norm)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, h: torch.Tensor, factor: float) -> torch.Tensor:
        context.factor = factor
        return h.view_as(h)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.factor * gradient, None


def scaled_gradient(h: torch.Tensor, factor: float) -> torch.Tensor:
    """h, through which `factor` of a gradient flows back."""
    if factor == 1:
        return h
    return _ScaledGradient.apply(h, factor) if factor else h.detach()


def _exit_loss(
    logits_BK: torch.Tensor, y_B: torch.Tensor, objective: Loss, soft_labels: ExitLoss | None
) -> torch.Tensor:
    loss = objective(logits_BK, y_B)
    return loss if soft_labels is None else loss + soft_labels(logits_BK)


def _mutual_distillation(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """1 / (n - 1) sum_i sum_{j != i} KL(p_j || p_i) in nats, of the softmaxes of n logits (B, K); a mean over B."""
    logs = [each.log_softmax(1) for each in logits]
    pairs = [functional.kl_div(i, j.detach(), reduction="batchmean", log_target=True) for i, j in permutations(logs, 2)]
    return torch.stack(pairs).sum() / (len(logs) - 1)


def _descend(
    optimizer: torch.optim.Optimizer,
    losses: list[torch.Tensor],
    what: str,
    clip_norm: float | None,
    returned: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> float:
    """One step against the gradient of all losses, which is first brought to the norm `clip_norm` where it is longer.

    `returned` is a tensor with a graph, and the gradient that flows into it beside. The norm is that of the side's
    whole gradient (Pascanu et al. 2013, arXiv:1211.5063). Returns the first loss.
    """
    values = [loss.item() for loss in losses]
    for value in values:
        _check_finite(what, value)
    # Gradients are dropped, not zeroed: a unit that the batch did not pass gets no update, not even weight decay.
    optimizer.zero_grad(set_to_none=True)
    roots: list[torch.Tensor] = [*losses, *(returned or ())[:1]]
    torch.autograd.backward(roots, [None] * len(losses) + [gradient for gradient in (returned or ())[1:]])
    gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    # Not `get_total_norm`, which takes another way on the meta device, where steps are counted.
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    _check_finite(f"the gradient norm of {what}", norm.item())
    if clip_norm is not None:
        torch._foreach_mul_(gradients, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step()
    return values[0]


def _check_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise NonFiniteStep(what, value)


class Buffers:
    """Copies of modules' buffers: a forward pass updates batch norm, and a step that fails must not have."""

    def __init__(self, *modules: nn.Module | None) -> None:
        self.buffers = [buffer for module in modules if module is not None for buffer in module.buffers()]
        self.before = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def put_back(self) -> None:
        for buffer, value in zip(self.buffers, self.before, strict=True):
            buffer.copy_(value)


@contextmanager
def undone_if_nonfinite(*modules: nn.Module | None) -> Iterator[None]:
    """Puts the modules' buffers back when a step in the block fails."""
    buffers = Buffers(*modules)
    try:
        yield
    except NonFiniteStep:
        buffers.put_back()
        raise


def refuse_nonfinite(config: Config, who: str, round_number: int, step: int, error: NonFiniteStep) -> None:
    """Raises NonFiniteError that names client, round, batch and loss, unless such batches are to be skipped."""
    if config.failures.on_nonfinite == "stop":
        raise NonFiniteError(
            f"{error} for {who} in round {round_number}, batch {step + 1}; lower training.optimizer.lr, or leave such "
            "batches out (failures.on_nonfinite=skip_batch)"
        ) from error
