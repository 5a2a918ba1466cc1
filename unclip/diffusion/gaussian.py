"""The Gaussian diffusion process: q(x_t | x_0), its posterior, and eps <-> x_0 <-> v.

Every function is a pure function of tensors. x_0, x_t, eps and v are [B, ...] (images [B, C, H, W]
in [-1, 1], or embeddings [B, D]); t is an integer or integers [B] in 0..T-1; schedules are
float64 and their values are cast where they are used, to float32 at least.

Sources: DDPM = Ho et al. 2020 (arXiv 2006.11239), IDDPM = Nichol & Dhariwal 2021 (arXiv
2102.09672), PD = Salimans & Ho 2022, progressive distillation (arXiv 2202.00512).
"""

import torch
from torch import Tensor

from .schedule import NoiseSchedule, gather

PREDICTION_KINDS = ("eps", "v", "x_0")


def q_sample(schedule: NoiseSchedule, x_0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
    """Noise x_0 to time t: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps   (DDPM eq. 4)."""
    signal, noise = signal_and_noise(schedule, t, x_0)
    return signal * x_0 + noise * eps


def x_0_from_eps(schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)   (DDPM eq. 15)."""
    signal, noise = signal_and_noise(schedule, t, x_t)
    return (x_t - noise * eps) / signal


def eps_from_x_0(schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, t: int | Tensor) -> Tensor:
    """eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)   (DDPM eq. 4 solved for eps)."""
    signal, noise = signal_and_noise(schedule, t, x_t)
    return (x_t - signal * x_0) / noise


def v_from_x_0_eps(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
    """v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0   (PD section 4)."""
    signal, noise = signal_and_noise(schedule, t, x_0)
    return signal * eps - noise * x_0


def x_0_from_v(schedule: NoiseSchedule, x_t: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
    """x_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v   (PD appendix D)."""
    signal, noise = signal_and_noise(schedule, t, x_t)
    return signal * x_t - noise * v


def eps_from_v(schedule: NoiseSchedule, x_t: Tensor, v: Tensor, t: int | Tensor) -> Tensor:
    """eps = sqrt(1 - abar_t) x_t + sqrt(abar_t) v   (PD appendix D)."""
    signal, noise = signal_and_noise(schedule, t, x_t)
    return noise * x_t + signal * v


def x_0_from_prediction(
    schedule: NoiseSchedule, kind: str, x_t: Tensor, prediction: Tensor, t: int | Tensor
) -> Tensor:
    """x_0_hat from a network's prediction of kind "eps", "v" or "x_0", unclipped."""
    _check_kind(kind)
    if kind == "eps":
        return x_0_from_eps(schedule, x_t, prediction, t)
    if kind == "v":
        return x_0_from_v(schedule, x_t, prediction, t)
    return prediction


def target_for(
    schedule: NoiseSchedule, kind: str, x_0: Tensor, eps: Tensor, t: int | Tensor
) -> Tensor:
    """What a network of kind "eps", "v" or "x_0" should predict at x_t = q_sample(x_0, t, eps)."""
    _check_kind(kind)
    if kind == "eps":
        return eps
    if kind == "v":
        return v_from_x_0_eps(schedule, x_0, eps, t)
    return x_0


def posterior_mean_log_variance(
    schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Mean [B, ...] and log variance [B, 1, ...] of q(x_{t-1} | x_t, x_0)   (DDPM eq. 6 and 7).

    mean = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0
         + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t
    variance = beta~_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t
    At t = 0 the variance is 0 and its log is replaced by that of t = 1 (IDDPM's convention).
    """
    abar, abar_prev = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    x_0_part = abar_prev.sqrt() * schedule.betas / (1 - abar)
    x_t_part = (1 - schedule.betas).sqrt() * (1 - abar_prev) / (1 - abar)
    mean = gather(x_0_part, t, x_t) * x_0 + gather(x_t_part, t, x_t) * x_t
    return mean, gather(schedule.posterior_log_variance, t, x_t)


def learned_log_variance(schedule: NoiseSchedule, fraction: Tensor, t: int | Tensor) -> Tensor:
    """Log variance of p(x_{t-1} | x_t) that a network chose between its two bounds.

    log Sigma = v log beta_t + (1 - v) log beta~_t, v = (fraction + 1) / 2   (IDDPM eq. 15)
    fraction [B, ...] is the network's raw output, meant to lie in [-1, 1] and not clamped.
    """
    share = (fraction + 1) / 2
    upper = gather(schedule.betas.log(), t, fraction)
    lower = gather(schedule.posterior_log_variance, t, fraction)
    return share * upper + (1 - share) * lower


def normal_kl(
    mean_q: Tensor, log_variance_q: Tensor, mean_p: Tensor, log_variance_p: Tensor
) -> Tensor:
    """KL(q || p) of two diagonal Gaussians, in nats, elementwise (arguments broadcast).

    KL = 1/2 (log var_p - log var_q + (var_q + (mean_q - mean_p)^2) / var_p - 1)
    """
    return 0.5 * (
        log_variance_p
        - log_variance_q
        + (log_variance_q - log_variance_p).exp()
        + (mean_q - mean_p) ** 2 * (-log_variance_p).exp()
        - 1
    )


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability, in nats, of the 8-bit value x under a Gaussian cut into 256 bins.

    log p(x) = log (Phi((x + 1/255 - mean) / sigma) - Phi((x - 1/255 - mean) / sigma)), where the
    bins of -1 and 1 reach to infinity   (DDPM eq. 13). x is in [-1, 1], at k / 127.5 - 1.
    Computed with log Phi, so that values far in a tail keep their log and their gradient.
    """
    centered = x - mean
    inverse_std = (-0.5 * log_variance).exp()
    upper = (centered + 1 / 255) * inverse_std
    lower = (centered - 1 / 255) * inverse_std
    # Phi(b) - Phi(a) = Phi(-a) - Phi(-b): take the side where both are small and precise.
    flipped = centered > 0
    log_larger = torch.special.log_ndtr(torch.where(flipped, -lower, upper))
    log_smaller = torch.special.log_ndtr(torch.where(flipped, -upper, lower))
    ratio = (log_smaller - log_larger).clamp(max=-1e-6)
    inside = log_larger + torch.log(-torch.expm1(ratio))
    below = torch.special.log_ndtr(upper)
    above = torch.special.log_ndtr(-lower)
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


def signal_and_noise(
    schedule: NoiseSchedule, t: int | Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """sqrt(abar_t) and sqrt(1 - abar_t), each [B, 1, ...]."""
    signal = gather(schedule.sqrt_alphas_cumprod, t, like)
    return signal, gather(schedule.sqrt_one_minus_alphas_cumprod, t, like)


def _check_kind(kind: str) -> None:
    if kind not in PREDICTION_KINDS:
        raise ValueError(f"kind must be one of {', '.join(PREDICTION_KINDS)}, got {kind!r}")
