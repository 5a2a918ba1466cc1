"""Progressive distillation: a student's one step lands where several steps of a teacher land.

Times are those of a sampler with trailing spacing: student step k of N begins at
t = round((k + 1) T / N) - 1 and ends where the one before begins, the first at -1, which is x_0.

Source: PD = Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2 and appendix G.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .gaussian import eps_from_x_0, signal_and_noise
from .schedule import NoiseSchedule, gather


def student_times(num_train_timesteps: int, num_steps: int) -> Tensor:
    """Where the N steps of a student begin, rising [N], each in 0 .. T-1."""
    ends = torch.arange(1, num_steps + 1, dtype=torch.float64) * num_train_timesteps / num_steps
    return ends.round().long() - 1


def times_between(t: Tensor, t_end: Tensor, num_steps: int) -> Tensor:
    """Times [B, n + 1] from t [B] to t_end [B] in n steps of equal length, rounded."""
    shares = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64, device=t.device)
    return (t[:, None] + (t_end - t)[:, None] * shares).round().long()


def ddim_to(schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, t: Tensor, t_end: Tensor) -> Tensor:
    """x at t_end [B] by one deterministic DDIM step from t [B], given x_0_hat; t_end -1 is x_0.

    x_end = sqrt(abar_end) x_0 + sqrt(1 - abar_end) eps_hat   (DDIM eq. 12; arXiv 2010.02502)
    """
    signal, noise = _at_end(schedule, t_end, x_t)
    return signal * x_0 + noise * eps_from_x_0(schedule, x_t, x_0, t)


def jump_target(
    schedule: NoiseSchedule, x_t: Tensor, x_end: Tensor, t: Tensor, t_end: Tensor
) -> Tensor:
    """The x_0 whose one DDIM step from x_t at t [B] lands on x_end at t_end [B]   (PD, appendix G).

    x_0 = (x_end - r x_t) / (sqrt(abar_end) - r sqrt(abar_t)), r = sigma_end / sigma_t
    """
    signal, noise = signal_and_noise(schedule, t, x_t)
    signal_end, noise_end = _at_end(schedule, t_end, x_t)
    ratio = noise_end / noise
    return (x_end - ratio * x_t) / (signal_end - ratio * signal)


@torch.no_grad()
def teacher_jump(
    schedule: NoiseSchedule,
    predict_x_0: Callable[[Tensor, Tensor], Tensor],
    x_t: Tensor,
    t: Tensor,
    t_end: Tensor,
    num_substeps: int,
    clip_range: float = 1.0,
) -> Tensor:
    """What a student should hold for x_0 at x_t, so that it goes where the teacher goes.

    predict_x_0(x_t, t) is the teacher's x_0_hat; it is clamped to clip_range at every substep, as
    samplers do. t, t_end: [B]; num_substeps DDIM steps lead from one to the other.
    """
    x, times = x_t, times_between(t, t_end, num_substeps)
    for now, after in zip(times[:, :-1].T, times[:, 1:].T, strict=True):
        x_0 = predict_x_0(x, now).clamp(-clip_range, clip_range)
        x = ddim_to(schedule, x, x_0, now, after)
    return jump_target(schedule, x_t, x, t, t_end)


def _at_end(schedule: NoiseSchedule, t_end: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar) and sqrt(1 - abar), each [B, 1, ...], where a step ends, in -1 .. T-2."""
    abar = gather(schedule.alphas_cumprod_prev, t_end + 1, like)
    return abar.sqrt(), (1 - abar).sqrt()


def check_steps(num_train_timesteps: int, num_steps: int, num_substeps: int) -> None:
    """Refuse more substeps than there are timesteps between a student's steps.

    Raises:
        ValueError: with the largest number that fits.
    """
    room = math.floor(num_train_timesteps / num_steps) - 1
    if num_substeps > room:
        raise ValueError(
            f"{num_substeps} substeps in each of {num_steps} steps do not fit into "
            f"{num_train_timesteps} timesteps; {max(room, 0)} do"
        )
