"""Serve an export's server parts over HTTP: `python -m jobs.serve --bundle DIR`, or `hsee serve --bundle DIR`."""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jobs.options import job_parser, user_path
from jobs.outcome import exit_code
from jobs.token_file import read_token

if TYPE_CHECKING:
    from actors.serving.application import Service

DESCRIPTION = """\
Answer the samples of which devices are not sure: the server parts of an export, as a Ray Serve application over HTTP.

One application serves all clients of a run. Features come as a binary body (hsee_ray/edge/protocol.py has the
format), and requests that are there at once are computed together. A wrong body gets a status of 4xx and one sentence.
"""
EXAMPLES = """\
examples:
  python -m jobs.serve --bundle bundles
  python -m jobs.serve --bundle bundles --replicas 1:4 --num-cpus 2 --host 0.0.0.0 --token-file token

  curl http://127.0.0.1:8000/ready        # the clients served, as soon as the models are there
  curl http://127.0.0.1:8000/-/healthz    # `success` while requests are taken

exit codes:
  1 the server failed    2 bad input (one line on stderr)    130, 143 ended by SIGINT (Ctrl-C), SIGTERM
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return exit_code(lambda: _serve(options))


def _serve(options: argparse.Namespace) -> int:
    from hsee_ray.deploy.server_models import find_bundles
    from hsee_ray.errors import ConfigError, Interrupted, RunError

    if not options.host.strip():
        raise ConfigError("--host is empty, which is every address: name one, such as 127.0.0.1 or 0.0.0.0")
    token = None if options.token_file is None else read_token(options.token_file)
    bundles = find_bundles(options.bundle)

    from actors.serving.application import serving

    if token is None and not is_loopback(options.host):
        print(
            f"warning: anyone who reaches {options.host} may ask; --token-file asks them for a token", file=sys.stderr
        )
    run = next(iter(bundles.values())).run
    clients = ", ".join(str(bundle.client) for bundle in bundles.values())
    with serving(bundles, _service(options, token)) as server:
        print(f"metrics, in Prometheus' format: {' '.join(server.metrics_urls())}")
        print(f"serving clients {clients} of {run} on {server.url} (Ctrl-C ends it)", flush=True)
        try:
            server.watch()
        except KeyboardInterrupt:
            raise Interrupted("the server has ended", signal.SIGINT) from None
    raise RunError("the server answers no more: Ray has died, or somebody has shut down Ray Serve")


def _service(options: argparse.Namespace, token: str | None) -> Service:
    from actors.serving.application import Service
    from actors.serving.http_handler import token_digest

    low, high = options.replicas
    return Service(
        host=options.host,
        port=options.port,
        min_replicas=low,
        max_replicas=high,
        num_cpus=options.num_cpus,
        num_gpus=options.num_gpus,
        max_batch_size=options.max_batch_size,
        batch_wait_s=options.batch_wait_ms / 1000,
        max_body_bytes=int(options.max_body_mib * (1 << 20)),
        token_digest=None if token is None else token_digest(token),
        address=options.address or os.environ.get("RAY_ADDRESS"),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def replica_bounds(text: str) -> tuple[int, int]:
    """`2` -> (2, 2), `1:4` -> (1, 4)."""
    low, _, high = text.partition(":")
    if low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low):
        return int(low), int(high or low)
    raise argparse.ArgumentTypeError(f"{text!r}: give a number from 1, or a smaller and a larger one such as 1:4")


def number(kind: Callable[[str], float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """A reader of options that are numbers within bounds."""

    def read(text: str) -> float:
        value = kind(text)
        if not (low <= value <= high and math.isfinite(value)):
            bounds = f"from {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text}: give a number {bounds}")
        return value

    read.__name__ = "number"
    return read


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("serve", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("--bundle", type=user_path, required=True, metavar="DIR", help="an export, or one client's directory in it")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=number(int, 0, 65535), default=8000, help="0 takes any free one (default: 8000)")
    add(
        "--replicas", type=replica_bounds, default=(1, 1), metavar="N|MIN:MAX", help="processes, or bounds (default: 1)"
    )
    add("--num-cpus", type=number(float, 0), default=1.0, metavar="N", help="of each replica (default: 1)")
    add("--num-gpus", type=number(float, 0), default=0.0, metavar="N", help="of each replica (default: 0)")
    add("--max-batch-size", type=number(int, 1), default=32, metavar="N", help="requests at once (default: 32)")
    add("--batch-wait-ms", type=number(float, 0), default=2.0, metavar="T", help="wait for others (default: 2)")
    add("--max-body-mib", type=number(float, 0.001), default=64.0, metavar="N", help="of a request (default: 64)")
    add("--token-file", type=user_path, metavar="FILE", help="answer those only who send the token in this file")
    add("--address", metavar="HOST:PORT", help="join this Ray cluster (default: a local Ray that ends with the server)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
