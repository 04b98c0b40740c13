"""Options that several jobs have, and what is checked of options before any work."""

from __future__ import annotations

import argparse
from pathlib import Path

from hsee_ray.errors import ConfigError
from hsee_ray.paths import expanded


def user_path(text: str) -> Path:
    """Type of an option that is a path: with ~ and $VAR expanded."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


Options = argparse.ArgumentParser | argparse._ArgumentGroup
"""A parser, or a group of it."""


def job_parser(name: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of `hsee NAME`; its texts are shown as they are written."""
    return argparse.ArgumentParser(
        prog=f"hsee {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(parser: Options, required: bool = False) -> None:
    parser.add_argument("--config", type=user_path, required=required, metavar="FILE", help="YAML file (jobs/configs/)")


def add_overrides(parser: Options, text: str = "as in hsee train") -> None:
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="a.b.c=value", help=text)


def add_run(parser: Options, required: bool = True) -> None:
    text = "directory of a finished run"
    parser.add_argument("--run", type=user_path, required=required, metavar="RUN_DIR", help=text)


def add_in_process(parser: Options) -> None:
    text = "compute in this process, without Ray: the same bits, and a small run starts at once"
    parser.add_argument("--in-process", action="store_true", help=text)


def at_least(options: object, **least: int) -> None:
    """Raises ConfigError when an option, or one of a list of them, is smaller than it may be."""
    for name, bound in least.items():
        given = getattr(options, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < bound:
                raise ConfigError(f"--{name.replace('_', '-')}: give at least {bound}")


def check_writable(**outputs: Path | None) -> None:
    """Raises ConfigError, before any work, for an output whose directory is not there."""
    for name, path in outputs.items():
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"--{name} {path}: there is no directory {path.parent}; make it, or name another file")
