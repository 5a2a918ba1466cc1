"""What each training sample draws for itself: a timestep and noise, from its own generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unclip.diffusion.guidance import drop_mask
from unclip.diffusion.sampling import randn_per_sample


def draw_timesteps(num_steps: int, generators: Sequence[torch.Generator], device) -> Tensor:
    """Uniform timesteps [B] in 0 .. num_steps - 1."""
    draws = [torch.randint(num_steps, (1,), generator=generator) for generator in generators]
    return torch.cat(draws).to(device)


def draw_logit_normal_timesteps(
    num_steps: int, mean: float, std: float, generators: Sequence[torch.Generator], device
) -> Tensor:
    """Timesteps [B] with t / T = sigmoid(mean + std n), n ~ N(0, 1)   (SD3, 2403.03206).

    A positive mean prefers much noise, where a picture's layout is decided.
    """
    n = randn_per_sample((), generators)
    return (num_steps * torch.sigmoid(mean + std * n)).long().clamp(0, num_steps - 1).to(device)


def drop_captions(
    captions: Sequence[str], probability: float, generators: Sequence[torch.Generator]
) -> list[str]:
    """The captions, each emptied with the probability given, for classifier-free guidance."""
    dropped = drop_mask(probability, generators).tolist()
    return ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]


def draw_noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of the shape of x, sample i from generators[i]."""
    return randn_per_sample(x.shape[1:], generators, x.device)
