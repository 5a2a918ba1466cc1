"""The way from one vector to another   (unCLIP = Ramesh et al. 2022, arXiv 2204.06125)."""

import torch
from torch import Tensor


def slerp(a: Tensor, b: Tensor, theta: float | Tensor) -> Tensor:
    """Spherical interpolation from a (theta = 0) to b (theta = 1)   (unCLIP section 3.2).

    slerp = (sin((1 - theta) omega) a + sin(theta omega) b) / sin(omega), omega the angle of a, b.
    a and b are [B, ...], each sample one vector (any norm); theta is a number or [B]. Nearly
    parallel vectors are interpolated linearly. ValueError for opposite vectors (no single path).
    """
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} differ in shape")
    flat_a, flat_b = (x.flatten(1).cpu().double() for x in (a, b))  # MPS has no float64
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1, eps=1e-12)
    if (cosine < -1 + 1e-6).any():
        raise ValueError("a and b point in opposite directions: there is no single path")
    omega = cosine.clamp(-1, 1).acos()
    theta = torch.as_tensor(theta, dtype=torch.float64).cpu().expand(len(a))
    parallel = omega < 1e-4
    safe = torch.where(parallel, torch.ones_like(omega), omega)
    weight_a = torch.where(parallel, 1 - theta, ((1 - theta) * safe).sin() / safe.sin())
    weight_b = torch.where(parallel, theta, (theta * safe).sin() / safe.sin())
    mixed = weight_a[:, None] * flat_a + weight_b[:, None] * flat_b
    return mixed.reshape(a.shape).to(a)
