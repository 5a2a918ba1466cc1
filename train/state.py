"""What a run must remember, as named whole tensors: weights and the optimizer's moments."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unclip_train.sharding import like, whole


def gather(named: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors made whole, on the CPU where they lay in shards; nothing unless keep is set.

    Every process must take part, one keeps.
    """
    found = {}
    for name, tensor in named.items():
        made_whole = whole(tensor.detach())
        if keep:
            found[name] = made_whole.cpu() if isinstance(tensor, DTensor) else made_whole
    return found


@torch.no_grad()
def fill(named: dict[str, Tensor], values: dict[str, Tensor], what: str) -> None:
    """Copy whole values into tensors of the same names.

    Raises:
        ValueError: naming what lacks a value, or has one of another shape.
    """
    for name, tensor in named.items():
        if name not in values:
            raise ValueError(f"{what} {name} is missing from the checkpoint")
        if values[name].shape != tensor.shape:
            raise ValueError(
                f"{what} {name} has shape {tuple(values[name].shape)} in the checkpoint, "
                f"{tuple(tensor.shape)} here"
            )
        tensor.copy_(like(values[name], tensor))


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, named "<number of the parameter>.<quantity>"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of pack_optimizer, into an optimizer over the same parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape and tensor.ndim:
            # as the parameter lies in memory: a fused kernel goes through both by their addresses
            blank = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False)
            tensor = blank.copy_(like(tensor, parameter))
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def weightless_copy(network: nn.Module) -> nn.Module:
    """The same network, its weights without memory, to be given others."""
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in network.parameters()
    }
    return copy.deepcopy(network, memo)


def with_weights(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of a weightless network that holds these weights."""
    network = copy.deepcopy(network)
    network.load_state_dict(weights, assign=True)
    return network.eval()
