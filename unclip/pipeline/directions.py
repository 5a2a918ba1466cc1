"""Where embeddings can be led: paths, differences of texts, weighted sums   (unCLIP section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.diffusion.interpolation import slerp
from unclip.pipeline import arguments, decoding


def path(argument: str, num_frames: int, end: float) -> list[float]:
    """Even steps from 0 to end, both included."""
    decoding.check_whole(argument, num_frames, 2, arguments.MAX_COUNT)
    return [end * number / (num_frames - 1) for number in range(num_frames)]


def between(z_1: Tensor, z_2: Tensor, theta: float) -> Tensor:
    """slerp of the directions of embeddings [B, D], whose lengths (the prior's vary) go evenly."""
    direction = slerp(F.normalize(z_1, dim=-1), F.normalize(z_2, dim=-1), theta)
    return direction * torch.lerp(z_1.norm(dim=-1), z_2.norm(dim=-1), theta)[:, None]


def text_difference(z_txt: Tensor) -> Tensor:
    """z_d [1, D] = normalise(z_txt - z_txt0) of one or two texts [1 or 2, D], of any length."""
    z_txt = F.normalize(z_txt.double(), dim=-1)
    difference = z_txt[:1] - z_txt[1:] if len(z_txt) == 2 else z_txt
    if difference.norm() < 1e-6:
        raise ValueError("base: to CLIP it is the same text as target; give another, or None")
    return F.normalize(difference, dim=-1).float()


def weighted_sum(z: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i z_i [1, D] of embeddings [N, D], at their weighted mean length."""
    total = (weights[:, None] * z).sum(dim=0, keepdim=True)
    length = (weights.abs() * z.norm(dim=-1)).sum() / weights.abs().sum()
    if total.norm() < 1e-6 * length:
        raise ValueError("weights: the subjects cancel each other; give other weights")
    return F.normalize(total, dim=-1) * length
