"""SIGTERM and SIGINT: what must not be cut is finished, the rest dropped, all is saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal asked the run to stop; everything is saved."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}, saved"
        )
        self.exit_code = 128 + signal_number


class Interrupted(BaseException):
    """Work that may be dropped is dropped; no except Exception on the way holds it up."""


class StopSignals:
    """Within this context the first signal is noted, and the second ends the process at once.

    Args:
        echo_s: a launcher passes on the signal that its terminal has sent already; repeats within
            so many seconds count as one.
    """

    def __init__(self, echo_s: float = 0.0):
        self.number, self.echo_s = 0, echo_s
        self._noted_at = 0.0
        self._is_droppable = False
        self._handlers: dict = {}

    def __enter__(self) -> StopSignals:
        self._handlers = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """Work that changes nothing: a signal, noted before or arriving now, raises Interrupted."""
        self._is_droppable = True
        try:
            if self.number:
                raise Interrupted
            yield
        finally:
            self._is_droppable = False

    def _note(self, number: int, frame) -> None:
        if self.number:
            if time.monotonic() - self._noted_at >= self.echo_s:
                os._exit(128 + number)
            return
        self.number, self._noted_at = number, time.monotonic()
        if self._is_droppable:
            raise Interrupted
