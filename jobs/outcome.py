"""Exit codes of the jobs: errors become one line on stderr, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


def exit_code(job: Callable[[], int]) -> int:
    """Exit code: the job's own; 1 for a failed run, 2 for bad input, 128 + the signal for a stopped run."""
    from hsee_ray.errors import Interrupted, RunError, UserError

    try:
        return job()
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return 128 + interrupted.signal_number
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # A full disk, a directory that may not be written: the message names it.
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
