"""diffusers' schedulers on our noise schedules, and the noise levels that they stand for."""

import inspect
import math
from collections.abc import Sequence

import numpy as np
from diffusers import SchedulerMixin
from torch import Tensor

from .samplers import SAMPLER_NAMES, SAMPLERS
from .schedule import SCHEDULE_NAMES, linear_beta_range

PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}


def make_scheduler(
    sampler: str,
    schedule: str,
    prediction: str,
    learned_variance: bool = False,
    clip_range: float | None = 1.0,
    num_train_timesteps: int = 1000,
    timestep_spacing: str | None = None,
) -> SchedulerMixin:
    """Return the diffusers scheduler for a sampler on one of our noise schedules.

    sampler: a name of SAMPLERS: "ddpm" (ancestral; uses a learned variance, else the lower bound
    beta~), "analytic" (ancestral with the optimal variance), "ddim", "dpm++" (second order), ...
    schedule: "cosine" or "linear". prediction: "eps", "v" or "x_0". clip_range: x_0_hat is clamped
    to [-clip_range, clip_range] at every step (1 for images, about 5 to 10 for a standardised
    prior), None for never. timestep_spacing: "linspace" for ancestral samplers of DDPM and
    "trailing" for the others, unless given.
    ValueError for a name that does not exist or a clip_range that is not positive.
    """
    check_choice("sampler", sampler, SAMPLER_NAMES)
    check_choice("schedule", schedule, SCHEDULE_NAMES)
    check_choice("prediction", prediction, tuple(PREDICTION_TYPES))
    if clip_range is not None and not 0 < clip_range < math.inf:
        raise ValueError(f"clip_range must be positive or None, got {clip_range}")
    class_name, own = SAMPLERS[sampler]
    ancestral = class_name == "DDPMScheduler"
    settings = {
        "num_train_timesteps": num_train_timesteps,
        "prediction_type": PREDICTION_TYPES[prediction],
        "timestep_spacing": timestep_spacing or ("linspace" if ancestral else "trailing"),
        **_beta_config(schedule, num_train_timesteps),
        **(
            {"variance_type": "learned_range" if learned_variance else "fixed_small"}
            if ancestral
            else {}
        ),
        # Solvers clip by thresholding alone, which is a clamp for a range of 1 and no other.
        "thresholding": clip_range == 1 and not ancestral and sampler != "ddim",
        "clip_sample": clip_range is not None,
        "clip_sample_range": clip_range or 1.0,
        **own,
    }
    scheduler_class = SAMPLERS[sampler].scheduler_class
    known = inspect.signature(scheduler_class.__init__).parameters
    scheduler = scheduler_class(**{key: value for key, value in settings.items() if key in known})
    # What the class does not know stays in its config, where denoise() heeds it.
    scheduler.register_to_config(**{k: v for k, v in settings.items() if k not in known})
    if sampler == "analytic":
        scheduler.register_to_config(analytic=True)
    return scheduler


def abar_of(scheduler: SchedulerMixin, t: float) -> float:
    """abar of a diffusers scheduler at a timestep, which may be fractional; 1 for x_0 at -1."""
    return 1.0 if t < 0 else abar_at(alphas_cumprod(scheduler), t)


def alphas_cumprod(scheduler: SchedulerMixin) -> Tensor:
    """abar_t [T] in float64, from the scheduler's float32 betas."""
    return (1 - scheduler.betas.double().cpu()).cumprod(dim=0)


def abar_at(abar: Tensor, t: float) -> float:
    """abar at a timestep that may be fractional: the noise-to-signal ratio is interpolated."""
    sigmas = ((1 - abar) / abar).sqrt().numpy()
    return 1 / (1 + float(np.interp(t, np.arange(len(sigmas)), sigmas)) ** 2)


def x_0_hat_of(prediction_type: str, output: Tensor, x_t: Tensor, abar: float) -> Tensor:
    """x_0_hat from a prediction of diffusers' prediction_type at the noise level abar."""
    check_choice("prediction_type", prediction_type, tuple(PREDICTION_TYPES.values()))
    if prediction_type == "sample":
        return output
    if prediction_type == "epsilon":
        return (x_t - math.sqrt(1 - abar) * output) / math.sqrt(abar)
    return math.sqrt(abar) * x_t - math.sqrt(1 - abar) * output


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """ValueError that names the argument and its choices."""
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")


def _beta_config(schedule: str, num_train_timesteps: int) -> dict[str, object]:
    if schedule == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2"}
    first, last = linear_beta_range(num_train_timesteps)
    return {"beta_schedule": "linear", "beta_start": first, "beta_end": last}
