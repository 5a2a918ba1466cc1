"""Sampling: one loop for every stage.

A stage hands denoise() a function predict(x_t, t) and a diffusers scheduler; prior embeddings
[B, D] and images [B, C, H, W] go through the same loop. Randomness comes only from one CPU
generator per sample, so that a sample does not depend on the batch it is made in.

What it is made of stands in rooms of its own: schedulers.py, timesteps.py, noise.py, stepping.py,
prediction.py; inversion.py runs it backwards.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from .prediction import Predict, check_finite, predicted
from .samplers import check_scheduler_class
from .stepping import stepper, uses_variance
from .timesteps import Steps, with_timesteps


@torch.no_grad()
def denoise(
    predict: Predict,
    x_T: Tensor,
    scheduler: SchedulerMixin,
    steps: Steps,
    generators: Sequence[torch.Generator],
    learned_variance: bool = False,
    on_step: Callable[[int, int, Tensor], Tensor | None] | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] | None = None,
    stage: str = "decoder",
    eta: float = 0.0,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Sample x_0 [B, ...] from standard normal noise x_T [B, ...] by the scheduler's steps.

    predict(x_t, t): x_t [B, ...] in float32 (float64 for such an x_T), t [B]; returns the kind of
    prediction that scheduler.config.prediction_type says, with twice the channels when
    learned_variance is set (the second half is left out where the scheduler has no use for it).
    generators: one a sample; they draw the noise of ancestral samplers and of DDIM's eta in [0, 1].
    on_step(step, t, x_t), after each step from 0: x_t is now at timestep t, -1 for the end; what
    it returns, if anything, replaces x_t. progress wraps the sequence of steps (tqdm fits).
    start, stop: run these steps alone, from x_T, which is then x_t at timestep number start, to
    x_t at timestep number stop; a solver of several steps begins anew.
    The scheduler is copied, never changed. x_0 is what the last prediction implies, clipped as the
    scheduler's config says, in float32. ValueError for arguments that do not fit each other;
    FloatingPointError with the stage and the step (from 1) where a value is not finite.
    """
    generators = list(generators)
    _check_arguments(x_T, scheduler, generators, learned_variance, eta)
    scheduler = with_timesteps(scheduler, steps)
    step_once = stepper(scheduler, generators, eta)
    timesteps = scheduler.timesteps
    indices = _part(len(timesteps), start, stop)
    x_t = x_T.to(torch.promote_types(x_T.dtype, torch.float32)) * _scale_at(scheduler, start)
    for index in indices if progress is None else progress(indices):
        where = f"at step {index + 1} of {len(timesteps)} (t = {timesteps[index].item()})"
        x_in = scheduler.scale_model_input(x_t, timesteps[index])
        output = predicted(predict, x_in, timesteps[index], learned_variance)
        check_finite(output, f"{stage}: the network's output is not finite {where}")
        if learned_variance and not uses_variance(scheduler):
            output = output.chunk(2, dim=1)[0]
        x_t = step_once(index, output, x_t, x_in)
        if on_step is not None:
            t_next = timesteps[index + 1].item() if index + 1 < len(timesteps) else -1
            x_t = _replaced(on_step(index, t_next, x_t), x_t)
        check_finite(x_t, f"{stage}: the sample is not finite {where}")
    return x_t


def _replaced(replacement: Tensor | None, x_t: Tensor) -> Tensor:
    if replacement is None:
        return x_t
    if replacement.shape != x_t.shape:
        raise ValueError(
            f"on_step returned {tuple(replacement.shape)} in place of x_t {tuple(x_t.shape)}"
        )
    return replacement.to(x_t)


def _part(num_steps: int, start: int, stop: int | None) -> range:
    """The steps from start to stop, of which there is one at least."""
    stop = num_steps if stop is None else stop
    if not 0 <= start < stop <= num_steps:
        raise ValueError(f"start and stop must hold 0 <= {start} < {stop} <= {num_steps} steps")
    return range(start, stop)


def _scale_at(scheduler: SchedulerMixin, index: int) -> float:
    """What the scheduler multiplies x_t by at a timestep: 1, or more where it adds noise alone."""
    if index == 0:
        return float(scheduler.init_noise_sigma)
    return 1 / float(scheduler.scale_model_input(torch.ones(()), scheduler.timesteps[index]))


def _check_arguments(
    x_T: Tensor,
    scheduler: SchedulerMixin,
    generators: list[torch.Generator],
    learned_variance: bool,
    eta: float,
) -> None:
    if x_T.ndim < 2 or not x_T.is_floating_point():
        raise ValueError(f"x_T must be noise [B, ...], got {tuple(x_T.shape)} {x_T.dtype}")
    try:
        check_scheduler_class(scheduler)
    except ValueError as error:
        raise ValueError(f"scheduler: {error}") from None
    if len(generators) != x_T.shape[0]:
        raise ValueError(f"generators must hold {x_T.shape[0]}, a sample each: {len(generators)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    if eta > 0 and not isinstance(scheduler, DDIMScheduler):
        raise ValueError(f"eta needs a DDIMScheduler, got {type(scheduler).__name__}")
    if uses_variance(scheduler) and not learned_variance:
        raise ValueError(
            f"the scheduler's variance_type {scheduler.config.variance_type!r} needs a network "
            "with learned_variance"
        )
    if not torch.isfinite(x_T).all():
        raise ValueError("x_T must be finite")
