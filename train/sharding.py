"""Weights in shards, one in each process (FSDP2), and tensors made whole again to be kept.

accelerate's configuration asks for it (use_fsdp with fsdp_version 2). The cutting is done here: on
CPUs accelerate would quietly copy all weights to every process, and its own way is made for the
classes of transformers. Shards are gathered in fp32, so that the result is that of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unclip_train.config import ConfigError

MIN_UNIT = 2**12  # numbers of a layer that is cut on its own; the small ones are cut together
# Modules that read the weights of their children without calling them.
CALLED_WHOLE = (nn.TransformerEncoderLayer, nn.MultiheadAttention)


def is_asked(name: str) -> bool:
    """Whether accelerate's configuration asks for FSDP, DEEPSPEED, ..."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1")


def refuse_other_shards() -> None:
    """Raises ConfigError where accelerate is asked for what is not done here, nor anything else."""
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if is_asked(name):
            raise ConfigError(
                f"accelerate's configuration asks for {name}, whose checkpoints are not ours "
                "(DeepSpeed's are pickles): choose fsdp_version: 2 instead"
            )
    if is_asked("FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("accelerate's configuration asks for FSDP 1: set fsdp_version: 2")


def wants_shards(num_processes: int) -> bool:
    """Whether accelerate's configuration asks for shards.

    Raises:
        ConfigError: when there is but one process.
    """
    if is_asked("FSDP") and num_processes == 1:
        raise ConfigError(
            "accelerate's configuration asks for FSDP2, but there is only one process: give "
            "--num_processes 2 or more, or leave out --use_fsdp"
        )
    return is_asked("FSDP")


def shard(network: nn.Module) -> nn.Module:
    """Cut a network's weights, in place, as accelerate's configuration says.

    Every large layer is a unit, gathered when it is called; so it does not matter by which way a
    network calls its layers. Scalars, and small weights that are not trained, stay whole.

    Raises:
        RuntimeError: when weights were not cut.
    """
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    kept = {p for p in network.parameters() if p.ndim == 0 or is_small_and_fixed(p)}
    settings = {"offload_policy": plugin.cpu_offload, "ignored_params": kept}
    for unit in units(network):
        fully_shard(unit, reshard_after_forward=plugin.reshard_after_forward, **settings)
    fully_shard(network, **settings)
    for name, parameter in network.named_parameters():
        if parameter not in kept and not isinstance(parameter, DTensor):
            raise RuntimeError(f"FSDP2 was asked for, but {name} is whole in every process")
    return network


def is_small_and_fixed(parameter: nn.Parameter) -> bool:
    """Whether it is a statistic, say, that a loss may read outside of forward."""
    return not parameter.requires_grad and parameter.numel() < MIN_UNIT


def units(network: nn.Module) -> Iterator[nn.Module]:
    """Layers with so many weights that each is cut on its own."""
    for child in network.children():
        if isinstance(child, CALLED_WHOLE) or not any(True for _ in child.children()):
            if sum(p.numel() for p in child.parameters() if p.ndim) >= MIN_UNIT:
                yield child
        else:
            yield from units(child)


def is_sharded(network: nn.Module) -> bool:
    """Whether its weights lie in shards."""
    return isinstance(network, FSDPModule)


def average_whole_gradients(network: nn.Module) -> None:
    """Gradients of weights that were not cut, averaged over the processes."""
    for parameter in network.parameters():
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def clip_gradients(network: nn.Module, limit: float) -> Tensor:
    """Shorten the gradient, of shards and whole ones together, to limit; its norm before."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    cut = [g for g in gradients if isinstance(g, DTensor)]
    norms = [whole(torch.nn.utils.get_total_norm(cut))]
    norms += [g.norm() for g in gradients if not isinstance(g, DTensor)]
    norm = torch.stack(norms).norm()
    if norm > limit:
        torch._foreach_mul_([local(g) for g in gradients], float(limit / (norm + 1e-6)))
    return norm


def whole(tensor: Tensor) -> Tensor:
    """A tensor of all its shards; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The shard that lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole value, cut as a tensor is and put where that lies."""
    if not isinstance(tensor, DTensor):
        return value.to(tensor.device)
    value = value.to(tensor.device_mesh.device_type)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements)
