"""From positions to batches: every process reads its share of one endless numbered sequence."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from multiprocessing.synchronize import Event

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .sources.records import LEFT_OUT


class PositionSampler(Sampler[list[int]]):
    """Micro-batches of global sample positions for one process.

    Update s holds positions s * batch_size ... (s + 1) * batch_size - 1, whatever the number of
    processes: process r of w takes every w-th of them, beginning at r.

    Args:
        batch_size: samples of one update over all processes.
        first_step, last_step: updates to serve, the last excluded.
        micro_batches: into how many the share of a process is cut.
        rank, num_processes: which share.

    Raises:
        ValueError: when batch_size does not divide evenly.
    """

    def __init__(
        self,
        batch_size: int,
        first_step: int,
        last_step: int,
        micro_batches: int = 1,
        rank: int = 0,
        num_processes: int = 1,
    ):
        if batch_size % (num_processes * micro_batches):
            raise ValueError(
                f"run.batch_size {batch_size} must be a multiple of processes ({num_processes}) "
                f"times run.gradient_accumulation ({micro_batches})"
            )
        self.batch_size = batch_size
        self.steps = range(first_step, last_step)
        self.micro_batches = micro_batches
        self.rank = rank
        self.num_processes = num_processes

    def __len__(self) -> int:
        return len(self.steps) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        micro_size = self.batch_size // (self.num_processes * self.micro_batches)
        for step in self.steps:
            first = step * self.batch_size
            share = range(first + self.rank, first + self.batch_size, self.num_processes)
            for start in range(0, len(share), micro_size):
                yield list(share[start : start + micro_size])


class BadDataError(RuntimeError):
    """More of the data is broken than the configuration allows."""


class Batches:
    """Batches of a loader; broken samples, which others stood in for, are counted and named.

    Args:
        loader: of batches as collate makes them.
        max_bad_share: of the samples read, once 200 were; a dataset without faults gives None.
            Those that are left out for their size are not among the broken ones.
        closing: tells the workers that they may be ended.
    """

    MIN_READ = 200
    MAX_NAMED = 5  # of each reason

    def __init__(self, loader: DataLoader, max_bad_share: float | None, closing: Event):
        self.loader, self.max_bad_share, self.closing = loader, max_bad_share, closing
        self.faults: Counter[str] = Counter()
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        batches = iter(self.loader)
        try:
            yield from self._checked(batches)
        finally:  # workers end here and now, whatever they wait for
            self.closing.set()
            for worker in getattr(batches, "_workers", ()):
                worker.terminate()

    def _checked(self, batches: Iterator[dict]) -> Iterator[dict]:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if "Original Traceback" not in str(error):
                    raise
                raise told_by_worker(error) from None
            for found in batch.pop("faults", ()):
                self._count(found)
            self.num_read += len(batch["position"])
            self._check()
            yield batch

    def _count(self, found: list[tuple[str, str]]) -> None:
        self.num_read += len(found)
        for reason, name in found:
            self.faults[reason] += 1
            if self.faults[reason] <= self.MAX_NAMED:
                print(f"data: {name}: {reason}; another stands in for it", file=sys.stderr)

    def _check(self) -> None:
        broken = Counter({r: count for r, count in self.faults.items() if r not in LEFT_OUT})
        bad = broken.total()
        if self.max_bad_share is None or self.num_read < self.MIN_READ:
            return
        if bad > self.max_bad_share * self.num_read:
            reasons = ", ".join(f"{count} {reason}" for reason, count in broken.most_common())
            raise BadDataError(
                f"data: {bad} of {self.num_read} samples are broken ({reasons}), more than "
                f"data.max_bad_share {self.max_bad_share} allows; see unclip-data check"
            )


def make_loader(dataset: Dataset, sampler: PositionSampler, workers: int) -> Batches:
    """A loader whose batches depend on positions alone, however many workers prepare them."""
    closing = multiprocessing.Event()
    atexit.register(closing.set)  # before multiprocessing asks its children to end
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=partial(leave_signals_to_parent, closing) if workers else None,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # the global one, which dropout draws from, is left alone
    )
    return Batches(loader, getattr(dataset, "max_bad_share", None), closing)


def told_by_worker(error: Exception) -> BadDataError:
    """What a worker's error says on its last line; the whole is kept as a note."""
    text = str(error).strip()
    line = text.splitlines()[-1]
    failure = BadDataError(line.partition(": ")[2] or line)
    failure.add_note(text)
    error.__traceback__ = None  # it holds the loader's iterator
    return failure


def leave_signals_to_parent(closing: Event, worker: int) -> None:
    """A stopped run still needs its workers for the update in progress, until the parent ends."""

    def end(number, frame) -> None:
        if closing.is_set():
            os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def collate(samples: list[dict]) -> dict:
    """Stack tensors; leave captions, names and positions as lists."""
    return {
        key: torch.stack([sample[key] for sample in samples])
        if isinstance(samples[0][key], torch.Tensor)
        else [sample[key] for sample in samples]
        for key in samples[0]
    }


def split_batch(batch: dict, parts: int) -> list[dict]:
    """A batch in so many of equal size, in order; its size must be a multiple of parts."""
    size = len(batch["position"]) // parts
    return [
        {key: value[start : start + size] for key, value in batch.items()}
        for start in range(0, parts * size, size)
    ]


def to_unit_range(image: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 pictures [B, 3, S, S] in 0..255 to fp32 in [-1, 1] on the device."""
    return image.to(device, non_blocking=True).float() / 127.5 - 1
