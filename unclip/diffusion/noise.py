"""Where randomness comes from: one CPU generator a sample, on a stream of each stage's own."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def child_generators(seeds: Sequence[int], stage: str) -> list[torch.Generator]:
    """One CPU generator a seed, on a stream of the stage's own.

    The stream's seed is the first 63 bits of sha256("seed|stage"), so a stage's noise does not
    depend on how much another stage drew. ValueError for seeds that are not integers.
    """
    return [torch.Generator().manual_seed(_child_seed(seed, stage)) for seed in seeds]


def randn_per_sample(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal noise [B, *shape] in float32: sample i from generators[i], then moved.

    shape is that of one sample. Each is drawn where its generator lives (the CPU).
    """
    if not generators:
        raise ValueError("generators must hold one generator a sample")
    draws = [torch.randn(tuple(shape), generator=g, device=g.device) for g in generators]
    return torch.stack(draws).to(device)


def _child_seed(seed: int, stage: str) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seeds must be integers, got {seed!r}")
    digest = hashlib.sha256(f"{seed}|{stage}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
