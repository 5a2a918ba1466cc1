"""What a run shows of itself while it learns: held-out figures, previews, and how fast it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from unclip_train.averages import Averages
from unclip_train.config import RunConfig
from unclip_train.data.loader import collate
from unclip_train.sharding import is_sharded
from unclip_train.signals import StopSignals
from unclip_train.throughput import Throughput, count_flops, measure_matmul, peak_memory_gb
from unclip_train.validation import HeldOut

SAMPLES_OF_FLOPS = 2


class Monitor:
    """Looks at a network without changing it; what is not sharded, the main process looks at alone.

    Args:
        stage: its validate() and its preview().
        run: that part of the config.
        held_out: what is never learned from, where anything is.
        network, averages: of the run.
        accelerator: the processes.
        signals: a signal ends looking at once where it can.
    """

    def __init__(
        self,
        stage,
        run: RunConfig,
        held_out: Dataset | None,
        network: nn.Module,
        averages: Averages,
        accelerator: Accelerator,
        signals: StopSignals,
    ):
        self.stage, self.run, self.network, self.averages = stage, run, network, averages
        self.accelerator, self.signals = accelerator, signals
        self.held_out = None
        if held_out is not None and run.validate_every and len(held_out) > 1:
            pieces = accelerator.num_processes * run.gradient_accumulation
            size = max(1, run.batch_size // pieces)
            self.held_out = HeldOut(held_out, run.validation_samples, size)
        self.throughput: Throughput | None = None

    def is_time_to_validate(self, step: int) -> bool:
        """At the start, every run.validate_every updates, and at the end."""
        return self.held_out is not None and self._is_time(step, self.run.validate_every)

    def is_time_to_preview(self, step: int) -> bool:
        """At the start, every run.preview_every updates, and at the end."""
        return self._is_time(step, self.run.preview_every)

    def _is_time(self, step: int, every: int) -> bool:
        return bool(every) and (step % every == 0 or step == self.run.steps)

    def figures(self) -> dict[str, float]:
        """The stage's figures of held-out samples: of the average, and of the weights as they are.

        Names: "validation/loss", "validation_plain/loss", ...; nothing where this process does not
        look.
        """
        found = {}
        if self._looks:
            for name, looking in (("validation", self._average), ("validation_plain", self._plain)):
                with self._undisturbed(looking) as network:
                    figures = self.stage.validate(network, self.held_out)
                found |= {f"{name}/{key}": value for key, value in figures.items()}
        return found

    def preview(self) -> Image.Image | None:
        """What the averaged network draws; nothing in a process that does not look."""
        if not self._looks:
            return None
        with self._undisturbed(self._average) as network:
            return self.stage.preview(network)

    def measure(self, dataset: Dataset) -> None:
        """Count the work of learning from a sample, and time the device, once at the start."""
        if not self.run.measure_flops:
            return
        batch = collate([dataset[position] for position in range(SAMPLES_OF_FLOPS)])
        batch.pop("faults", None)
        flops = count_flops(self.stage, self.network, batch, self.accelerator.autocast)
        peak = 1e12 * self.run.peak_tflops
        peak = peak or measure_matmul(self.accelerator.device, self.run.precision)
        self.throughput = Throughput(flops, peak * self.accelerator.num_processes)

    def speed(self, samples_per_s: float) -> dict[str, float]:
        """Work a second and the share of the device's, where they are measured; peak memory."""
        work = self.throughput.of(samples_per_s) if self.throughput else {}
        return work | {"peak_memory_gb": peak_memory_gb(self.accelerator.device)}

    @property
    def _looks(self) -> bool:
        """Whether this process takes part: all that hold a shard do."""
        return self.accelerator.is_main_process or is_sharded(self.network)

    @contextlib.contextmanager
    def _undisturbed(self, looking) -> Iterator[nn.Module]:
        """The network, without gradients, in the run's precision."""
        droppable = contextlib.nullcontext if is_sharded(self.network) else self.signals.droppable
        with looking() as network, torch.no_grad(), self.accelerator.autocast():
            with droppable():
                yield network

    def _average(self):
        return self.averages.applied()

    @contextlib.contextmanager
    def _plain(self) -> Iterator[nn.Module]:
        self.network.eval()
        try:
            yield self.network
        finally:
            self.network.train()
