"""Running averages of the weights (EMA), which sample better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from unclip_train.config import ConfigError, RunConfig


def list_decays(run: RunConfig) -> list[float]:
    """run.ema_decay as a list of different decays.

    Raises:
        ConfigError: for what is no decay, and for an export_ema that is none of them.
    """
    given = run.ema_decay if isinstance(run.ema_decay, list) else [run.ema_decay]
    for decay in given:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay <= 1:
            raise ConfigError(f"run.ema_decay must lie between 0 and 1, not {decay!r}")
    if not given:
        raise ConfigError("run.ema_decay is an empty list: give one decay or several")
    if run.export_ema is not None and run.export_ema not in given:
        raise ConfigError(f"run.export_ema {run.export_ema} is none of run.ema_decay {given}")
    return list(dict.fromkeys(given))


class Averages:
    """An exponential moving average in fp32 of every trained weight, for each of some decays.

    mean <- mean + (1 - d_n) (weight - mean),   d_n = min(decay, (1 + n) / (10 + n)) in update n,
    so that the first updates are soon forgotten.

    Args:
        network: whose weights are followed; sharded ones are averaged shard by shard.
        decays: one average each; the first is the one that is looked at and, unless another is
            asked for, exported.
    """

    def __init__(self, network: nn.Module, decays: list[float]):
        self.network = network
        trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.names, self.weights = list(trained), list(trained.values())
        self.means = {
            decay: [weight.detach().float().clone() for weight in self.weights] for decay in decays
        }
        self.num_updates = 0

    @property
    def first(self) -> float:
        """The decay of the average that is looked at."""
        return next(iter(self.means))

    @torch.no_grad()
    def update(self) -> None:
        """Move every average towards the weights of now."""
        n = self.num_updates
        self.num_updates += 1
        for decay, means in self.means.items():
            share = 1 - (min(decay, (1 + n) / (10 + n)) if n else 0.0)
            for mean, weight in zip(means, self.weights, strict=True):
                mean.lerp_(weight.float(), share)

    def tensors(self, decay: float) -> dict[str, Tensor]:
        """An average by the names of its weights."""
        return dict(zip(self.names, self.means[decay], strict=True))

    @contextmanager
    def applied(self, decay: float | None = None) -> Iterator[nn.Module]:
        """Within this context the network holds an average, the first one, and is in evaluation."""
        kept = [weight.detach().clone() for weight in self.weights]
        self._set(self.means[self.first if decay is None else decay])
        self.network.eval()
        try:
            yield self.network
        finally:
            self.network.train()
            for module in self.network.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # a forward without backward leaves weights gathered
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)
