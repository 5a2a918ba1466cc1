"""Many processes as one: the accelerator, and what all of them agree on."""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin
from torch import nn

from unclip_train.config import ConfigError, OptimizerConfig
from unclip_train.optimizer import make_optimizer
from unclip_train.sharding import refuse_other_shards, shard, wants_shards
from unclip_train.throughput import quickest_precision

FOREVER = timedelta(days=30)  # one process may draw or evaluate while the others wait


def known_precision(precision: str) -> str:
    """run.precision, "auto" replaced by what it stands for where this process runs."""
    if precision != "auto":
        return precision
    return quickest_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def make_accelerator(precision: str) -> Accelerator:
    """accelerate's view of this run; the engine accumulates gradients itself.

    Raises:
        ConfigError: for fp16 without a GPU, where accelerate would quietly use fp32, and for
            sharding by other means than FSDP2.
    """
    refuse_other_shards()
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("run.precision=fp16 needs a GPU: choose bf16 or no")
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dataloader_config=DataLoaderConfiguration(),
        cpu=not torch.cuda.is_available(),
    )


def place(
    network: nn.Module, config: OptimizerConfig, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network and its optimizer where they will run: in shards, or whole in every process."""
    if wants_shards(accelerator.num_processes):
        if config.algorithm == "muon":
            raise ConfigError("optimizer.algorithm=muon steps whole weights: under FSDP take adamw")
        fused = accelerator.device.type == "cuda" or None
        network = shard(network)
        optimizer = make_optimizer(network, config, fused)
        return network, accelerator.prepare_optimizer(optimizer)
    if accelerator.device.type == "cuda":  # on a CPU the normalisations lose more than is won
        network = network.to(memory_format=torch.channels_last)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    return accelerator.prepare(network, make_optimizer(network, config, fused=True, dtype=dtype))


class Agreement:
    """Numbers on which all processes agree, beside the traffic of gradients, on the CPU.

    It waits awake, so that a second signal can end a process whose peers have died.
    """

    def __init__(self, num_processes: int):
        self.group = dist.new_group(backend="gloo", timeout=FOREVER) if num_processes > 1 else None

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes bring; each waits for all."""
        if self.group is None:
            return number
        largest = torch.tensor(number)
        work = dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group, async_op=True)
        while not work.is_completed():
            time.sleep(1e-4)
        work.wait()
        return int(largest)

    def wait(self) -> None:
        """Until all processes are here."""
        self.largest(0)
