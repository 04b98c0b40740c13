"""The console command `hsee`: one subcommand for each job."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "train a configuration",
    "chaos": "train while actors are killed, and compare the weights",
    "bench": "measure what snapshots cost",
    "compare": "one table over several finished runs",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the arguments to the subcommand's own `main`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a network of the user's own may lie here
    if arguments and arguments[0] in COMMANDS:
        code: int = import_module(f"jobs.{arguments[0]}").main(arguments[1:])
        return code
    width = max(len(name) for name in COMMANDS)
    usage = "\n".join(f"  hsee {name:<{width}}  {text}" for name, text in COMMANDS.items())
    text = f"usage: hsee COMMAND [options]\n\n{usage}\n\n`hsee COMMAND --help` explains each."
    if arguments and arguments[0] in ("-h", "--help"):
        print(text)
        return 0
    wrong = f"error: hsee has no command {arguments[0]!r}\n" if arguments else ""
    print(f"{wrong}{text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
