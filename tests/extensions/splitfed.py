"""SplitFed (Thapa et al. 2022, arXiv:2004.12088): the server's gradient comes back over the cut, batch by batch.

    training: {strategy: "tests.extensions.splitfed:SplitFed"}

Legend: B batch; h is the features at the cut, y the labels.
"""

from __future__ import annotations

from typing import Any

from torch.nn.functional import cross_entropy

from hsee_ray.features.message import FeatureBatch, decode, encode
from hsee_ray.method.client import Client
from hsee_ray.method.legs import Leg, Work
from hsee_ray.method.reports import TrainReport
from hsee_ray.method.server import Server
from hsee_ray.method.strategies import Averaging, Sequential

Packet = tuple[FeatureBatch, ...]


def forward(client: Client, work: Work, payload: None) -> tuple[Packet, TrainReport]:
    """Features of one batch; their graph waits for the gradient."""
    if not client.spec.has_server:
        return client.train(work.round_number, work.first, work.last)
    packet: list[FeatureBatch] = []
    samples = 0
    for step, x_BCHW, y_B in client.training_batches(work.round_number, work.first, work.last):
        h = client.model.network(x_BCHW)
        client.pending[step] = h, y_B
        packet.append(encode(h.detach(), y_B, step))
        samples += len(y_B)
    return tuple(packet), TrainReport(samples, (), sum(message.sent_bytes for message in packet))


def server_step(server: Server, work: Work, packet: Packet) -> tuple[Packet, TrainReport]:
    """One step of the server for each batch; sends dL/dh back."""
    network, optimizer = server.part_of(work.client_id, work.round_number), server.model.optimizer
    gradients: list[FeatureBatch] = []
    losses: list[float] = []
    for batch in packet:
        h, y_B = decode(batch, server.model.device)
        h.requires_grad_()
        loss = cross_entropy(network(h), y_B)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gradients.append(encode(h.grad, y_B[:0], batch.step))
    return tuple(gradients), TrainReport(sum(len(batch.labels_B) for batch in packet), tuple(losses))


def backward(client: Client, work: Work, gradients: Packet) -> tuple[None, TrainReport]:
    """The client's step: its units learn from the server's gradient, its exit from features that it does not change."""
    model = client.model
    losses: list[float] = []
    for message in gradients:
        h, y_B = client.pending.pop(message.step)
        gradient, _ = decode(message, model.device)
        loss = cross_entropy(model.exit_head(h.detach()), y_B)
        model.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        h.backward(gradient)
        model.optimizer.step()
        losses.append(loss.item())
    return None, TrainReport(0, tuple(losses))


ROUND_TRIP: Any = (Leg("client", forward), Leg("server", server_step), Leg("client", backward))


class SplitFed(Averaging):
    """SplitFedV1: a server for each client, copies averaged."""

    trip = ROUND_TRIP


class SplitFedShared(Sequential):
    """SplitFedV2: one server for all."""

    trip = ROUND_TRIP
