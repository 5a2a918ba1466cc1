"""What a run tells of itself: lines of log.jsonl, curves and pictures in trackers."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from unclip_train.trackers import Trackers


class Log:
    """Means over the updates since the last line.

    Args:
        folder: of the run.
        first_step: the update before the first that is added.
        batch_size: samples of an update.
        is_main: whether this process writes; the others only count.
        trackers: names of those that are given the same, see trackers.py.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        batch_size: int,
        is_main: bool = True,
        trackers: Iterable[str] = (),
    ):
        self.folder, self.first_step, self.batch_size = folder, first_step, batch_size
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.waited_s = 0.0
        self.started = time.perf_counter()
        self.file = self.trackers = None
        if is_main:
            self.file = (folder / "log.jsonl").open("a")
            self.trackers = Trackers(trackers, folder)

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
        self.trackers.write(step, values)

    def show(self, step: int, picture: Image.Image) -> None:
        """A preview: a file, and a picture in the trackers."""
        if self.file is None:
            return
        (self.folder / "previews").mkdir(exist_ok=True)
        picture.save(self.folder / "previews" / f"step-{step:08d}.png")
        self.trackers.show(step, "preview", picture)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Time that is spent on something else than learning."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began

    def close(self) -> None:
        """Close the files; that the disk was full has been said where it was found."""
        for file in (self.file, self.trackers):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
