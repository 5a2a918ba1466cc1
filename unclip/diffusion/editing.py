"""Sampling that begins from a picture, or keeps the known part of one.

Both functions are loops like denoise() and take its place: image-to-image noises a picture and
denoises it again, RePaint puts the known pixels back at every step and jumps back and forth so
that the rest comes to agree with them.

Sources: SDEdit = Meng et al. 2021 (arXiv 2108.01073), RePaint = Lugmayr et al. 2022 (arXiv
2201.09865), DDPM = Ho et al. 2020 (arXiv 2006.11239).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, pairwise

import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin, UnCLIPScheduler
from torch import Tensor

from .noise import randn_per_sample
from .prediction import Predict
from .sampling import denoise
from .schedulers import abar_of
from .timesteps import Steps, timesteps_for


def noised(x: Tensor, eps: Tensor, abar: float, abar_from: float = 1.0) -> Tensor:
    """More noise: x at the level abar from x at the level abar_from   (DDPM eq. 2 and 4).

    x_t = sqrt(abar_t / abar_s) x_s + sqrt(1 - abar_t / abar_s) eps, s before t; s is x_0 itself
    unless abar_from is given. ValueError when abar is the level with less noise.
    """
    if not 0 <= abar <= abar_from <= 1:
        raise ValueError(f"abar must lie in [0, abar_from = {abar_from}], got {abar}")
    share = abar / abar_from
    return math.sqrt(share) * x + math.sqrt(1 - share) * eps


def num_steps_of(strength: float, num_steps: int) -> int:
    """How many of the last steps a strength in (0, 1] stands for, at least one."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie above 0 and up to 1, got {strength}")
    return max(1, round(strength * num_steps))


def denoise_from(
    predict: Predict,
    eps: Tensor,
    scheduler: SchedulerMixin,
    steps: Steps,
    generators: Sequence[torch.Generator],
    *,
    x_0: Tensor,
    strength: float,
    **options,
) -> Tensor:
    """Noise x_0 [B, ...] with eps and denoise it by the last steps alone   (SDEdit algorithm 1).

    strength in (0, 1]: the share of the steps that are run; at 1 little of x_0 is left, at 0.1
    most of it. The other arguments, and the errors, are those of denoise().
    """
    timesteps = timesteps_for(steps, scheduler)
    start = len(timesteps) - num_steps_of(strength, len(timesteps))
    if timesteps[start : start + 1] == timesteps[start + 1 : start + 2]:
        start += 1  # Heun's list names a timestep twice, and a step begins at the second
    x_t = noised(x_0.to(eps), eps, abar_of(scheduler, timesteps[start]))
    return denoise(predict, x_t, scheduler, steps, generators, start=start, **options)


def resampling_segments(
    num_steps: int, jump_length: int, num_resamples: int
) -> list[tuple[int, int]]:
    """The runs of steps (start, stop) of RePaint, in order   (its appendix B).

    State number i is x_t at timestep number i of the list, state num_steps is x_0. Every
    jump_length steps, counted from the last noisy state, sampling goes jump_length steps back
    and runs them again until they have been run num_resamples times. 1 never goes back. That is
    num_steps + (num_resamples - 1) jump_length ((num_steps - 1) // jump_length) steps in all.
    """
    if jump_length < 1 or num_resamples < 1:
        raise ValueError(
            f"jump_length and num_resamples must be 1 or more, got {jump_length}, {num_resamples}"
        )
    first = (num_steps - 1) % jump_length + jump_length
    turns = [turn for turn in range(first, num_steps, jump_length) for _ in range(1, num_resamples)]
    starts = [0, *(turn - jump_length for turn in turns)]
    return list(zip(starts, [*turns, num_steps], strict=True))


@torch.no_grad()
def repaint(
    predict: Predict,
    x_T: Tensor,
    scheduler: SchedulerMixin,
    steps: Steps,
    generators: Sequence[torch.Generator],
    *,
    x_0: Tensor,
    mask: Tensor,
    noise_generators: Sequence[torch.Generator],
    num_resamples: int = 1,
    jump_length: int = 1,
    on_step: Callable[[int, int, Tensor], Tensor | None] | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] | None = None,
    **options,
) -> Tensor:
    """Sample where mask is 1 and keep x_0 [B, ...] where it is 0   (RePaint algorithm 1).

    x_t = mask x_t_unknown + (1 - mask) x_t_known   after every step to timestep t, where
    x_t_unknown is what denoise() makes and x_t_known is x_0 noised anew; see resampling_segments
    for the jumps back. mask [B, ...] holds 0 and 1 and broadcasts over x_0. noise_generators:
    one a sample, for the noise of x_t_known and of the jumps; that of the steps is untouched by
    them, so that with a mask of ones and no jumps this is denoise(). x_0 comes back to the bit
    where it is kept. Other arguments are those of denoise(); ValueError for a scheduler that
    cannot begin in the midst of its steps.
    """
    check_scheduler(scheduler)
    timesteps = timesteps_for(steps, scheduler)
    segments = resampling_segments(len(timesteps), jump_length, num_resamples)
    levels = [*(abar_of(scheduler, t) for t in timesteps), 1.0]
    unknown, x_0 = mask.to(x_T.device) > 0.5, x_0.to(x_T)

    def more_noise(x: Tensor, level: float, level_from: float = 1.0) -> Tensor:
        noise = randn_per_sample(x_T.shape[1:], noise_generators, x_T.device).to(x_T)
        return noised(x, noise, level, level_from)

    def keep_known(index: int, t: int, x_t: Tensor) -> Tensor:
        level = levels[index + 1]
        x_t = torch.where(unknown, x_t, x_0 if level == 1 else more_noise(x_0, level))
        replaced = None if on_step is None else on_step(index, t, x_t)
        return x_t if replaced is None else replaced

    walk = [index for start, stop in segments for index in range(start, stop)]
    shown = iter(walk if progress is None else progress(walk))
    options |= {"on_step": keep_known, "progress": lambda part: islice(shown, len(part))}
    x_t = torch.where(unknown, x_T, noised(x_0, x_T, levels[0]))
    for (start, stop), following in pairwise([*segments, None]):
        part = {"start": start, "stop": stop}
        x_t = denoise(predict, x_t, scheduler, steps, generators, **part, **options)
        if following is not None:
            x_t = more_noise(x_t, levels[following[0]], levels[stop])
    next(shown, None)  # so that a progress bar ends
    return torch.where(unknown, x_t, x_0)


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Refuse what repaint() cannot use: x_t is no q(x_t | x_0), or steps must begin at the first.

    Raises:
        ValueError: naming the class of the scheduler.
    """
    anywhere = isinstance(scheduler, DDPMScheduler | DDIMScheduler | UnCLIPScheduler)
    if float(scheduler.init_noise_sigma) != 1 or not (
        anywhere or hasattr(scheduler, "index_for_timestep")
    ):
        raise ValueError(
            f"scheduler: {type(scheduler).__name__} cannot repaint; give ddpm, ddim, dpm++ or unipc"
        )
