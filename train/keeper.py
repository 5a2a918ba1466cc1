"""What a run keeps: checkpoints, from which it goes on, and the model it has made so far."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unclip_train.averages import Averages
from unclip_train.checkpoint import (
    clear_up,
    load_checkpoint,
    newest_checkpoint,
    remove_old,
    save_checkpoint,
    save_model,
)
from unclip_train.config import ConfigError, StageConfig
from unclip_train.identity import config_hash
from unclip_train.processes import Agreement
from unclip_train.state import fill, gather, pack_optimizer, unpack_optimizer, with_weights


class Keeper:
    """Writes and reads the folder of a run; all processes call it together, the main one writes.

    Args:
        stage: its name and its save().
        config: of the run.
        network, optimizer, averages: what is kept, in shards or whole.
        blank: the network without weights, which is given whole ones to be exported.
        accelerator, agreement: the processes.
    """

    def __init__(
        self,
        stage,
        config: StageConfig,
        network: nn.Module,
        blank: nn.Module,
        optimizer: torch.optim.Optimizer,
        averages: Averages,
        accelerator: Accelerator,
        agreement: Agreement,
    ):
        self.stage, self.config = stage, config
        self.network, self.blank = network, blank
        self.optimizer, self.averages = optimizer, averages
        self.accelerator, self.agreement = accelerator, agreement
        self.folder = Path(config.output)
        self.checkpoints = self.folder / "checkpoints"
        self.saved_step = 0

    def save(self, step: int, **facts) -> None:
        """Write a checkpoint with facts in its manifest, and an averaged network as the model.

        Raises:
            FloatingPointError: rather than keep anything that is not finite.
            SaveError: when the disk refuses.
        """
        is_main = self.accelerator.is_main_process
        tensors = {stem: gather(named, keep=is_main) for stem, named in self._named().items()}
        if is_main:
            self._check_finite(tensors, step)
            scaler = self.accelerator.scaler
            facts |= {
                "config": config_hash(self.config),
                "seed": self.config.run.seed,
                "position": step * self.config.run.batch_size,  # of the next sample
                "averaged": self.averages.num_updates,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            save_checkpoint(self.checkpoints, step, tensors, **facts)
            remove_old(self.checkpoints, self.config.run.keep_checkpoints)
            self._save_model(tensors)
        self.saved_step = step
        self.agreement.wait()

    def export(self) -> None:
        """Write the model anew, from the newest checkpoint."""
        if self.accelerator.is_main_process:
            self._save_model(load_checkpoint(newest_checkpoint(self.checkpoints))[1])
        self.agreement.wait()

    def resume(self) -> dict | None:
        """Take up the newest checkpoint and return its manifest; None where there is none.

        Raises:
            ConfigError: when it is another run's, or not seen by every process.
        """
        path = self._newest()
        if path is None:
            return None
        manifest, tensors = load_checkpoint(path)
        if manifest["config"] != config_hash(self.config):
            raise ConfigError(
                f"output: {self.folder} holds a run with another configuration; give another "
                "output, or begin from its weights with init=" + str(self.folder / "model")
            )
        missing = self._named().keys() - tensors.keys()
        if missing:
            raise ConfigError(f"output: {path} lacks {min(missing)}.safetensors")
        fill(self.network.state_dict(), tensors["network"], "network")
        unpack_optimizer(self.optimizer, tensors["optimizer"])
        for decay in self.averages.means:
            stem = self._stem(decay)
            fill(self.averages.tensors(decay), tensors[stem], stem)
        self.saved_step = manifest["step"]
        self.averages.num_updates = manifest.get("averaged", self.saved_step)
        if self.accelerator.scaler is not None and manifest.get("scaler"):
            self.accelerator.scaler.load_state_dict(manifest["scaler"])
        return {**manifest, "path": path}

    def _named(self) -> dict[str, dict[str, Tensor]]:
        """File stem -> name -> tensor of all that is kept."""
        averages = {self._stem(d): self.averages.tensors(d) for d in self.averages.means}
        return {
            "network": self.network.state_dict(),
            **averages,
            "optimizer": pack_optimizer(self.optimizer),
        }

    def _stem(self, decay: float) -> str:
        """File of an average: ema for the first, ema-0.999 for another."""
        return "ema" if decay == self.averages.first else f"ema-{decay:g}"

    def _check_finite(self, tensors: dict[str, dict[str, Tensor]], step: int) -> None:
        for stem, named in tensors.items():
            bad = [name for name, tensor in named.items() if not torch.isfinite(tensor).all()]
            if bad:
                raise FloatingPointError(
                    f"{self.stage.name}: {stem} {bad[0]} is not finite at step {step}"
                )

    def _save_model(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Write model/ from a checkpoint's tensors: the average chosen, and what has none."""
        decay = self.config.run.export_ema
        stem = self._stem(self.averages.first if decay is None else decay)
        weights = tensors["network"] | tensors[stem]
        network = with_weights(self.blank, weights)
        save_model(self.folder / "model", lambda folder: self.stage.save(network, folder), weights)

    def _newest(self) -> Path | None:
        """The newest checkpoint that the main process finds, which all must see."""
        path = None
        if self.accelerator.is_main_process:
            clear_up(self.folder)
            clear_up(self.checkpoints)
            path = newest_checkpoint(self.checkpoints)
        step = self.agreement.largest(int(path.name.removeprefix("step-")) if path else -1)
        if step < 0:
            return None
        path = self.checkpoints / f"step-{step:08d}"
        if self.agreement.largest(int(not path.exists())):
            raise ConfigError(
                f"output: not every process sees {path}; give a folder that all machines share"
            )
        return path
