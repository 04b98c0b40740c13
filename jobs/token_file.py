"""The secret that a server and its devices share, on one line of a file."""

from __future__ import annotations

from pathlib import Path

from hsee_ray.errors import UserError


def read_token(path: Path) -> str:
    """The token in a file. Raises UserError when there is none that a header could carry."""
    from hsee_ray.edge.protocol import is_token  # here, as --help needs no numpy

    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UserError(f"--token-file {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        token = ""
    if not is_token(token):
        raise UserError(f"--token-file {path}: holds no token; write one word of ASCII characters into it")
    return token
