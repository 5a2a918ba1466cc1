"""DDIM inversion: the noise x_T from which a picture is drawn again.

Sources: ADM = Dhariwal & Nichol 2021 (arXiv 2105.05233), PD = Salimans & Ho 2022 (arXiv
2202.00512), unCLIP = Ramesh et al. 2022 (arXiv 2204.06125).
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .prediction import Predict, check_finite, predicted
from .schedulers import alphas_cumprod, x_0_hat_of
from .timesteps import Steps, with_timesteps

MAX_ERROR = 0.6  # of an x_0-network, in units of the noise, where inversion begins


@torch.no_grad()
def ddim_invert(
    predict: Predict,
    x_0: Tensor,
    scheduler: DDIMScheduler,
    steps: Steps,
    learned_variance: bool = False,
    num_refinements: int = 0,
    progress: Callable[[Sequence[int]], Iterable[int]] | None = None,
    stage: str = "decoder",
) -> Tensor:
    """Return the x_T from which denoise() with eta = 0 comes back to x_0 (unCLIP section 3).

    DDIM run backwards (ADM appendix F): x_next = sqrt(abar_next) x_0_hat + sqrt(1 - abar_next)
    eps_hat, both predicted at the lower noise level of each step; unclipped. The error of a round
    trip falls with the number of steps. Each refinement (one more evaluation a step) predicts
    again at the higher level, the place where denoise() predicts, and solves its equation there
    by fixed point: x_high = (x_low + sin(d) v(x_high)) / cos(d), d the angle between the levels
    (PD appendix D); a few make the round trip nearly exact for a smooth network. A sample whose
    iteration does not converge (as those of eps-networks at the last timestep) is left before it.

    A sample of an x_0-network begins where _first_levels says, with noise that is the same for all.
    predict, learned_variance, progress and stage are those of denoise(), and so are the errors.
    """
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(f"scheduler must be a DDIMScheduler, got {type(scheduler).__name__}")
    if num_refinements < 0:
        raise ValueError(f"num_refinements must not be negative, got {num_refinements}")
    scheduler = with_timesteps(scheduler, steps)
    velocity = _velocity_function(predict, scheduler, learned_variance)
    angles = _angles(scheduler)[::-1]  # from 0 of x_0 to almost pi / 2
    timesteps = scheduler.timesteps.flip(0)
    x_t = x_0 = x_0.to(torch.promote_types(x_0.dtype, torch.float32))
    noise = torch.randn(x_0.shape[1:], generator=torch.Generator().manual_seed(0)).to(x_0)
    first = torch.zeros_like(_lengths(x_0), dtype=torch.long)
    if scheduler.config.prediction_type == "sample":
        first = _first_levels(velocity, x_0, timesteps, angles)
    indices = range(len(timesteps))
    for index in indices if progress is None else progress(indices):
        noised = math.cos(angles[index + 1]) * x_0 + math.sin(angles[index + 1]) * noise
        if (first > index).all():  # no sample has begun
            x_t = noised
            continue
        x_low, angle = x_t, angles[index + 1] - angles[index]
        # x_0 has no timestep of its own: the first one stands for it.
        v = velocity(x_low, timesteps[max(index - 1, 0)], angles[index])
        rough = math.cos(angle) * x_low + math.sin(angle) * v
        v_high = functools.partial(velocity, t=timesteps[index], angle=angles[index + 1])
        x_t = _solved_for_x_high(v_high, x_low, rough, angle, num_refinements)
        x_t = torch.where(first > index, noised, x_t)
        where = f"at step {index + 1} of {len(timesteps)} (t = {timesteps[index].item()})"
        check_finite(x_t, f"{stage}: the inversion is not finite {where}")
    return x_t


def _velocity_function(
    predict: Predict, scheduler: DDIMScheduler, learned_variance: bool
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """v(x_t, t, angle) of a network asked at timestep t about an x_t whose noise level is angle.

    With sin(angle) = sqrt(1 - abar), v = (eps - sin(angle) x_t) / cos(angle). The angle is that
    of t, except for x_0, whose angle is 0 and whose v is eps.
    """
    abar = alphas_cumprod(scheduler)
    kind = scheduler.config.prediction_type

    def velocity(x_t: Tensor, t: Tensor, angle: float) -> Tensor:
        output = predicted(predict, x_t, t, learned_variance)
        if learned_variance:
            output = output.chunk(2, dim=1)[0]
        if kind == "v_prediction" and angle > 0:
            return output
        level = abar[t].item()
        if kind == "sample" and angle > 0:
            return (math.sqrt(level) * x_t - output) / math.sqrt(1 - level)
        x_0_hat = x_0_hat_of(kind, output, x_t, level)
        eps_hat = (x_t - math.sqrt(level) * x_0_hat) / math.sqrt(1 - level)
        return (eps_hat - math.sin(angle) * x_t) / math.cos(angle)

    return velocity


def _first_levels(
    velocity: Callable[[Tensor, Tensor, float], Tensor],
    x_0: Tensor,
    timesteps: Tensor,
    angles: Sequence[float],
) -> Tensor:
    """Numbers of the levels [B, 1, ...] from which an x_0-network is inverted; 0 is x_0 itself.

    Such a network takes what x_0_hat leaves over for noise. Close to x_0 most of that is its own
    error, and x_T would be as many times too loud as the error is larger than the noise. The first
    level where it is not is the one: |x_0_hat - x_0| <= MAX_ERROR sin(angle), asked about
    cos(angle) x_0. Where that is the lowest, or none, there is nothing to be won.
    """
    first = torch.zeros_like(_lengths(x_0), dtype=torch.long)
    root = math.sqrt(x_0[0].numel())
    for number, (t, angle) in enumerate(zip(timesteps, angles[1:], strict=True), start=1):
        x_t = math.cos(angle) * x_0
        x_0_hat = math.cos(angle) * x_t - math.sin(angle) * velocity(x_t, t, angle)
        error = _lengths(x_0_hat - x_0) / root
        fits = (error <= MAX_ERROR * math.sin(angle)) & (first == 0)
        first = torch.where(fits, number, first)
        if (first > 0).all():
            break
    return torch.where(first > 1, first, 0)


def _solved_for_x_high(
    v_high: Callable[[Tensor], Tensor], x_low: Tensor, x_high: Tensor, angle: float, times: int
) -> Tensor:
    """x_high = (x_low + sin(angle) v_high(x_high)) / cos(angle) [B, ...], by iteration.

    Each change of a sample must be smaller than the one before, and the first than the sample:
    where one is not, the sample goes back to where it was before and stays there.
    """
    before, last = x_high, _lengths(x_high)
    for _ in range(times):
        after = (x_low + math.sin(angle) * v_high(x_high)) / math.cos(angle)
        change = _lengths(after - x_high)
        last = torch.where(change < last, change, -math.inf)
        moves = last > -math.inf
        x_high, before = torch.where(moves, after, before), torch.where(moves, x_high, before)
    return x_high


def _lengths(x: Tensor) -> Tensor:
    """The length of each sample, [B, 1, ...]."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


def _angles(scheduler: DDIMScheduler) -> list[float]:
    """Noise levels as angles, atan(sqrt((1 - abar) / abar)), of each timestep and then of x_0."""
    levels = [*alphas_cumprod(scheduler)[scheduler.timesteps].tolist()]
    levels.append(float(scheduler.final_alpha_cumprod))
    return [math.atan2(math.sqrt(1 - level), math.sqrt(level)) for level in levels]
