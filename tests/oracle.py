"""Every strategy a second time, in plain PyTorch, from docs/method.md alone.

Nothing here knows how hsee_ray splits, trains, aggregates or evaluates a network; it takes only what is not the
method: the data and who has which part of it, the cuts, the whole network at its start, and the keys of the random
draws. So where both implementations agree, both do what the method says.

Shapes: B samples of a batch, H height, W width, C channels, K classes. Clients are meant by their numbers.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2 as transforms

from hsee_ray.backbones import build_backbone
from hsee_ray.config.schema import OptimizerConfig
from hsee_ray.data import open_images
from hsee_ray.data.batches import normalise
from hsee_ray.method.setup import Setup
from hsee_ray.rng import generator, torch_seed

EXIT = "exit"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Only these buffers may be kept apart; last parts of their names."""

Units = dict[str, nn.Module]
Contents = dict[tuple[str, ...], Tensor]
"""What aggregation sees of a unit: ("parameter" | "buffer", name) or ("state", name of the parameter, key)."""


class PoolExit(nn.Module):
    """Global average pooling and a linear layer, or two with a ReLU between."""

    def __init__(self, channels: int, n_classes: int, hidden: int | None = None) -> None:
        super().__init__()
        if hidden:
            self.hidden = nn.Linear(channels, hidden)
        self.fc = nn.Linear(hidden or channels, n_classes)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        v_BC = h_BCHW.mean((2, 3))
        return self.fc(self.hidden(v_BC).relu() if hasattr(self, "hidden") else v_BC)


class ConvExit(nn.Module):
    """A 3x3 convolution with stride 2 to twice the channels, batch norm and ReLU before the pooling."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.pool = PoolExit(2 * channels, n_classes)

    def forward(self, h_BCHW: Tensor) -> Tensor:
        return self.pool(self.norm(self.conv(h_BCHW)).relu())


def exit_head(kind: str, channels: int, n_classes: int) -> nn.Module:
    if kind == "conv":
        return ConvExit(channels, n_classes)
    return PoolExit(channels, n_classes, 2 * channels if kind == "mlp" else None)


class Model:
    """The units of one side of the cut, each a copy of its own, and the optimiser of them all."""

    def __init__(self, units: Units, config: OptimizerConfig, label_smoothing: float) -> None:
        self.clip_norm, self.label_smoothing = config.clip_norm, label_smoothing
        self.units = {name: copy.deepcopy(unit) for name, unit in units.items()}
        self.optimizer = _optimizer([p for unit in self.units.values() for p in unit.parameters()], config)
        self.learnt_from: dict[str, set[int]] = {name: set() for name in units}
        """By unit: the clients from whose data it has learnt since the last aggregation."""
        self.behind: dict[str, tuple[str, str]] = {}
        """By unit that has missed an aggregation: the group in which it missed it, and the unit there."""

    def forward(self, names: Iterable[str], x: Tensor, train: bool) -> Tensor:
        for name in names:
            x = self.units[name].train(train)(x)
        return x

    def loss(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """In nats."""
        onehot_BK = functional.one_hot(labels_B, logits_BK.shape[1])
        target_BK = (1 - self.label_smoothing) * onehot_BK + self.label_smoothing / logits_BK.shape[1]
        return -(target_BK * logits_BK.log_softmax(1)).sum(1).mean()

    def step(self, loss: Tensor) -> None:
        """One update of every unit that the batch passed; the others have no gradient at all."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_norm:
            nn.utils.clip_grad_norm_([p for unit in self.units.values() for p in unit.parameters()], self.clip_norm)
        self.optimizer.step()


@dataclass
class RoundLosses:
    """The loss of every step of a round, by client, on both sides."""

    client: dict[int, list[float]] = field(default_factory=dict)
    server: dict[int, list[float]] = field(default_factory=dict)


