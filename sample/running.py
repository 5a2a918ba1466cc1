"""How a command ends: its exit status, and one line for what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from unclip_sample.outputs import OutputError
from unclip_sample.request import RequestError


def exit_status(program: str, work: Callable[[], int], debug: bool) -> int:
    """What work returns; 2 for the user's fault, 1 for a run that failed, 130 for Ctrl-C.

    An error becomes one line on stderr, the program's name first; with debug it is raised.
    """
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"{program}: {line}", file=sys.stderr)
        return 2 if isinstance(error, RequestError | OutputError) else 1
