"""Noise schedules of unCLIP: the only owner of betas.

Timesteps t are integers 0 .. T-1 (the papers' 1 .. T), T = 1000 in every published stage.
Letters: B samples in a batch, T steps of the schedule.

Sources: DDPM = Ho et al. 2020 (arXiv 2006.11239), IDDPM = Nichol & Dhariwal 2021 (arXiv
2102.09672), unCLIP = Ramesh et al. 2022 (arXiv 2204.06125).
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

SCHEDULE_NAMES = ("cosine", "linear")
MAX_BETA = 0.999  # IDDPM section 3.2: keeps the last cosine steps from a singularity
LINEAR_BETAS = (1e-4, 0.02)  # DDPM section 4, for T = 1000


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Betas of a diffusion process and what follows from them, all float64 on the CPU, each [T].

    alphas_cumprod[t] = abar_t = prod_{s <= t} (1 - beta_s)   (DDPM, below eq. 4)
    """

    name: str
    betas: Tensor
    alphas_cumprod: Tensor

    @property
    def num_steps(self) -> int:
        """T, the number of timesteps the process was defined with."""
        return self.betas.shape[0]

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """abar_{t-1} [T], with abar_{-1} = 1."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @cached_property
    def sqrt_alphas_cumprod(self) -> Tensor:
        """sqrt(abar_t) [T], the part of x_0 in x_t."""
        return self.alphas_cumprod.sqrt()

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Tensor:
        """sqrt(1 - abar_t) [T], the standard deviation of the noise in x_t."""
        return (1 - self.alphas_cumprod).sqrt()

    @cached_property
    def posterior_variance(self) -> Tensor:
        """beta~_t [T], variance of q(x_{t-1} | x_t, x_0) (DDPM eq. 7); 0 at t = 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance(self) -> Tensor:
        """log beta~_t [T], where t = 0 takes the value of t = 1 because log 0 is no number."""
        variance = self.posterior_variance
        return torch.cat([variance[1:2], variance[1:]]).log()

    @cached_property
    def signal_to_noise(self) -> Tensor:
        """SNR_t = abar_t / (1 - abar_t) [T]."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def snr(self, t: int | Tensor) -> Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t), float32 with the shape of t ([B] or [1])."""
        t = _checked_timesteps(t, self.num_steps)
        return gather(self.signal_to_noise, t, t.float())


def make_schedule(name: str, num_steps: int = 1000) -> NoiseSchedule:
    """Return the schedule called "cosine" or "linear" with num_steps timesteps (two at least).

    cosine: abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), beta_t = min(1 - abar((t+1)/T) /
            abar(t/T), 0.999)   (IDDPM eq. 17)
    linear: beta from 1e-4 to 0.02 in equal steps (DDPM section 4), both ends scaled by 1000/T
            so that another T ends at about the same noise (IDDPM's public code).
    ValueError for another name, or a num_steps that the schedule cannot have.
    """
    if name not in SCHEDULE_NAMES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULE_NAMES)}, got {name!r}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 2:
        raise ValueError(f"num_steps must be an integer of at least 2, got {num_steps!r}")
    return _make_schedule(name, num_steps)


@cache
def _make_schedule(name: str, num_steps: int) -> NoiseSchedule:
    if name == "cosine":
        betas = _cosine_betas(num_steps)
    else:
        betas = torch.linspace(*linear_beta_range(num_steps), num_steps, dtype=torch.float64)
    return NoiseSchedule(name, betas, (1 - betas).cumprod(dim=0))


def _cosine_betas(num_steps: int) -> Tensor:
    times = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alphas_cumprod = ((times + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)


def linear_beta_range(num_steps: int = 1000) -> tuple[float, float]:
    """First and last beta of the linear schedule with num_steps timesteps."""
    scale = 1000 / num_steps
    first, last = LINEAR_BETAS[0] * scale, LINEAR_BETAS[1] * scale
    if last > MAX_BETA:
        raise ValueError(f"num_steps of a linear schedule must be at least 21, got {num_steps}")
    return first, last


def gather(values: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
    """Return values[t] shaped [B, 1, ..., 1] to broadcast against like [B, ...].

    values is [T]; t is an integer, or integers [B] or [1] (or a scalar tensor). The result lies
    on like's device in like's dtype, but never below float32, so half precision inputs are
    promoted. ValueError for a t that is not integer, out of range or of another batch size.
    """
    t = _checked_timesteps(t, values.shape[0])
    if like.ndim > 0 and t.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"t has {t.shape[0]} timesteps for a batch of {like.shape[0]}")
    dtype = torch.promote_types(like.dtype, torch.float32)
    t = t.to(like.device)
    picked = values.to(dtype=dtype).to(device=like.device).index_select(0, t)
    return picked.reshape(-1, *[1] * max(like.ndim - 1, 0))


def _checked_timesteps(t: int | Tensor, num_steps: int) -> Tensor:
    """t as a 1-d integer tensor; values are checked on the CPU only, where it costs nothing."""
    if not isinstance(t, Tensor):
        t = torch.as_tensor(t)
    if t.is_floating_point() or t.dtype == torch.bool or t.ndim > 1 or t.numel() == 0:
        raise ValueError(f"t must be an integer or integers [B], got {tuple(t.shape)} {t.dtype}")
    if t.device.type == "cpu" and not (0 <= int(t.min()) and int(t.max()) < num_steps):
        raise ValueError(f"t must lie in 0..{num_steps - 1}, got {t.tolist()}")
    return t.reshape(-1).long()
