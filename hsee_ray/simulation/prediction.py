"""Cost of a round on the tiers' devices: seconds, joules, bytes.

A function of the configuration, the counted costs, the devices' profiles and of what happens in the round, be it
foreseen or known: who takes part, what is sent, what is left out. It waits for nothing and touches no model. Formulas
and assumptions are in docs/simulation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

from hsee_ray.config.fleet import ClientSpec, Fleet, ModelId
from hsee_ray.config.schema import Config
from hsee_ray.devices.profiles import DeviceProfile
from hsee_ray.method.aggregation import Aggregation, plan_aggregation
from hsee_ray.method.reports import EvaluationReport, TrainReport
from hsee_ray.method.schedule import (
    batches_per_message,
    evaluates_after,
    evaluation_window,
    queue_order,
    window_batches,
)
from hsee_ray.method.strategies import strategy_of
from hsee_ray.simulation.bounds import lower_bound_s, server_bound_s
from hsee_ray.simulation.events import core_send_s, simulate_round
from hsee_ray.simulation.loads import Loads, as_sent, bytes_s, in_messages
from hsee_ray.simulation.model import ClientLoad, OneMachine, RoundTiming, Rules, ServerSite, Span

if TYPE_CHECKING:
    from hsee_ray.devices.cost import CostTable


@dataclass(frozen=True)
class ClientCost:
    """One client's cost in a round: in training and exchange, or in the evaluation after it."""

    compute_s: float = 0.0
    """Of its own device."""
    upload_s: float = 0.0
    """In which features are on their way out."""
    server_s: float = 0.0
    """Of the server on its features."""
    sent_bytes: int = 0
    received_bytes: int = 0
    joules: float = 0.0
    """Of its own device."""

    def __add__(self, other: ClientCost) -> ClientCost:
        return ClientCost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(ClientCost)))


@dataclass(frozen=True)
class RoundCost:
    """A round in simulated time."""

    train_s: float
    exchange_s: float
    """Of parameters, up and down, when everybody has trained."""
    evaluation_s: float
    fleet: Fleet
    clients: Mapping[int, ClientCost]
    """Of training and exchange, by client number."""
    evaluated: Mapping[int, ClientCost] = field(default_factory=dict)
    """Of the evaluation, by client number."""
    spans: tuple[Span, ...] = ()
    """Of training and exchange, from the beginning of the round."""
    evaluation_spans: tuple[Span, ...] = ()
    """From the beginning of the evaluation."""

    @property
    def round_s(self) -> float:
        """Seconds of the round with its evaluation."""
        return self.train_s + self.exchange_s + self.evaluation_s

    def tiers(self) -> dict[str, ClientCost]:
        """Sums of training and exchange over the clients of each tier."""
        return self._sums(self.clients)

    def evaluated_tiers(self) -> dict[str, ClientCost]:
        """Sums of the evaluation over the clients of each tier."""
        return self._sums(self.evaluated)

    def _sums(self, costs: Mapping[int, ClientCost]) -> dict[str, ClientCost]:
        sums = dict.fromkeys(self.fleet.tiers, ClientCost())
        for client_id, cost in sorted(costs.items()):
            tier = self.fleet.clients[client_id].tier
            sums[tier] = sums[tier] + cost
        return sums


@dataclass(frozen=True)
class RoundScenario:
    """Inputs of a round's cost apart from the fleet, predicted or observed."""

    queue: Sequence[int]
    """Clients that train, in the order of the queue."""
    averages: Aggregation | None = None
    """Of the exchange after training."""
    caught_up: Mapping[ModelId, Mapping[str, str]] = field(default_factory=dict)
    """Averages (unit -> key) that clients have missed and fetch before they train."""
    away_s: Mapping[int, float] = field(default_factory=dict)
    """By client, seconds for which it is away at the beginning."""
    trained: Mapping[int, TrainReport] = field(default_factory=dict)
    """Observed training reports; without one, the predicted load counts."""
    evaluated: Sequence[int] = ()
    """Clients that are evaluated."""
    evaluation: Mapping[int, EvaluationReport] = field(default_factory=dict)
    """Observed evaluation reports; without one, the predicted load counts."""


