"""The console command `hsee`: one subcommand for each job."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "train a configuration",
    "data": "look at a configuration's images before training",
    "chaos": "train while actors are killed, and compare the weights",
    "bench": "measure speed, overhead, scale, start-up, snapshots and serving, on this machine",
    "profile-device": "measure what the device that it runs on computes, holds and sends",
    "plan": "which cut for which device, what it costs, what it saves",
    "doctor": "see whether a cluster can give a run what it asks for",
    "init": "write a configuration for your data and your devices",
    "runs": "list runs, finished or not",
    "show": "print one run: how it stands, and what it has reached",
    "compare": "one table over several finished runs",
    "calibrate": "choose when exits are sure enough",
    "evaluate": "run the exits of a trained run for real",
    "export": "write a run as files for devices and servers",
    "edge": "answer images as a device does",
    "serve": "answer the samples that devices are not sure of",
}
PACKAGES = {
    "PIL": "pillow",
    "filelock": "filelock",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "ray": "ray",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "starlette": "ray[serve]",
    "tensorboard": "tensorboard",
    "torch": "torch",
    "torchvision": "torchvision",
    "urllib3": "urllib3",
    "yaml": "pyyaml",
}
"""Package names on pip of modules that an installation may lack."""


def main(argv: Sequence[str] | None = None) -> int:
    """Hands the arguments to the subcommand's own `main`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does: a network of the user's own may lie here
    if arguments and arguments[0] in COMMANDS:
        return _run(arguments[0], arguments[1:])
    width = max(len(name) for name in COMMANDS)
    usage = "\n".join(f"  hsee {name:<{width}}  {text}" for name, text in COMMANDS.items())
    text = f"usage: hsee COMMAND [options]\n\n{usage}\n\n`hsee COMMAND --help` explains each."
    if arguments and arguments[0] in ("-h", "--help"):
        print(text)
        return 0
    wrong = f"error: hsee has no command {arguments[0]!r}\n" if arguments else ""
    print(f"{wrong}{text}", file=sys.stderr)
    return 2


def _run(command: str, arguments: Sequence[str]) -> int:
    try:
        code: int = import_module(f"jobs.{command.replace('-', '_')}").main(arguments)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        remedy = f"pip install 'hsee-ray[{'edge' if command == 'edge' else 'train'}]'"
        print(f"error: hsee {command} needs {PACKAGES[error.name]}, which is not installed: {remedy}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
