"""A Flower app whose clients do next to nothing; `jobs.benches.peers.bench` runs it with the peer's Python.

It imports nothing of hsee-ray, and Flower only where it is used: the work is our side's clients' too. Every line that
begins with `peer:` is one JSON object for the benchmark; Flower's own log goes to the same place. `time.monotonic` is
one clock for all processes of a machine.
"""

# mypy: disable-error-code="import-not-found, untyped-decorator"
from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

LINE = "peer: "
PARAMETERS = 4
"""float32 parameters of a model: none of the time is about their size."""
TINY_STEPS = 120
"""Steps of the tiny client: about 5 ms of one core."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="clients at once")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--work", choices=("noop", "tiny"), required=True)
    parser.add_argument("--temp-dir", required=True, help="of its Ray; short, it becomes part of socket names")
    options = parser.parse_args()
    from flwr.simulation import run_simulation

    tell(versions={"python": platform.python_version(), **{name: version(name) for name in ("flwr", "ray", "numpy")}})
    run_simulation(
        server_app=server_app(options.clients, options.rounds, options.work),
        client_app=client_app(),
        num_supernodes=options.clients,
        backend_config={
            "client_resources": {"num_cpus": 1},
            # Without an address Ray joins whatever cluster this machine has started last.
            "init_args": {"num_cpus": options.slots, "address": "local", "_temp_dir": options.temp_dir},
        },
    )


def tell(**what: Any) -> None:
    """Prints a line for the benchmark."""
    print(LINE + json.dumps(what), flush=True)


def tiny_step() -> None:
    """A small network of numpy trained for a few milliseconds on random samples, then forgotten."""
    rng = np.random.default_rng(0)
    x_BI, labels_B = rng.normal(size=(32, 64)).astype(np.float32), rng.integers(0, 10, 32)
    w_IH, w_HK = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((64, 64), (64, 10)))
    for _ in range(TINY_STEPS):
        h_BH = np.maximum(x_BI @ w_IH, 0)
        p_BK = np.exp(h_BH @ w_HK)
        p_BK /= p_BK.sum(axis=1, keepdims=True)
        p_BK[np.arange(len(labels_B)), labels_B] -= 1  # the gradient of the cross-entropy
        into_IH = x_BI.T @ (p_BK @ w_HK.T * (h_BH > 0))
        w_HK -= 0.01 * (h_BH.T @ p_BK)
        w_IH -= 0.01 * into_IH


def worked_s(work: str) -> float:
    """Does a client's work, `noop` or `tiny`; gives the seconds of a core that it took."""
    begin = time.thread_time()
    if work == "tiny":
        tiny_step()
    return time.thread_time() - begin


def client_app() -> ClientApp:
    from flwr.app import Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        begun_s = time.monotonic()
        work_s = worked_s(str(message.content["config"]["work"]))
        metrics = MetricRecord({"num-examples": 1, "begun_s": begun_s, "work_s": work_s})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    return app


def server_app(clients: int, rounds: int, work: str) -> ServerApp:
    """FedAvg over all clients, which tells of every round when its average is made."""
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    class TimedFedAvg(FedAvg):  # type: ignore[misc]
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            answers = [reply.content["metrics"] for reply in replies if reply.has_content()]
            average = super().aggregate_train(server_round, replies)
            tell(
                number=server_round,
                first_call_s=min(float(answer["begun_s"]) for answer in answers),
                end_s=time.monotonic(),
                clients=len(answers),
                work_s=sum(float(answer["work_s"]) for answer in answers),
            )
            return average

    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        # Flower registers clients while its server app already runs: without the two minima the first round may have
        # fewer of them.
        strategy = TimedFedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        arrays = ArrayRecord([np.zeros(PARAMETERS, np.float32)])
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds, train_config=ConfigRecord({"work": work}))

    return app


if __name__ == "__main__":
    # Not this module's own functions: what lives in `__main__` is pickled by value in every message.
    from flower_app import main as run_app  # type: ignore[import-not-found,unused-ignore]

    run_app()
