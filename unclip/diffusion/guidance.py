"""Classifier-free guidance: combining two predictions, where and how much, and what to drop.

Predictions are [B, C, ...], or [B, 2C, ...] with a learned variance as the second half of the
channels, which is never guided: it is taken from the conditional prediction.

Sources: CFG = Ho & Salimans 2022 (arXiv 2207.12598), GLIDE = Nichol et al. 2021 (arXiv
2112.10741), Lin = Lin et al. 2023 (arXiv 2305.08891), Kynk = Kynkaanniemi et al. 2024 (arXiv
2404.07724), ADM = Dhariwal & Nichol 2021 (arXiv 2105.05233), Imagen = Saharia et al. 2022 (arXiv
2205.11487), Pix2Pix = Brooks et al. 2023 (arXiv 2211.09800).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def guide(
    cond: Tensor, uncond: Tensor, scale: float | Tensor, learned_variance: bool = False
) -> Tensor:
    """Classifier-free guidance: uncond + scale (cond - uncond)   (GLIDE eq. 8; CFG eq. 6).

    scale is a number, or [B] for a scale per sample; 1 returns cond and 0 uncond, to the bit.
    (CFG's own weight w is scale - 1.) With learned_variance only the first half of the channels
    is guided. ValueError when the shapes differ or the channels cannot be halved.
    """
    if cond.shape != uncond.shape:
        raise ValueError(
            f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} differ in shape"
        )
    cond_mean, fraction = _split(cond, learned_variance)
    uncond_mean, _ = _split(uncond, learned_variance)
    if isinstance(scale, Tensor):
        scale = scale.to(cond).reshape(-1, *[1] * (cond.ndim - 1))
    return _join(torch.lerp(uncond_mean, cond_mean, scale), fraction)


def guide_twice(
    cond: Tensor,
    image: Tensor,
    uncond: Tensor,
    scale: float,
    image_scale: float,
    learned_variance: bool = False,
) -> Tensor:
    """A scale for the caption and one for z_img: each leads away from what lacks its condition.

    uncond + image_scale (image - uncond) + scale (cond - image)   (Pix2Pix eq. 3), where image
    knows z_img alone. With both scales alike that is guide(cond, uncond, scale), and with an
    image_scale of 1 guide(cond, image, scale). ValueError as in guide.
    """
    guided, fraction = _split(guide(cond, image, scale, learned_variance), learned_variance)
    image_mean, _ = _split(image, learned_variance)
    uncond_mean, _ = _split(uncond, learned_variance)
    return _join(guided + (image_scale - 1) * (image_mean - uncond_mean), fraction)


def rescale(guided: Tensor, cond: Tensor, phi: float, learned_variance: bool = False) -> Tensor:
    """Bring guided back to the spread of cond, by the share phi in [0, 1]   (Lin eq. 15 and 16).

    result = phi guided std(cond) / std(guided) + (1 - phi) guided, each std over one sample.
    With learned_variance only the first half of the channels is changed.
    """
    if not 0 <= phi <= 1:
        raise ValueError(f"phi must lie in [0, 1], got {phi}")
    if phi == 0:
        return guided
    guided_mean, fraction = _split(guided, learned_variance)
    cond_mean, _ = _split(cond, learned_variance)
    ratio = _std(cond_mean) / _std(guided_mean).clamp(min=1e-12)
    factor = (phi * ratio + (1 - phi)).to(guided.dtype)
    return _join(guided_mean * factor, fraction)


def dynamic_threshold(x_0_hat: Tensor, percentile: float, max_value: float = math.inf) -> Tensor:
    """Bring x_0_hat [B, ...] into [-1, 1] without flattening it   (Imagen section 2.3).

    s = the percentile of |x_0_hat| over one sample, within [1, max_value];
    result = clamp(x_0_hat, -s, s) / s. percentile lies in (0, 1].
    """
    sizes = x_0_hat.abs().float().flatten(1)  # [B, d]
    rank = max(1, round(percentile * sizes.shape[1]))  # torch.quantile has a limit of 2^24 values
    s = sizes.kthvalue(rank, dim=1).values.clamp(1, max_value)
    s = s.reshape(-1, *[1] * (x_0_hat.ndim - 1)).to(x_0_hat.dtype)
    return torch.minimum(torch.maximum(x_0_hat, -s), s) / s


def in_interval(t: float | Tensor, interval: tuple[float, float] | None) -> bool:
    """Whether guidance is used at time t: inside the interval; None guides at every t.

    interval is (low, high) in timesteps, both included, 0 <= low <= high (Kynk eq. 6, there in
    noise levels).
    """
    if interval is None:
        return True
    low, high = interval
    if not 0 <= low <= high:
        raise ValueError(f"interval must be (low, high) with 0 <= low <= high, got {interval}")
    return low <= float(t) <= high


def lead(x_0_hat: Tensor, gradient: Tensor, abar: Tensor, scale: float) -> Tensor:
    """Lead x_0_hat up a score f: x_0_hat + scale (1 - abar_t) df/dx_0   (ADM algorithm 2).

    ADM adds scale df/dx_t to the score of x_t, which moves x_0_hat by scale (1 - abar_t) /
    sqrt(abar_t) df/dx_t. With dx_0_hat/dx_t = sqrt(abar_t), what it is for data of unit variance,
    the roots cancel, and the network need not be differentiated. gradient is df/dx_0 [B, ...] at
    x_0_hat, abar [B].
    """
    weight = scale * (1 - abar.to(x_0_hat)).reshape(-1, *[1] * (x_0_hat.ndim - 1))
    return x_0_hat + weight * gradient


def drop_mask(probability: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Which samples lose a condition in training, bool [B] on the CPU, True = dropped.

    Sample i draws one number from generators[i], so that its fate does not depend on the batch
    or the process it is in   (CFG algorithm 1: p_uncond; unCLIP section 2.1: 0.1 and 0.5).
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    draws = [
        torch.rand((), generator=generator, device=generator.device) for generator in generators
    ]
    return torch.tensor([float(draw) < probability for draw in draws], dtype=torch.bool)


def _split(prediction: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    if not learned_variance:
        return prediction, None
    if prediction.shape[1] % 2:
        raise ValueError(
            f"learned_variance needs an even number of channels, got {prediction.shape[1]}"
        )
    mean, fraction = prediction.chunk(2, dim=1)
    return mean, fraction


def _join(mean: Tensor, fraction: Tensor | None) -> Tensor:
    return mean if fraction is None else torch.cat([mean, fraction], dim=1)


def _std(values: Tensor) -> Tensor:
    """Standard deviation over one sample in float32, [B, 1, ...]."""
    return values.float().std(dim=tuple(range(1, values.ndim)), keepdim=True)
