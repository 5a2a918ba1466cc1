"""One training loop for all stages.

A stage is a network, a loss(network, batch, generators) that names its parts, a save(network,
folder), and a preview(network) that may draw something. The engine knows nothing else of it.

Everything random is a function of the run's seed and of global sample positions, so that a run that
was stopped and resumed is the run that never stopped.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from unclip.diffusion.noise import child_generators
from unclip_train.averages import Averages
from unclip_train.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    pack_optimizer,
    remove_old,
    replace_folder,
    save_checkpoint,
    unpack_optimizer,
)
from unclip_train.config import ConfigError, StageConfig, save_config
from unclip_train.data.loader import PositionSampler, make_loader
from unclip_train.identity import config_hash
from unclip_train.log import Log
from unclip_train.optimizer import make_optimizer, set_learning_rate
from unclip_train.processes import Agreement, make_accelerator
from unclip_train.signals import Interrupted, Stopped, StopSignals

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

    def preview(self, network: nn.Module) -> Image.Image | None:
        """A picture of what the network can do by now, or nothing."""


class Engine:
    """Trains a stage from its newest checkpoint, or from the start, to its last step."""

    def __init__(self, stage: Stage, dataset: Dataset, config: StageConfig):
        self.stage, self.dataset, self.config, self.run = stage, dataset, config, config.run
        self.folder = Path(config.output)
        self.accelerator = make_accelerator(self.run.precision)
        self.agreement = Agreement(self.accelerator.num_processes)
        self.signals = StopSignals(ECHO_S if self.accelerator.num_processes > 1 else 0.0)
        network = stage.network.to(memory_format=torch.channels_last).train()
        optimizer = make_optimizer(network, config.optimizer)
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.averages = Averages(self.bare_network, list_decays(self.run.ema_decay))
        self.forward = torch.compile(self.network) if self.run.compile else self.network
        self.step = self.saved_step = 0
        self.num_skipped = self.skipped_in_a_row = 0
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
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.folder / "run.yaml")
        is_main = self.accelerator.is_main_process
        log = Log(self.folder, self.step, self.run.batch_size, is_main)
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
            while self.step < self.run.steps:
                log.add(self.update(batches), self.waited_s)
                self._mark(log)
        except Interrupted:
            self.optimizer.zero_grad(set_to_none=True)
            if self.saved_step != self.step:
                self.save()
            raise Stopped(self.signals.number, self.step) from None

    def update(self, batches) -> dict[str, float]:
        """One step of the optimizer over all micro-batches of an update.

        Returns what the loss names, averaged over micro-batches and processes, and the gradient's
        norm; nothing where the update was skipped because one of them is not finite.
        """
        self._seed_dropout()
        set_learning_rate(self.optimizer, self.config.optimizer, self.step, self.run.steps)
        count, sums, self.waited_s = self.run.gradient_accumulation, {}, 0.0
        for number in range(1, count + 1):
            batch = self._next(batches)
            generators = child_generators(
                batch["position"], f"train/{self.stage.name}/{self.run.seed}"
            )
            last = contextlib.nullcontext() if number == count else self._without_sync()
            with last, self.accelerator.autocast():
                parts = self.stage.loss(self.forward, batch, generators)
                self.accelerator.backward(parts["loss"] / count)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / count
        sums["grad_norm"] = self._clip_gradients()
        return self._step(self._shared(sums))

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

    def _without_sync(self):
        """Gradients stay in this process until the last micro-batch."""
        return self.accelerator.no_sync(self.network)

    def _clip_gradients(self) -> Tensor:
        limit = self.config.optimizer.clip_norm or math.inf
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
            scaler.update()  # fp16: a smaller factor, until gradients fit
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
        if self.run.preview_every and (self.step % self.run.preview_every == 0 or last):
            self.preview()

    def _log(self, log: Log) -> None:
        means = log.means(self.step)
        means["lr"] = self.optimizer.param_groups[0]["lr"]
        means["skipped"] = self.num_skipped
        log.write(self.step, means)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.report(f"step {self.step}/{self.run.steps}  {shown}")

    def save(self) -> None:
        """Write a checkpoint, and an averaged network as the run's model."""
        if self.accelerator.is_main_process:
            tensors = {
                "network": self.bare_network.state_dict(),
                **{self._ema_stem(d): self.averages.tensors(d) for d in self.averages.means},
                "optimizer": pack_optimizer(self.optimizer),
            }
            for stem, named in tensors.items():
                bad = [name for name, tensor in named.items() if not torch.isfinite(tensor).all()]
                if bad:
                    raise FloatingPointError(
                        f"{self.stage.name}: {stem} {bad[0]} is not finite at step {self.step}"
                    )
            checkpoints = self.folder / "checkpoints"
            save_checkpoint(checkpoints, self.step, tensors, **self._facts())
            remove_old(checkpoints, self.run.keep_checkpoints)
            staged = self.folder / ".staged-model"
            shutil.rmtree(staged, ignore_errors=True)
            with self.averages.applied(self.run.export_ema):
                self.stage.save(self.bare_network, staged)
            replace_folder(staged, self.folder / "model")
        self.saved_step = self.step
        self.agreement.wait()

    def _facts(self) -> dict:
        """What a checkpoint's manifest says of the run beside its tensors."""
        scaler = self.accelerator.scaler
        return {
            "config": config_hash(self.config),
            "position": self.step * self.run.batch_size,  # of the next sample; it keys all draws
            "seed": self.run.seed,
            "averaged": self.averages.num_updates,
            "skipped": self.num_skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _ema_stem(self, decay: float) -> str:
        """File of an average: ema for the first, ema-0.999 for another."""
        return "ema" if decay == self.averages.first else f"ema-{decay:g}"

    def preview(self) -> None:
        """Write previews/step-NNNNNNNN.png, drawn by the averaged network."""
        if self.accelerator.is_main_process:
            with self.averages.applied() as network, torch.no_grad(), self.signals.droppable():
                picture = self.stage.preview(network)
            if picture is not None:
                (self.folder / "previews").mkdir(exist_ok=True)
                picture.save(self.folder / "previews" / f"step-{self.step:08d}.png")

    def _resume(self) -> None:
        path = newest_checkpoint(self.folder / "checkpoints")
        if path is None:
            return
        manifest, tensors = load_checkpoint(path)
        if manifest["config"] != config_hash(self.config):
            raise ConfigError(
                f"output: {self.folder} holds a run with another configuration; give another "
                "output, or begin from its weights with init=" + str(self.folder / "model")
            )
        self.bare_network.load_state_dict(tensors["network"])
        unpack_optimizer(self.optimizer, tensors["optimizer"])
        for decay in self.averages.means:
            for name, mean in self.averages.tensors(decay).items():
                mean.copy_(tensors[self._ema_stem(decay)][name])
        self.step = self.saved_step = manifest["step"]
        self.averages.num_updates = manifest.get("averaged", self.step)
        self.num_skipped = manifest.get("skipped", 0)
        self.skipped_in_a_row = manifest.get("skipped_in_a_row", 0)
        if self.accelerator.scaler is not None and manifest.get("scaler"):
            self.accelerator.scaler.load_state_dict(manifest["scaler"])
        self.report(f"resumed from {path}")

    def report(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.accelerator.is_main_process:
            print(f"{self.stage.name}: {line}", flush=True)


def list_decays(decay: float | list[float]) -> list[float]:
    """run.ema_decay as a list of different decays in [0, 1]."""
    return list(dict.fromkeys(decay if isinstance(decay, list) else [decay]))
