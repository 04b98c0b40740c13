"""`python -m jobs.export --run RUN_DIR --out DIR`: a trained run as files for devices and servers, or `hsee export`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.options import add_run, user_path
from jobs.outcome import exit_code

if TYPE_CHECKING:
    from hsee_ray.deploy.export import Export

DESCRIPTION = """\
Write a bundle for each client of a finished run: its part as ONNX, and its server's part as ONNX and as a torch.export
program. The exit's tau and temperature are those of `hsee calibrate`, unless --tau says otherwise.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hsee export", description=DESCRIPTION)
    add_run(parser)
    parser.add_argument("--out", type=user_path, required=True, metavar="DIR", help="new or empty directory")
    parser.add_argument("--tau", type=float, metavar="T", help="from 0 to 1: a client answers where it is surer than T")
    options = parser.parse_args(argv)
    return exit_code(lambda: _export_and_print(options))


def _export_and_print(options: argparse.Namespace) -> int:
    from hsee_ray.deploy.export import export
    from hsee_ray.evaluation.advice import of_calibration, warnings
    from hsee_ray.evaluation.calibration import calibration_of
    from hsee_ray.rundir.run import load_run

    run = load_run(options.run)
    text = describe(export(run, options.out, options.tau), options.out)
    calibration = None if options.tau is not None else calibration_of(run)
    print(text if calibration is None else text + warnings(of_calibration(calibration)))
    return 0


def describe(exported: Export, out: Path) -> str:
    """One line per client, and what all of it takes."""
    from hsee_ray.rundir.tables import NONE, align

    rows = [["client", "tier", "cut", "tau", "device bytes", "server graph bytes"]]
    for client in exported.clients:
        spec, graph_bytes = client.spec, client.server_graph_bytes
        tau = f"{client.gate.tau:.4f}" if spec.has_server else NONE
        graph = NONE if graph_bytes is None else f"{graph_bytes:,}"
        rows.append([spec.client_file, spec.tier, spec.cut_name, tau, f"{client.device_bytes:,}", graph])
    left_out = [f"{spec.client_file}: left out, it was never trained" for spec in exported.left_out]
    total = f"{exported.total_bytes:,} bytes in {out}, of which {exported.shared_bytes:,} are server weights"
    return "\n".join([align(rows), *left_out, total])


if __name__ == "__main__":
    sys.exit(main())
