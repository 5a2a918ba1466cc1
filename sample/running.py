"""How a command begins and ends: libraries that keep quiet, an exit status, one line for faults."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from unclip_sample.outputs import OutputError
from unclip_sample.request import RequestError


def quiet_libraries(offline: bool = True) -> None:
    """Keep libraries from the network and from stderr; to be called before they are imported."""
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for name in ("torchao", "torch.utils._pytree"):  # imported wherever torchao is installed
        logging.getLogger(name).setLevel(logging.ERROR)


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
