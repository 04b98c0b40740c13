"""`python -m jobs.bench WHAT`: what something costs, or how fast it is, on this machine.

Each is a module of `jobs.benches` with a DESCRIPTION, `add_options(parser)`, `measure(options)` and `render(result)`.
They import what is heavy only when they measure.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from jobs.benches import payload, serve, snapshots, transport
from jobs.benches.overhead import bench as overhead
from jobs.benches.peers import bench as peers
from jobs.benches.scale import bench as scale
from jobs.benches.startup import bench as startup
from jobs.benches.throughput import bench as throughput
from jobs.options import user_path
from jobs.outcome import exit_code

BENCHES = {
    "throughput": (throughput, "samples per second beside a plain loop and the limit of the cores"),
    "overhead": (overhead, "what the driver takes for each batch"),
    "transport": (transport, "gibibytes per second from actor to actor"),
    "scale": (scale, "time and memory with many clients in few actors"),
    "startup": (startup, "seconds until the first training step"),
    "payload": (payload, "bytes and accuracy of features by codec, and of images"),
    "peers": (peers, "Flower's simulation beside ours"),
    "snapshots": (snapshots, "what snapshots cost"),
    "serve": (serve, "how fast a server answers"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hsee bench", description="Measure what something costs, on this machine.")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (bench, text) in BENCHES.items():
        one = what.add_parser(name, help=text, description=bench.DESCRIPTION)
        bench.add_options(one)
        one.add_argument("--json", type=user_path, metavar="FILE", help="where the results are written too")
    options = parser.parse_args(argv)
    # Whatever a benchmark has started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return exit_code(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    """Prints what was measured; raises RunError when what was computed on the way is wrong."""
    from hsee_ray.errors import RunError
    from jobs.benches.common import machine, shown_machine, write_json

    bench, _ = BENCHES[options.what]
    result = bench.measure(options)
    found = machine()
    if options.json is not None:
        write_json(options.json, {"what": options.what, "machine": found, **result})
    print(bench.render(result))
    print(shown_machine(found))
    if "error" in result:
        raise RunError(result["error"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
