"""The errors of hsee-ray. Each message is one line that names the thing and the remedy.

The entry points turn `UserError` into exit code 2 and `RunError` into exit code 1.
"""

from __future__ import annotations

import re

NO_TEXT = "it is no UTF-8 text in one line"
_NONE_OF_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8, in one line: bytes of names that are none become lone surrogates."""
    return _NONE_OF_TEXT.search(value) is None


def on_one_line(text: str) -> str:
    """The text with escapes for what would break a line or a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class HseeError(Exception):
    """Base of every error that hsee-ray raises on purpose."""

    def __str__(self) -> str:
        """The message in one line that every terminal can show, whatever names of the user's are in it."""
        return on_one_line(super().__str__())


class UserError(HseeError):
    """Something that the user gave cannot be used; nothing has been trained or written."""


class ConfigError(UserError):
    """A configuration value is missing, unknown or out of range."""


class DataError(UserError):
    """A data set is missing, damaged or does not fit the configuration."""


class ResourceError(UserError):
    """The cluster can never give what the configuration asks for."""


class RunError(HseeError):
    """A run that had started and then failed."""


class TakenOverError(RunError):
    """Another process goes on with the run; this one must not touch it any more."""


class Interrupted(HseeError):
    """The run was asked to stop, and has; everything up to its last whole round is in a checkpoint."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class NonFiniteError(RunError):
    """A loss that is NaN or infinite."""


class ClientError(RunError):
    """A client or its server failed: says who, when and at which stage."""

    def __init__(self, who: str, round_number: int, stage: str, reason: str) -> None:
        super().__init__(f"{who} failed in round {round_number} while it did `{stage}`: {reason}")
        self.who = who
        self.round_number = round_number
        self.stage = stage
        self.reason = reason

    def __reduce__(self) -> tuple[type[ClientError], tuple[str, int, str, str]]:
        return ClientError, (self.who, self.round_number, self.stage, self.reason)


def first_line(error: BaseException) -> str:
    """Kind of an error of foreign code, and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
