"""What each training sample draws for itself: a timestep and noise, from its own generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unclip.diffusion.sampling import randn_per_sample


def draw_timesteps(num_steps: int, generators: Sequence[torch.Generator], device) -> Tensor:
    """Uniform timesteps [B] in 0 .. num_steps - 1."""
    draws = [torch.randint(num_steps, (1,), generator=generator) for generator in generators]
    return torch.cat(draws).to(device)


def draw_noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of the shape of x, sample i from generators[i]."""
    return randn_per_sample(x.shape[1:], generators, x.device)
