"""One training loop for all stages.

A stage is a network, a loss(network, batch, generators) that names its parts, a save(network,
folder), a validate(network, batches) that measures, and a preview(network) that may draw something.
The engine knows nothing else of it.

Everything random is a function of the run's seed and of global sample positions, so that a run that
was stopped and resumed is the run that never stopped.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from unclip.diffusion.noise import child_generators
from unclip_train.averages import Averages, list_decays
from unclip_train.config import StageConfig, save_config
from unclip_train.data.loader import PositionSampler, make_loader, split_batch
from unclip_train.keeper import Keeper
from unclip_train.log import Log
from unclip_train.memory import OutOfMemory, checkpoint_gradients
from unclip_train.monitor import Monitor
from unclip_train.optimizer import set_learning_rate
from unclip_train.processes import Agreement, known_precision, make_accelerator, place
from unclip_train.sharding import average_whole_gradients, clip_gradients, is_sharded
from unclip_train.signals import Interrupted, Stopped, StopSignals
from unclip_train.state import weightless_copy
from unclip_train.trackers import named_trackers

MAX_SKIPPED_IN_A_ROW = 10
ECHO_S = 1.0  # within which a launcher repeats the terminal's signal


class Stage(Protocol):
    """What the engine asks of a stage."""

    name: str
    network: nn.Module

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Scalars by name; "loss" is the one to minimise."""

    def save(self, network: nn.Module, folder: Path) -> None:
        """Write the trained network so that a pipeline can load it."""

    def validate(self, network: nn.Module, batches: Iterable[dict]) -> dict[str, float]:
        """Figures of held-out samples by name, the same for the same weights."""

    def preview(self, network: nn.Module) -> Image.Image | None:
        """A picture of what the network can do by now, or nothing."""


