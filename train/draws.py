"""What each training sample draws for itself: a timestep and noise, from its own generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.diffusion.guidance import drop_mask
from unclip.diffusion.noise import randn_per_sample


def draw_timesteps(
    num_steps: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
    mean: float = 0.0,
    std: float = 0.0,
) -> Tensor:
    """Timesteps [B] in 0 .. num_steps - 1: logit-normal ones, or uniform where std is 0."""
    if std:
        return draw_logit_normal_timesteps(num_steps, mean, std, generators, device)
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


def draw_masks(size: int, generators: Sequence[torch.Generator], device) -> Tensor:
    """Masks [B, 1, size, size] of what is to be painted, 1, and of what is known, 0.

    Of eight, one is all painted, so that the network goes on drawing without a picture; two are
    known within a rectangle, as in outpainting; the others are painted within one. Its sides are
    a fifth of the picture to all of it.
    """
    masks = torch.zeros(len(generators), 1, size, size)
    for mask, generator in zip(masks, generators, strict=True):
        kind, *places = torch.rand(5, generator=generator).tolist()
        height, width = (max(1, round(size * (0.2 + 0.8 * share))) for share in places[:2])
        top, left = (
            round((size - side) * share)
            for side, share in zip((height, width), places[2:], strict=True)
        )
        mask[:, top : top + height, left : left + width] = 1
        if kind < 1 / 8:
            mask.fill_(1)
        elif kind < 3 / 8:
            mask.sub_(1).abs_()
    return masks.to(device)


def drop_captions(
    captions: Sequence[str], probability: float, generators: Sequence[torch.Generator]
) -> list[str]:
    """The captions, each emptied with the probability given, for classifier-free guidance."""
    dropped = drop_mask(probability, generators).tolist()
    return ["" if drop else caption for drop, caption in zip(dropped, captions, strict=True)]


def noised_z_img(z_img: Tensor, largest: float, generators: Sequence[torch.Generator]) -> Tensor:
    """z_img [B, D] moved by noise, at its own length; what a prior draws is near the truth, too.

    z' = |z| (z / |z| + s n / sqrt(D)) / |...|, n ~ N(0, 1), s uniform in 0 .. largest
    """
    shares = [torch.rand((), generator=generator) for generator in generators]
    s = largest * torch.stack(shares).to(z_img)[:, None]
    n = draw_noise_like(z_img, generators) / z_img.shape[1] ** 0.5
    moved = F.normalize(z_img, dim=-1) + s * n
    return F.normalize(moved, dim=-1) * z_img.norm(dim=-1, keepdim=True)


def draw_noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of the shape of x, sample i from generators[i].

    On a GPU, which a processor's noise would keep waiting, all from one generator there, which the
    first sample's seeds: still a function of the positions, but of how they are batched as well.
    """
    if x.device.type != "cuda":
        return randn_per_sample(x.shape[1:], generators, x.device)
    seed = int(torch.randint(2**62, (), generator=generators[0]))
    generator = torch.Generator(x.device).manual_seed(seed)
    return torch.randn(x.shape, generator=generator, device=x.device)