class Predictor:
    """Rounds of one configuration in simulated time, of fleets that may differ in their cuts and codecs."""

    def __init__(self, config: Config, costs: CostTable, profiles: Mapping[str, DeviceProfile]) -> None:
        """`config` names the tiers' devices and the server's, all of them in `profiles`; cuts come with fleets."""
        self.config = config
        self.loads = Loads(config, costs, profiles)
        server = self.loads.server
        self.context = ServerSite(server.cores, bytes_s(server.downlink_mbit_s), bytes_s(server.uplink_mbit_s))
        self.one_machine = OneMachine(server.cores) if config.simulation.one_machine else None

    def bound_s(self, specs: Sequence[ClientSpec], local_samples: Sequence[int]) -> float:
        """Seconds that no round is below in which these clients train, alone or among others.

        `local_samples` are theirs, in the same order.
        """
        loads = [self.loads.training(spec, samples) for spec, samples in zip(specs, local_samples, strict=True)]
        if self.one_machine is not None:
            # How many batches share a message there, the rest of the fleet decides.
            loads = [replace(load, latency_s=0.0) for load in loads]
        rules = Rules(self._order)
        alone = {id(load.batches): load for load in loads}
        alone_s = [lower_bound_s(load, self.context, self.one_machine) for load in alone.values()]
        return max([server_bound_s(loads, self.context, rules, self.one_machine), *alone_s])

    def round(
        self,
        fleet: Fleet,
        local_samples: Sequence[int],
        n_test: int,
        round_number: int = 1,
        aggregates: bool | None = None,
        evaluates: bool | None = None,
    ) -> RoundCost:
        """A round that is still to be trained, by clients that have missed none and are not away.

        Whether parameters are exchanged and models evaluated after it, the caller says; else the schedule does.
        """
        queue = queue_order(self.config, fleet, round_number)
        if aggregates is None:
            aggregates = strategy_of(self.config).aggregates_after(self.config.training, round_number)
        if evaluates is None:
            evaluates = evaluates_after(self.config, round_number)
        averages = plan_aggregation(self.config, fleet, queue, local_samples) if aggregates else None
        evaluated = range(len(fleet.clients)) if evaluates else ()
        return self.cost(fleet, local_samples, n_test, RoundScenario(queue, averages, evaluated=evaluated))

    def cost(self, fleet: Fleet, local_samples: Sequence[int], n_test: int, scenario: RoundScenario) -> RoundCost:
        """Cost of a round under this scenario."""
        loads = self._training_loads(fleet, local_samples, scenario)
        messages, rules = self._messages(fleet, loads)
        timing = simulate_round(messages, self.context, rules, self.one_machine)
        tested = [
            as_sent(self.loads.evaluation(fleet.clients[client_id], n_test), scenario.evaluation.get(client_id))
            for client_id in scenario.evaluated
        ]
        sizes = [
            self.loads.feature_bytes(fleet.clients[load.client], self.config.evaluation.batch_size) for load in tested
        ]
        window = evaluation_window(self.config.pipeline, max(sizes, default=1))
        evaluation = simulate_round(tested, self.context, Rules(self._order, "client", window), self.one_machine)
        return RoundCost(
            train_s=timing.train_s,
            exchange_s=timing.end_s - timing.train_s,
            evaluation_s=evaluation.end_s,
            fleet=fleet,
            clients=self._client_costs(fleet, messages, timing),
            evaluated=self._client_costs(fleet, tested, evaluation),
            spans=timing.spans,
            evaluation_spans=evaluation.spans,
        )

    def _training_loads(self, fleet: Fleet, local_samples: Sequence[int], scenario: RoundScenario) -> list[ClientLoad]:
        """Of those who train, in the order of the queue, then of those who only exchange."""
        up: dict[int, set[str]] = {}
        down: dict[int, set[str]] = {}
        if scenario.averages is not None:
            for copies in scenario.averages.copies.values():
                for copy in copies:
                    if copy.model.side == "client" and copy.weight:
                        up.setdefault(copy.model.client_id, set()).add(copy.unit)
            down = _of_clients(scenario.averages.takes)
        fetched = _of_clients(scenario.caught_up)
        training = set(scenario.queue)
        loads: list[ClientLoad] = []
        for client_id in [*scenario.queue, *sorted((up.keys() | down.keys()) - training)]:
            spec = fleet.clients[client_id]
            if client_id in training:
                load = as_sent(self.loads.training(spec, local_samples[client_id]), scenario.trained.get(client_id))
            else:
                load = self.loads.load(spec, ())
            loads.append(
                replace(
                    load,
                    delay_s=scenario.away_s.get(client_id, 0.0),
                    model_up_bytes=self.loads.unit_bytes(spec, up.get(client_id, ())),
                    model_down_bytes=self.loads.unit_bytes(spec, down.get(client_id, ())),
                    fetch_bytes=self.loads.unit_bytes(spec, fetched.get(client_id, ())),
                )
            )
        return loads

    def _messages(self, fleet: Fleet, loads: Sequence[ClientLoad]) -> tuple[Sequence[ClientLoad], Rules]:
        """The loads by message, and how these pass the servers.

        A device sends each batch by itself. On one machine batches travel together, as they do in a run.
        """
        training, pipeline = self.config.training, self.config.pipeline
        training_specs = [fleet.clients[load.client] for load in loads if load.batches]
        sizes = {spec.client_id: self.loads.feature_bytes(spec, spec.batch_size) for spec in training_specs}
        window = window_batches(pipeline, max(sizes.values(), default=1))
        strategy = strategy_of(self.config)
        if self.one_machine is None or strategy.lockstep(training) or strategy.retries_together(training):
            return loads, Rules(self._order, training.interleave, window)
        counts = {load.client: len(load.batches) for load in loads if load.batches}
        together = min((batches_per_message(pipeline, sizes[n], count) for n, count in counts.items()), default=1)
        messages = [in_messages(load, together) for load in loads]
        return messages, Rules(self._order, training.interleave, max(1, window // together))

    @property
    def _order(self) -> Literal["parallel", "serial"]:
        return "serial" if strategy_of(self.config).shared_server else "parallel"

    def _client_costs(self, fleet: Fleet, loads: Sequence[ClientLoad], timing: RoundTiming) -> dict[int, ClientCost]:
        upload_s: dict[int, float] = {}
        for span in timing.spans:
            if span.kind == "upload":
                upload_s[span.client] = upload_s.get(span.client, 0.0) + span.end_s - span.begin_s
        costs: dict[int, ClientCost] = {}
        for load in loads:
            device = self.loads.device(fleet.clients[load.client])
            compute_s = sum(batch.compute_s + (batch.after_s or 0.0) for batch in load.batches)
            messages = [batch.sent_bytes for batch in load.batches if batch.server_s is not None]
            messages += [load.model_up_bytes] if load.model_up_bytes else []
            received = [batch.returned_bytes for batch in load.batches]
            received = [size for size in (load.fetch_bytes, *received, load.model_down_bytes) if size]
            # On a machine that all share, a model pays for the core that it is on.
            watts = device.core_w if self.loads.all_on_server else device.active_w
            if self.one_machine is None:
                air_s = sum(messages) / load.uplink_bytes_s + sum(received) / load.downlink_bytes_s
                joules = watts * compute_s + device.radio_w * air_s
            else:
                joules = watts * (compute_s + sum(core_send_s(load, size) for size in messages + received))
            costs[load.client] = ClientCost(
                compute_s=compute_s,
                upload_s=upload_s.get(load.client, 0.0),
                server_s=sum(batch.server_s or 0.0 for batch in load.batches),
                sent_bytes=sum(messages),
                received_bytes=sum(received),
                joules=joules,
            )
        return costs


def _of_clients(takes: Mapping[ModelId, Mapping[str, str]]) -> dict[int, set[str]]:
    return {model.client_id: set(units) for model, units in takes.items() if model.side == "client"}