class Engine:
    """Trains a stage from its newest checkpoint, or from the start, to its last step."""

    def __init__(
        self,
        stage: Stage,
        dataset: Dataset,
        config: StageConfig,
        held_out: Dataset | None = None,
    ):
        self.stage, self.dataset, self.config = stage, dataset, config
        self.run = replace(config.run, precision=known_precision(config.run.precision))
        self.folder = Path(config.output)
        self.accelerator = make_accelerator(self.run.precision)
        self.agreement = Agreement(self.accelerator.num_processes)
        self.signals = StopSignals(ECHO_S if self.accelerator.num_processes > 1 else 0.0)
        network = stage.network.train()
        if self.run.gradient_checkpointing:
            checkpoint_gradients(network)
        blank = weightless_copy(network)
        self.network, self.optimizer = place(network, config.optimizer, self.accelerator)
        self.averages = Averages(self.bare_network, list_decays(self.run))
        self.forward = torch.compile(self.network) if self.run.compile else self.network
        self.keeper = Keeper(
            *(stage, config, self.bare_network, blank, self.optimizer, self.averages),
            *(self.accelerator, self.agreement),
        )
        self.trackers = named_trackers(self.run.tracker)
        self.monitor = Monitor(
            *(stage, self.run, held_out, self.bare_network, self.averages),
            *(self.accelerator, self.signals),
        )
        self.step = self.num_skipped = self.skipped_in_a_row = 0
        self.parts = 1  # of each micro-batch; more when memory did not suffice
        self.waited_s = 0.0  # for data, in the update of now
        self._resume()

    @property
    def bare_network(self) -> nn.Module:
        """The network without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.network)

    def train(self) -> None:
        """Run every update that is left.

        Raises:
            FloatingPointError: when no loss or gradient is finite any more.
            Stopped: after SIGTERM or SIGINT, with everything saved.
        """
        if self.step >= self.run.steps:
            self.report(f"{self.folder} has all its {self.run.steps} steps")
            if self.run.export_ema is not None or not (self.folder / "model").exists():
                self.keeper.export()
                self.report(f"wrote {self.folder / 'model'}")
            return
        if (count := self.accelerator.num_processes) > 1:
            self.report(f"{'weights in shards over ' * is_sharded(self.network)}{count} processes")
        if self.config.run.precision != self.run.precision:
            self.report(f"run.precision={self.config.run.precision}: {self.run.precision} here")
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.folder / "run.yaml")
        is_main = self.accelerator.is_main_process
        log = Log(self.folder, self.step, self.run.batch_size, is_main, self.trackers)
        try:
            with self.signals:
                self._run(iter(make_loader(*self._share(), self.config.data.workers)), log)
        finally:
            log.close()
        self.report(f"done: {self.folder / 'model'}")

    def _share(self) -> tuple[Dataset, PositionSampler]:
        """The data, and which of it this process reads."""
        return self.dataset, PositionSampler(
            self.run.batch_size,
            self.step,
            self.run.steps,
            self.run.gradient_accumulation,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )

    def _run(self, batches, log: Log) -> None:
        """Update until the last step, or until a signal is agreed on."""
        try:
            with log.apart():
                self.monitor.measure(self.dataset)
            if self.step == 0:
                self._look(log)
            while self.step < self.run.steps:
                log.add(self.update(batches), self.waited_s)
                self._mark(log)
        except Interrupted:
            self.optimizer.zero_grad(set_to_none=True)
            if self.keeper.saved_step != self.step:
                self.save()
            raise Stopped(self.signals.number, self.step) from None

    def update(self, batches) -> dict[str, float]:
        """One step of the optimizer over all micro-batches of an update.

        Returns what the loss names, averaged over micro-batches and processes, and the gradient's
        norm; nothing where the update was skipped because one of them is not finite.

        Raises:
            OutOfMemory: saying what helps; with run.halve_on_oom, only when that did not.
        """
        set_learning_rate(self.optimizer, self.config.optimizer, self.step, self.run.steps)
        self.waited_s, read = 0.0, []
        while True:
            try:
                return self._step(self._shared(self._accumulate(batches, read)))
            except torch.OutOfMemoryError as error:
                reason = str(error)
            self._halve(reason)  # here the error's trace no longer holds what was computed

    def _accumulate(self, batches, read: list[dict]) -> dict[str, Tensor]:
        """Gradients of an update, and means of what the loss names over its micro-batches."""
        self._seed_dropout()
        count, sums = self.run.gradient_accumulation * self.parts, {}
        for number, batch in enumerate(self._micro_batches(batches, read), start=1):
            generators = child_generators(
                batch["position"], f"train/{self.stage.name}/{self.run.seed}"
            )
            with self._sync(number == count), self.accelerator.autocast():
                parts = self.stage.loss(self.forward, batch, generators)
                self.accelerator.backward(parts["loss"] / count)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / count
        return sums | {"grad_norm": self._clip_gradients()}

    def _micro_batches(self, batches, read: list[dict]) -> Iterator[dict]:
        """Those of an update, cut into self.parts; read keeps them should they be needed again."""
        for number in range(self.run.gradient_accumulation):
            if number == len(read):
                read.append(self._next(batches))
            yield from split_batch(read[number], self.parts)

    def _halve(self, reason: str) -> None:
        """Cut micro-batches in two, from this update on; the effective batch stays."""
        self.optimizer.zero_grad(set_to_none=True)
        num_processes = self.accelerator.num_processes
        size = self.run.batch_size // (num_processes * self.run.gradient_accumulation * self.parts)
        if not self.run.halve_on_oom or num_processes > 1 or size % 2:
            raise OutOfMemory(self.stage.name, self.step + 1, size, self.run, reason)
        self.parts *= 2
        torch.cuda.empty_cache()
        self.report(f"out of memory in step {self.step + 1}: micro-batches of {size // 2} from now")

    def _seed_dropout(self) -> None:
        """Dropout is a function of the step, and another in every process."""
        rank = self.accelerator.process_index
        stream = f"dropout/{self.run.seed}" + (f"/{rank}" if rank else "")
        torch.manual_seed(child_generators([self.step], stream)[0].initial_seed())

    def _next(self, batches) -> dict:
        """The next micro-batch, unless a signal has come to any process by now."""
        started, batch = time.perf_counter(), None
        with contextlib.suppress(Interrupted), self.signals.droppable():
            batch = next(batches)
        self.waited_s += time.perf_counter() - started
        self.signals.number = self.agreement.largest(self.signals.number)
        if self.signals.number:
            raise Interrupted
        return batch

    def _sync(self, is_last: bool):
        """Gradients stay in their process until the last micro-batch."""
        if is_sharded(self.network):
            self.network.set_requires_gradient_sync(is_last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.network)

    def _clip_gradients(self) -> Tensor:
        limit = self.config.optimizer.clip_norm or math.inf
        if is_sharded(self.network):
            average_whole_gradients(self.network)
            self.accelerator.unscale_gradients()
            return clip_gradients(self.network, limit)
        return self.accelerator.clip_grad_norm_(self.network.parameters(), limit)

    def _shared(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Means over the processes, the same in each, so that all decide alike."""
        values = self.accelerator.reduce(torch.stack(list(sums.values())), reduction="mean")
        return dict(zip(sums, values.tolist(), strict=True))

    def _step(self, values: dict[str, float]) -> dict[str, float]:
        """Step and average, or skip where the loss or its gradient is not finite."""
        is_finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if is_finite:
            self.optimizer.step()
            self.averages.update()
            self.skipped_in_a_row = 0
        else:
            self._skip(values)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return values if is_finite else {}

    def _skip(self, values: dict[str, float]) -> None:
        """Count an update that is not made; too many in a row end the run."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.update(scaler.get_scale() * scaler.get_backoff_factor())  # until gradients fit
        self.num_skipped += 1
        if scaler is None or scaler.get_scale() <= 1 or not math.isfinite(values["loss"]):
            self.skipped_in_a_row += 1
        first = self.step * self.run.batch_size
        self.report(
            f"step {self.step + 1} skipped: loss {values['loss']:.4g}, gradient "
            f"{values['grad_norm']:.4g} at positions {first} to {first + self.run.batch_size - 1}"
        )
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"{self.stage.name}: loss or gradient was not finite in {MAX_SKIPPED_IN_A_ROW} "
                f"updates in a row, the last of them step {self.step + 1}; resume from the last "
                "checkpoint with a lower optimizer.lr or run.precision=no"
            )

    def _mark(self, log: Log) -> None:
        """Log, save and draw, when it is time to."""
        last = self.step == self.run.steps
        if self.step % self.run.log_every == 0 or last:
            self._log(log)
        if self.step % self.run.save_every == 0 or last:
            self.save()
        self._look(log)

    def _look(self, log: Log) -> None:
        """Measure on held-out samples and draw, when it is time to.

        A signal ends that; before the next update all processes hear of it.
        """
        with log.apart(), contextlib.suppress(Interrupted):
            if self.monitor.is_time_to_validate(self.step) and (figures := self.monitor.figures()):
                log.write(self.step, figures)
                self._tell(figures)
            if self.monitor.is_time_to_preview(self.step) and (sheet := self.monitor.preview()):
                log.show(self.step, sheet)

    def _tell(self, values: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.report(f"step {self.step}/{self.run.steps}  {shown}")

    def _log(self, log: Log) -> None:
        means = log.means(self.step)
        means["lr"] = self.optimizer.param_groups[0]["lr"]
        means["skipped"] = self.num_skipped
        means |= self.monitor.speed(means["images_per_s"])
        log.write(self.step, means)
        self._tell(means)

    def save(self) -> None:
        """Write a checkpoint, and an averaged network as the run's model."""
        counts = {"skipped": self.num_skipped, "skipped_in_a_row": self.skipped_in_a_row}
        self.keeper.save(self.step, **counts)

    def _resume(self) -> None:
        manifest = self.keeper.resume()
        if manifest is None:
            return
        self.step = manifest["step"]
        self.num_skipped = manifest.get("skipped", 0)
        self.skipped_in_a_row = manifest.get("skipped_in_a_row", 0)
        self.report(f"resumed from {manifest['path']}")

    def report(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.accelerator.is_main_process:
            print(f"{self.stage.name}: {line}", flush=True)
