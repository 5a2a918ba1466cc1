"""What is measured on held-out samples: loss by timestep, cosines, and the like.

Shapes: N samples, B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unclip.diffusion.noise import child_generators
from unclip_train.data.loader import collate

NUM_BUCKETS = 5  # of timesteps, for which losses are told one by one
GOLDEN = 0.6180339887498949  # its multiples spread evenly over 0 .. 1, however many there are
STREAM = "validation"  # of the noise that held-out samples are given, the same every time


class HeldOut:
    """Batches of the first positions of a held-out data set, read once and kept.

    Args:
        dataset: what is never learned from.
        num_samples: at most so many are read, and never one twice.
        batch_size: samples that are looked at together.
    """

    def __init__(self, dataset: Dataset, num_samples: int, batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size
        self.num_samples = min(num_samples, len(dataset))
        self._kept: list[dict] = []

    def __iter__(self):
        if not self._kept:
            for start in range(0, self.num_samples, self.batch_size):
                positions = range(start, min(start + self.batch_size, self.num_samples))
                self._kept.append(collate([self.dataset[position] for position in positions]))
        return iter(self._kept)


def generators_of(batch: dict) -> list[torch.Generator]:
    """A generator for each sample, which gives it the same noise whenever it is looked at."""
    return child_generators(batch["position"], STREAM)


def spread_timesteps(num_steps: int, batch: dict, device: torch.device) -> Tensor:
    """A timestep [B] for each sample, of its own and always the same, even over 0 .. T-1."""
    places = torch.tensor(batch["position"], dtype=torch.float64) * GOLDEN
    return (num_steps * (places % 1)).long().to(device)


def mean_by_timestep(losses: Iterable[tuple[Tensor, Tensor]], num_steps: int) -> dict[str, float]:
    """Timesteps [B] and losses [B] of every batch -> the mean loss, and that of each bucket.

    Names: "loss", "loss_t0-199", ...; a bucket without samples is left out.
    """
    t, loss = (torch.cat([part.cpu() for part in parts]) for parts in zip(*losses, strict=True))
    means = {"loss": float(loss.double().mean())}
    edges = [round(num_steps * number / NUM_BUCKETS) for number in range(NUM_BUCKETS + 1)]
    for low, high in zip(edges, edges[1:], strict=False):
        inside = loss[(t >= low) & (t < high)]
        if len(inside):
            means[f"loss_t{low}-{high - 1}"] = float(inside.double().mean())
    return means


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal to noise ratio [B] in dB of pictures [B, 3, S, S] in [-1, 1]: 10 log10(4 / MSE).

    The peak is 2, the width of the range.
    """
    error = (x.float() - y.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))
