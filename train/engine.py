"""One training loop for all stages.

A stage is a network, a loss(network, batch, generators) that names its parts, a save(network,
folder), and a preview(network) that may draw something. The engine knows nothing else of it.

Everything random is a function of the run's seed and of global sample positions, so that a run that
was stopped and resumed is the run that never stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from unclip.diffusion.noise import child_generators
from unclip_train.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    pack_optimizer,
    remove_old,
    replace_folder,
    save_checkpoint,
    unpack_optimizer,
)
from unclip_train.config import (
    ConfigError,
    DataConfig,
    OptimizerConfig,
    StageConfig,
    save_config,
)
from unclip_train.data.loader import PositionSampler, make_loader


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


class Stopped(Exception):
    """A signal asked the run to stop; everything is saved."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}, saved"
        )
        self.exit_code = 128 + signal_number


class Engine:
    """Trains a stage from its newest checkpoint, or from the start, to its last step."""

    def __init__(self, stage: Stage, dataset: Dataset, config: StageConfig):
        self.stage, self.dataset, self.config, self.run = stage, dataset, config, config.run
        self.folder = Path(config.output)
        self.accelerator = Accelerator(
            mixed_precision=self.run.precision,
            gradient_accumulation_steps=self.run.gradient_accumulation,
            dataloader_config=DataLoaderConfiguration(),
            cpu=not torch.cuda.is_available(),
        )
        network = stage.network.to(memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(network, config.optimizer)
        self.ema = EMAModel(network.parameters(), decay=self.run.ema_decay)
        self.step = 0
        self.network, self.optimizer = self.accelerator.prepare(network, self.optimizer)
        self.ema.to(self.accelerator.device)
        self.forward = torch.compile(self.network) if self.run.compile else self.network
        self.signal_number = 0
        self._resume()

    @property
    def bare_network(self) -> nn.Module:
        """The network without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.network)

    def train(self) -> None:
        """Run every update that is left.

        Raises:
            FloatingPointError: when a loss or gradient is not finite; nothing of it is saved.
            Stopped: after SIGTERM or SIGINT, with everything saved.
        """
        if self.step >= self.run.steps:
            self.report(f"{self.folder} has all its {self.run.steps} steps")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.folder / "run.yaml")
        sampler = PositionSampler(
            self.run.batch_size,
            self.step,
            self.run.steps,
            self.run.gradient_accumulation,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        batches = iter(make_loader(self.dataset, sampler, self.config.data.workers))
        log = Log(self, self.step)
        handlers = {number: signal.signal(number, self._ask_to_stop) for number in STOP_SIGNALS}
        try:
            while self.step < self.run.steps:
                log.add(self.update(batches))
                self._mark(log)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            log.close()
        self.report(f"done: {self.folder / 'model'}")

    def update(self, batches) -> dict[str, float]:
        """One step of the optimizer over all micro-batches of an update."""
        torch.manual_seed(
            child_generators([self.step], f"dropout/{self.run.seed}")[0].initial_seed()
        )
        set_learning_rate(self.optimizer, self.config.optimizer, self.step, self.run.steps)
        sums: dict[str, float] = {}
        for _ in range(self.run.gradient_accumulation):
            batch = next(batches)
            generators = child_generators(
                batch["position"], f"train/{self.stage.name}/{self.run.seed}"
            )
            with self.accelerator.accumulate(self.network), self.accelerator.autocast():
                parts = self.stage.loss(self.forward, batch, generators)
                self.accelerator.backward(parts["loss"])
                if self.accelerator.sync_gradients:
                    parts["grad_norm"] = self._clip_gradients()
                    self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=True)
            for name, value in parts.items():
                count = 1 if name == "grad_norm" else self.run.gradient_accumulation
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / count
        self.step += 1
        self.ema.step(self.bare_network.parameters())
        return sums

    def _clip_gradients(self) -> Tensor:
        limit = self.config.optimizer.clip_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), limit)
        scaled = self.accelerator.scaler is not None  # fp16: the scaler skips such an update
        if not torch.isfinite(norm) and not scaled:
            raise FloatingPointError(
                f"{self.stage.name}: gradient is {float(norm)} at step {self.step}; resume from "
                "the last checkpoint with a lower optimizer.lr or run.precision=no"
            )
        return norm

    def _mark(self, log: Log) -> None:
        """Log, save and draw, when it is time to."""
        last = self.step == self.run.steps
        if self.step % self.run.log_every == 0 or last:
            log.write()
        if self.step % self.run.save_every == 0 or last or self.signal_number:
            self.save()
        if self.run.preview_every and (self.step % self.run.preview_every == 0 or last):
            self.preview()
        if self.signal_number and not last:
            raise Stopped(self.signal_number, self.step)

    def save(self) -> None:
        """Write a checkpoint, and the averaged network as the run's model."""
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return
        names = [name for name, _ in self.bare_network.named_parameters()]
        tensors = {
            "network": self.bare_network.state_dict(),
            "ema": dict(zip(names, self.ema.shadow_params, strict=True)),
            "optimizer": pack_optimizer(self.optimizer),
        }
        for stem, named in tensors.items():
            bad = [name for name, tensor in named.items() if not torch.isfinite(tensor).all()]
            if bad:
                raise FloatingPointError(
                    f"{self.stage.name}: {stem} {bad[0]} is not finite at step {self.step}"
                )
        checkpoints = self.folder / "checkpoints"
        save_checkpoint(checkpoints, self.step, tensors, config=config_hash(self.config))
        remove_old(checkpoints, self.run.keep_checkpoints)
        staged = self.folder / ".staged-model"
        shutil.rmtree(staged, ignore_errors=True)
        with Averaged(self):
            self.stage.save(self.bare_network, staged)
        replace_folder(staged, self.folder / "model")
        self.accelerator.wait_for_everyone()

    def preview(self) -> None:
        """Write previews/step-NNNNNNNN.png, drawn by the averaged network."""
        if self.accelerator.is_main_process:
            with Averaged(self), torch.no_grad():
                picture = self.stage.preview(self.bare_network)
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
        names = [name for name, _ in self.bare_network.named_parameters()]
        for name, shadow in zip(names, self.ema.shadow_params, strict=True):
            shadow.copy_(tensors["ema"][name])
        self.step = self.ema.optimization_step = manifest["step"]
        self.report(f"resumed from {path}")

    def _ask_to_stop(self, number: int, frame) -> None:
        if self.signal_number:  # the second signal does not wait
            os._exit(128 + number)
        self.signal_number = number

    def report(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.accelerator.is_main_process:
            print(f"{self.stage.name}: {line}", flush=True)


PICTURE_KEYS = (
    *("framing", "flip", "embeddings", "image_column", "caption_column", "split", "subset"),
    *("revision", "streaming", "shuffle_window", "min_side", "max_pixels", "leave_out"),
)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Averaged:
    """Within this context the network holds its averaged weights and is in evaluation mode."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def __enter__(self) -> None:
        network = self.engine.bare_network.eval()
        self.engine.ema.store(network.parameters())
        self.engine.ema.copy_to(network.parameters())

    def __exit__(self, *error) -> None:
        network = self.engine.bare_network.train()
        self.engine.ema.restore(network.parameters())


class Log:
    """Means since the last line: to the terminal, log.jsonl and tensorboard (if installed)."""

    def __init__(self, engine: Engine, first_step: int):
        self.engine, self.first_step, self.sums = engine, first_step, {}
        self.started = time.perf_counter()
        self.file = self.board = None
        if engine.accelerator.is_main_process:
            self.file = (engine.folder / "log.jsonl").open("a")
            self.board = open_tensorboard(engine.folder / "tensorboard")

    def add(self, values: dict[str, float]) -> None:
        """Take one update's values."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def write(self) -> None:
        """Write the means, the learning rate and the throughput in samples a second."""
        steps, seconds = self.engine.step - self.first_step, time.perf_counter() - self.started
        means = {name: value / steps for name, value in self.sums.items()}
        means["lr"] = self.engine.optimizer.param_groups[0]["lr"]
        means["images_per_s"] = steps * self.engine.run.batch_size / seconds
        self.first_step, self.sums, self.started = self.engine.step, {}, time.perf_counter()
        if self.file is None:
            return
        self.file.write(json.dumps({"step": self.engine.step, **means}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in means.items():
                self.board.add_scalar(name, value, self.engine.step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.engine.report(f"step {self.engine.step}/{self.engine.run.steps}  {shown}")

    def close(self) -> None:
        """Close the files."""
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()


def open_tensorboard(folder: Path):
    """A tensorboard writer, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, not biases and gains."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then constant, or falling to 0 at the end by a line or half a cosine."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    decay = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[config.decay]
    return config.lr * warmup * decay


def set_learning_rate(optimizer, config: OptimizerConfig, step: int, steps: int) -> None:
    """Give every parameter group the learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps)


def config_hash(config: StageConfig) -> str:
    """A short name for what makes two runs the same; lengths and bookkeeping do not count."""
    facts = asdict(config)
    for key in ("output", "init"):
        facts.pop(key)
    for key in ("steps", "compile", "log_every", "save_every", "preview_every", "keep_checkpoints"):
        facts["run"].pop(key)
    for key in ("workers", "cache_gb", "index", "max_bad_share"):
        facts["data"].pop(key)
    for key in PICTURE_KEYS:  # runs on drawings began before there were these
        if facts["data"][key] == getattr(DataConfig(), key):
            facts["data"].pop(key)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