class Oracle:
    """A whole run: `run()` gives the losses round by round, `files()` and `correct()` what came out of it."""

    def __init__(self, setup: Setup) -> None:
        config = setup.config
        self.setup, self.seed, self.training = setup, config.seed, config.training
        self.unit_names = setup.fleet.unit_names
        self.tiers = [tier for tier in config.tiers for _ in range(tier.clients)]
        self.without_servers = self.training.strategy.name in ("fedavg", "smallest", "per_tier", "depthfl")
        self.cuts = [client.cut for client in setup.fleet.clients]
        if self.without_servers:
            self.cuts = [max(self._units_to(tier.cut)) for tier in self.tiers]
        if self.training.strategy.name == "fedavg":
            self.cuts = [len(self.unit_names)] * len(self.cuts)
        if self.training.strategy.name == "smallest":
            self.cuts = [min(self.cuts)] * len(self.cuts)
        self.labels = [client.label for client in setup.fleet.clients]
        self.sequential = self.training.strategy.name == "sequential"
        self.mu = (self.training.objective.options if self.training.objective else {}).get("mu", 0.0)
        initial = build_backbone(config.model, setup.files.image_shape, setup.n_classes, config.seed).units
        self.client_models = [self._client_model(client, initial) for client in range(len(self.cuts))]
        self.server_models: dict[int, Model] = {}
        shared = self._server_model(min(self.cuts), initial) if self.sequential else None
        for client, cut in enumerate(self.cuts):
            if cut < len(self.unit_names) and not self.without_servers:
                self.server_models[client] = shared or self._server_model(cut, initial)
        self.codecs = [client.codec for client in setup.fleet.clients]
        self.ranges: dict[int, tuple[Tensor, Tensor]] = {}
        """Of int8's clients that have trained: averages of their features' lowest and highest values by channel."""
        self.batches_seen: dict[int, int] = {}
        self.newest: dict[tuple[str, str], Contents] = {}
        self.moments: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        self.told: list[dict[int, Tensor]] = [{} for _ in self.cuts]
        """By client: soft labels of its rows, that its server has sent; and those of the rounds before this one."""
        self.known: list[dict[int, Tensor]] = [{} for _ in self.cuts]
        self.statistics_apart = self.sequential and self.training.norm_statistics == "per_client"
        self.statistics: dict[int, dict[str, Tensor]] = {}
        self.initial_statistics = {
            f"{unit}.{name}": statistic.clone()
            for unit in self.unit_names
            for name, statistic in _statistics_in(initial[unit]).items()
        }

    def _units_to(self, cut: str | int) -> list[int]:
        """Counts of the units up to each of those that a cut names."""
        names = enumerate(self.unit_names, start=1)
        return [count for count, name in names if name == cut or name.startswith(f"{cut}.")]

    def _client_model(self, client: int, initial: Units) -> Model:
        cut, n_classes = self.cuts[client], self.setup.n_classes
        units = {name: initial[name] for name in self.unit_names[:cut]}
        for place in self._inner_exits(client):
            units[f"exits.{self.unit_names[place - 1]}"] = self._exit(place)
        if cut < len(self.unit_names):
            units[self._own_exit(client)] = self._exit(cut)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch_seed(self.seed, "ahead", self.unit_names[cut - 1]))
                if ahead := self._ahead(client):
                    last = self.unit_names.index(ahead[-1])
                    units |= {f"ahead.{name}": initial[name] for name in ahead}
                    units["ahead.exit"] = PoolExit(self.setup.feature_shapes[last][0], n_classes)
        return self._model(units)

    def _server_model(self, cut: int, initial: Units) -> Model:
        return self._model({name: initial[name] for name in self.unit_names[cut:]})

    def _model(self, units: Units) -> Model:
        objective = self.training.objective
        label_smoothing = objective.options.get("label_smoothing", 0.0) if objective else 0.0
        return Model(units, self.training.optimizer, label_smoothing)

    def _exit(self, cut: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(self.seed, "exit", self.unit_names[cut - 1]))
            channels = self.setup.feature_shapes[cut - 1][0]
            return exit_head(self.setup.config.exits.head.name, channels, self.setup.n_classes)

    def _own_exit(self, client: int) -> str:
        """In DepthFL exits of one cut have one name, whoever has them."""
        deep = self.training.strategy.name == "depthfl"
        return f"exits.{self.unit_names[self.cuts[client] - 1]}" if deep else EXIT

    def _inner_exits(self, client: int) -> list[int]:
        """Cuts below its own at which a client of DepthFL has an exit."""
        cuts = sorted(set(self.cuts)) if self.training.strategy.name == "depthfl" else []
        return [cut for cut in cuts if cut < self.cuts[client]]

    def _ahead(self, client: int) -> tuple[str, ...]:
        """Units that a client looks ahead through: the last one is never among them."""
        look_ahead, cut = self.training.look_ahead, self.cuts[client]
        return self.unit_names[cut:-1][: look_ahead.units] if look_ahead else ()

    def _above(self, client: int) -> tuple[str, ...]:
        return self.unit_names[self.cuts[client] :]

    # Training

    def run(self) -> list[RoundLosses]:
        return [self._round(number) for number in range(1, self.training.rounds + 1)]

    def _round(self, number: int) -> RoundLosses:
        participants = self._participants(number)
        for model in (*self.client_models, *self.server_models.values()):
            for group in model.optimizer.param_groups:
                group["lr"] = self._learning_rate(number)
        for client in participants:
            self._catch_up(self.client_models[client], self.client_models[client].units)
            if client in self.server_models:
                self._catch_up(self.server_models[client], self._above(client))
        losses = RoundLosses()
        self.anchors = [
            {name: {p: x.detach().clone() for p, x in unit.named_parameters()} for name, unit in model.units.items()}
            for model in self.client_models
        ]
        self.known = [dict(told) for told in self.told]
        kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        steps: dict[int, Iterator[int]] = {client: itertools.count() for client in participants}
        for client, rows in self._turns(number, participants):
            kept.setdefault(client, [])
            self._train_batch(client, rows, (client, number, next(steps[client])), losses, kept[client])
            if len(kept[client]) == len(self._batches(number, client)):
                self._learn_again(client, number, kept[client], losses)
        due = number == self.training.rounds or number % self.training.aggregate_every == 0
        if due and self.training.strategy.name not in ("distributed", "centralized"):
            self._aggregate()
        return losses

    def _learn_again(self, client: int, number: int, kept: list[tuple[Tensor, Tensor]], losses: RoundLosses) -> None:
        """Further epochs of a server over a client's features of the round."""
        for epoch in range(1, self.training.server_epochs if client in self.server_models else 1):
            for place in generator(self.seed, "server order", client, number, epoch).permutation(len(kept)):
                h, labels_B = kept[place]
                loss = self.server_models[client].loss(self._server_forward(client, h, train=True), labels_B)
                losses.server[client].append(loss.item())
                self.server_models[client].step(loss)
                if self.statistics_apart:
                    worn = self._statistics_above(client)
                    self.statistics[client] = {name: statistic.clone() for name, statistic in worn.items()}

    def _participants(self, number: int) -> list[int]:
        n_clients = len(self.cuts)
        if self.training.clients_per_round == 1:
            return list(range(n_clients))
        chosen = max(1, round(self.training.clients_per_round * n_clients))
        drawn = generator(self.seed, "participants", number).permutation(n_clients)[:chosen]
        return sorted(int(client) for client in drawn)

    def _learning_rate(self, number: int) -> float:
        lr = self.training.optimizer.lr
        if self.training.lr_schedule.name == "cosine":
            lr *= 0.5 * (1 + math.cos(math.pi * (number - 1) / self.training.rounds))
        warm_up = self.training.warmup_rounds
        return lr * number / (warm_up + 1) if number <= warm_up else lr

    def _turns(self, number: int, queue: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(client, rows) of every batch of the round, in the order in which a shared server learns from them."""
        if self.training.order == "shuffled":
            order = generator(self.seed, "queue", number).permutation(len(queue))
            queue = [queue[place] for place in order]
        turns = [[(client, rows) for rows in self._batches(number, client)] for client in queue]
        if self.training.interleave == "batch":
            turns = [[turn for turn in each if turn] for each in itertools.zip_longest(*turns)]
        return itertools.chain.from_iterable(turns)

    def _batches(self, number: int, client: int) -> list[np.ndarray]:
        rows, size = self.setup.parts[client].train, self.setup.fleet.clients[client].batch_size
        wanted, batches = self.training.local_steps, []
        for epoch in range(wanted or self.training.local_epochs):
            shuffled = rows[generator(self.seed, "order", client, number, epoch).permutation(len(rows))]
            one_pass = [shuffled[first : first + size] for first in range(0, len(rows), size)]
            if len(one_pass) > 1 and len(one_pass[-1]) == 1:
                one_pass[-2:] = [np.concatenate(one_pass[-2:])]
            batches += one_pass
        return batches[:wanted]

    def _train_batch(
        self,
        client: int,
        rows: np.ndarray,
        key: tuple[int, int, int],
        losses: RoundLosses,
        kept: list[tuple[Tensor, Tensor]],
    ) -> None:
        x_BCHW, labels_B = self._images("train", rows, key)
        on_client = self.client_models[client]
        h, logits_BK = self._client_forward(client, x_BCHW, train=True)
        loss = on_client.loss(logits_BK, labels_B) + self._distillation(client, rows, logits_BK)
        loss = loss + self.mu / 2 * sum(
            ((parameter - self.anchors[client][name][p]) ** 2).sum()
            for name, unit in on_client.units.items()
            for p, parameter in unit.named_parameters()
        )
        losses.client.setdefault(client, []).append(loss.item())
        loss = loss + self._other_exits(client, logits_BK, labels_B)
        if ahead := [name for name in on_client.units if name.startswith("ahead.")]:
            loss = loss + on_client.loss(on_client.forward(ahead, h, train=True), labels_B)
        for learnt_from in on_client.learnt_from.values():
            learnt_from.add(client)
        feedback = self.training.feedback
        if client not in self.server_models:
            kept.append((h.detach(), labels_B))
        if client in self.server_models:
            on_server = self.server_models[client]
            sent = self._sent(client, h.detach(), train=True).requires_grad_()
            kept.append((sent.detach(), labels_B))
            logits_BK = self._server_forward(client, sent, train=True)
            server_loss = on_server.loss(logits_BK, labels_B)
            losses.server.setdefault(client, []).append(server_loss.item())
            on_server.step(server_loss)
            if feedback.name == "gradients":
                loss = loss + (h * sent.grad).sum()
            if feedback.name == "soft_labels":
                soft_BK = (logits_BK.detach() / feedback.temperature).softmax(1)
                self.told[client] |= dict(zip(rows.tolist(), soft_BK, strict=True))
            for unit in self._above(client):
                on_server.learnt_from[unit].add(client)
            if self.statistics_apart:
                worn = self._statistics_above(client)
                self.statistics[client] = {name: statistic.clone() for name, statistic in worn.items()}
        on_client.step(loss)

    def _distillation(self, client: int, rows: np.ndarray, logits_BK: Tensor) -> Tensor:
        """Of what the server said of the rows in the rounds before, if it said something; a mean over the batch."""
        feedback, total = self.training.feedback, torch.zeros(())
        for row, logits_K in zip(rows.tolist(), logits_BK, strict=True):
            if row in self.known[client]:
                soft_K, temperature = self.known[client][row], feedback.temperature
                difference_K = soft_K.log() - (logits_K / temperature).log_softmax(0)
                total = total + feedback.weight * temperature**2 * (soft_K * difference_K).sum()
        return total / len(rows)

    def _other_exits(self, client: int, own_BK: Tensor, labels_B: Tensor) -> Tensor:
        """What exits below a client's own add: their losses, and what all exits say of each other."""
        loss = sum((self.client_models[client].loss(each, labels_B) for each in self.inner), torch.zeros(()))
        weight = self.training.strategy.options.get("distillation", 1.0)
        for pupil, teacher in itertools.permutations([*self.inner, own_BK], 2):
            taught_BK = teacher.detach().softmax(1)
            divergence_B = (taught_BK * (taught_BK.log() - pupil.softmax(1).log())).sum(1)
            loss = loss + weight * divergence_B.mean() / len(self.inner)
        return loss

    def _client_forward(self, client: int, x_BCHW: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        """Features at the cut and the client's own logits; they are the same at cut L."""
        model, h, self.inner = self.client_models[client], x_BCHW, []
        for cut, name in enumerate(self.unit_names[: self.cuts[client]], start=1):
            h = model.forward([name], h, train)
            if cut in self._inner_exits(client):
                self.inner.append(model.forward([f"exits.{name}"], h, train))
        weight, own = self.training.exit_weight, self._own_exit(client)
        return h, model.forward([own], weight * h + (1 - weight) * h.detach(), train) if own in model.units else h

    def _server_forward(self, client: int, h: Tensor, train: bool) -> Tensor:
        if self.statistics_apart:
            chosen = self._statistics_of(client)
            for name, statistic in self._statistics_above(client).items():
                statistic.copy_(chosen[name])
        return self.server_models[client].forward(self._above(client), h, train)

    def _sent(self, client: int, h_BCHW: Tensor, train: bool) -> Tensor:
        """What of a client's features arrives at its server."""
        if self.codecs[client] == "fp16":
            return h_BCHW.clamp(-65504, 65504).half().float()
        if self.codecs[client] == "none":
            return h_BCHW
        if train:
            low, high = _range(h_BCHW)
            kept = self.ranges.get(client, (low, high))
            self.ranges[client] = 0.9 * kept[0] + 0.1 * low, 0.9 * kept[1] + 0.1 * high
            self.batches_seen[client] = self.batches_seen.get(client, 0) + 1
        elif client in self.ranges:
            low, high = self.ranges[client]
        else:
            first = self.setup.parts[client].train[: self.setup.fleet.clients[client].batch_size]
            low, high = _range(self._client_forward(client, self._images("train", first)[0], train=False)[0])
        scale = (high - low) / 255
        codes = ((h_BCHW - low) / scale).round().clamp(0, 255)
        return torch.where(scale > 0, low + codes * scale, low)

    def _images(self, split: str, rows: np.ndarray, key: tuple[int, int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images and labels; with a key (client, round, step), changed at random as in that step."""
        images = open_images(getattr(self.setup.files, split))
        images_BHWC = images.images_NHWC[rows]
        if key is not None and self.setup.config.data.augment.on:
            images_BHWC = self._augmented(images_BHWC, generator(self.seed, "augmentation", *key))
        x_BCHW = normalise(images_BHWC, self.setup.mean_C, self.setup.std_C, torch.contiguous_format)
        return x_BCHW, torch.from_numpy(images.labels_N[rows])

    def _augmented(self, images_BHWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws: who is mirrored; the first rows; the first columns; the seed of the transforms."""
        how, height, width = self.setup.config.data.augment, *images_BHWC.shape[1:3]
        pixels = math.floor(how.shift * height)
        mirrored_B = rng.random(len(images_BHWC)) < 0.5
        tops_B, lefts_B = rng.integers(0, 2 * pixels + 1, (2, len(images_BHWC)))
        changed = []
        for image, mirrored, top, left in zip(images_BHWC, mirrored_B, tops_B, lefts_B, strict=True):
            channels = []
            for channel, mean in zip(np.moveaxis(image, 2, 0), self.setup.mean_C, strict=True):
                channel = channel[:, ::-1] if mirrored and how.flip else channel
                colour = round(255 * mean) if how.border == "mean" else 0
                mode = {"mode": "reflect"} if how.border == "reflect" else {"constant_values": colour}
                channels.append(np.pad(channel, pixels, **mode)[top : top + height, left : left + width])
            changed.append(np.stack(channels))
        if how.transforms:
            made = [getattr(transforms, plugin.name)(**plugin.options) for plugin in how.transforms]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**63)))
                changed = [transforms.Compose(made)(torch.from_numpy(image)).numpy() for image in changed]
        return np.stack(changed).transpose(0, 2, 3, 1)

    # Batch-norm statistics that a shared server keeps apart

    def _statistics_of(self, client: int) -> dict[str, Tensor]:
        """The client's own; before it has some, the mean of those with its cut, or those of the start."""
        if client in self.statistics:
            return self.statistics[client]
        sets = [own for other, own in sorted(self.statistics.items()) if self.cuts[other] == self.cuts[client]]
        if not sets:
            sets = [{name: self.initial_statistics[name] for name in self._statistics_above(client)}]
        return {name: _mean([own[name] for own in sets], [1] * len(sets)) for name in sets[0]}

    def _statistics_above(self, client: int) -> dict[str, Tensor]:
        """What the server wears at present, of the units that the client's batches pass."""
        return {
            f"{unit}.{name}": statistic
            for unit in self._above(client)
            for name, statistic in _statistics_in(self.server_models[client].units[unit]).items()
        }

    # Aggregation

    def _groups(self) -> Iterator[tuple[str, str, list[Model]]]:
        """Name of a group, a unit, and the models whose copies of the unit are averaged with each other."""
        clients, servers = self.client_models, list(dict.fromkeys(self.server_models.values()))
        if self.training.strategy.name == "per_tier":
            for tier in self.setup.config.tiers:
                peers = [model for model, own in zip(clients, self.tiers, strict=True) if own is tier]
                yield from ((tier.name, unit, peers) for unit in peers[0].units)
            return
        by_option = {
            "all": {"all": clients + servers},
            "both": {"clients": clients, "servers": servers},
            "server": {"servers": servers},
        }
        for group, models in by_option[self.training.aggregate].items():
            for unit in self.unit_names:
                yield group, unit, [model for model in models if unit in model.units]
        for head in sorted({name for model in clients for name in model.units if name.startswith("exits.")}):
            yield "heads", head, [model for model in clients if head in model.units]
        if self.training.aggregate != "server":
            for cut in set(self.cuts) - {len(self.unit_names)}:
                peers = [clients[n] for n, other in enumerate(self.cuts) if other == cut]
                joined = self.training.look_ahead and self.training.look_ahead.copies == "network"
                for unit in peers[0].units:
                    if unit in (EXIT, "ahead.exit") or (unit.startswith("ahead.") and not joined):
                        yield f"cut {cut}", unit, peers

    def _aggregate(self) -> None:
        for group, unit, models in self._groups():
            trained = [model for model in models if model.learnt_from[unit]]
            copies = f"ahead.{unit}"
            joined = self.training.look_ahead and self.training.look_ahead.copies == "network" and group == "all"
            takers = [model for model in self.client_models if joined and copies in model.units]
            if len(models) + len(takers) == 1 or not trained:
                continue
            average = self._average(unit, trained)
            if (group, unit) in self.newest and len(trained) > 1:
                average = self._stepped((group, unit), average)
            self.newest[group, unit] = average
            for model in models:
                if model not in trained:
                    model.behind[unit] = group, unit
                elif len(trained) > 1:
                    self._replace(model, unit, average)
            for model in takers:
                if model.learnt_from[copies]:
                    self._replace(model, copies, average)
                else:
                    model.behind[copies] = group, unit
        for model in (*self.client_models, *self.server_models.values()):
            for learnt_from in model.learnt_from.values():
                learnt_from.clear()

    def _average(self, unit: str, models: list[Model]) -> Contents:
        weights = [1] * len(models)
        if self.training.aggregate_weights == "samples":
            samples = [len(part.train) for part in self.setup.parts]
            weights = [sum(samples[client] for client in model.learnt_from[unit]) for model in models]
        if self.training.aggregate_weights == "depth":
            cuts = [[self.cuts[client] for client in sorted(model.learnt_from[unit])] for model in models]
            weights = [sum(own) / len(own) for own in cuts]
        servers = self.server_models.values()
        weights = [
            w * (self.training.server_weight if m in servers else 1) for w, m in zip(weights, models, strict=True)
        ]
        contents = [self._contents(model, unit) for model in models]
        return {key: _mean([own[key] for own in contents], weights, key[-1]) for key in contents[0]}

    def _stepped(self, place: tuple[str, str], mean: Contents) -> Contents:
        """A step from the average before towards the mean, parameter by parameter."""
        step, stepped = self.training.average_step, dict(mean)
        for key in [key for key in mean if key[0] == "parameter" and step.name != "mean"]:
            w = self.newest[place][key].double()
            d = mean[key].double() - w
            v, s = self.moments.get((*place, *key), (torch.zeros_like(d), torch.zeros_like(d)))
            if step.name == "momentum":
                v = step.momentum * v + d
                stepped[key] = (w + step.lr * v).float()
            else:
                v, s = step.betas[0] * v + (1 - step.betas[0]) * d, step.betas[1] * s + (1 - step.betas[1]) * d * d
                stepped[key] = (w + step.lr * v / (s.sqrt() + step.eps)).float()
            self.moments[(*place, *key)] = v, s
        return stepped

    def _contents(self, model: Model, unit: str) -> Contents:
        contents: Contents = {}
        for name, parameter in model.units[unit].named_parameters():
            contents["parameter", name] = parameter.detach()
            if self.training.optimizer_state == "average":
                for key, value in model.optimizer.state[parameter].items():
                    contents["state", name, key] = value
        apart = _statistics_in(model.units[unit]) if self.training.norm_statistics == "per_client" else {}
        for name, buffer in model.units[unit].named_buffers():
            if name not in apart:
                contents["buffer", name] = buffer
        return contents

    def _replace(self, model: Model, unit: str, average: Contents) -> None:
        parameters, buffers = dict(model.units[unit].named_parameters()), dict(model.units[unit].named_buffers())
        if self.training.optimizer_state == "reset":
            for parameter in parameters.values():
                model.optimizer.state.pop(parameter, None)
        for (kind, name, *key), value in average.items():
            if kind == "parameter":
                parameters[name].data.copy_(value)
            elif kind == "buffer":
                buffers[name].copy_(value)
            else:
                model.optimizer.state[parameters[name]][key[0]] = value.clone()

    def _catch_up(self, model: Model, units: Iterable[str]) -> None:
        """Copies that missed an aggregation start from the newest average."""
        for unit in units:
            if unit in model.behind:
                self._replace(model, unit, self.newest[model.behind.pop(unit)])

    # Results

    @torch.no_grad()
    def correct(self) -> dict[int, tuple[int, int | None]]:
        """Test images that the client alone, and its server, answer right; no server at cut L."""
        x_BCHW, labels_B = self._images("test", self.setup.test_indices)
        counts: dict[int, tuple[int, int | None]] = {}
        for client in range(len(self.cuts)):
            h, logits_BK = self._client_forward(client, x_BCHW, train=False)
            right_on_server = None
            if client in self.server_models:
                sent = self._sent(client, h, train=False)
                right_on_server = _right(self._server_forward(client, sent, train=False), labels_B)
            counts[client] = _right(logits_BK, labels_B), right_on_server
        return counts

    def files(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of every model by the stem of its file; a shared server's also in what each client wears."""
        files = {}
        for client, label in enumerate(self.labels):
            tensors = _tensors(self.client_models[client])
            own = self._own_exit(client)
            tensors = {name.replace(f"{own}.", f"{EXIT}."): x for name, x in tensors.items()}
            kept = {name: x for name, x in tensors.items() if not name.startswith(("ahead.", "exits."))}
            files[f"client-{label}"] = kept
            if self.codecs[client] == "int8":
                channels = self.setup.feature_shapes[self.cuts[client] - 1][0]
                low, high = self.ranges.get(client, (torch.zeros(channels), torch.zeros(channels)))
                seen = {"low_C": low.flatten(), "high_C": high.flatten()}
                seen["batches"] = torch.tensor(self.batches_seen.get(client, 0))
                files[f"client-{label}"] |= {f"codec.{name}": tensor for name, tensor in seen.items()}
        for client, model in self.server_models.items():
            if not self.sequential:
                files[f"server-{self.labels[client]}"] = _tensors(model)
                continue
            files.setdefault("server", _tensors(model, statistics=not self.statistics_apart))
            if self.statistics_apart:
                worn = self._statistics_of(client).items()
                files["server"] |= {f"client-{self.labels[client]}.{name}": statistic for name, statistic in worn}
        return files


def _optimizer(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _mean(values: list[Tensor], weights: list[int], name: str = "") -> Tensor:
    """Weighted mean in float64; the largest of what counts steps or batches."""
    if name == "step" or not values[0].is_floating_point():
        return torch.stack(values).amax(0)
    total = sum(weight * value.double() for weight, value in zip(weights, values, strict=True))
    return (total / sum(weights)).to(values[0].dtype)


def _range(h_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return h_BCHW.amin((0, 2, 3), keepdim=True), h_BCHW.amax((0, 2, 3), keepdim=True)


def _statistics_in(unit: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in unit.named_buffers() if name.rpartition(".")[2] in STATISTICS}


def _tensors(model: Model, statistics: bool = True) -> dict[str, Tensor]:
    tensors = {}
    for unit, module in model.units.items():
        left_out = {} if statistics else _statistics_in(module)
        tensors |= {f"{unit}.{name}": x for name, x in module.state_dict().items() if name not in left_out}
    return tensors


def _right(logits_BK: Tensor, labels_B: Tensor) -> int:
    return int((logits_BK.argmax(1) == labels_B).sum())
