"""What a run tells of itself: lines on the terminal and in log.jsonl, curves in tensorboard."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path


class Log:
    """Means over the updates since the last line.

    Args:
        folder: of the run.
        first_step: the update before the first that is added.
        batch_size: samples of an update.
        is_main: whether this process writes; the others only count.
    """

    def __init__(self, folder: Path, first_step: int, batch_size: int, is_main: bool = True):
        self.first_step, self.batch_size = first_step, batch_size
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.waited_s = 0.0
        self.started = time.perf_counter()
        self.file = self.board = None
        if is_main:
            self.file = (folder / "log.jsonl").open("a")
            self.board = open_tensorboard(folder / "tensorboard")

    def add(self, values: dict[str, float], waited_s: float = 0.0) -> None:
        """Take one update's values, and how long it waited for its data."""
        self.waited_s += waited_s
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, step: int) -> dict[str, float]:
        """Means since the last call, samples a second, and the share of time spent on waiting."""
        seconds = time.perf_counter() - self.started
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        means["images_per_s"] = (step - self.first_step) * self.batch_size / seconds
        means["data_wait"] = self.waited_s / seconds
        self.first_step, self.sums, self.counts = step, {}, {}
        self.waited_s, self.started = 0.0, time.perf_counter()
        return means

    def write(self, step: int, values: dict[str, float]) -> None:
        """A line of log.jsonl, and points on the curves."""
        if self.file is None:
            return
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        except OSError as error:
            raise OSError(f"cannot write {self.file.name}: {error.strerror}") from error
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files; that the disk was full has been said where it was found."""
        for file in (self.file, self.board):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


def open_tensorboard(folder: Path):
    """A tensorboard writer, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
