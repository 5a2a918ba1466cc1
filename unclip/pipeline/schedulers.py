"""Schedulers of the stages: made for a network, checked against it, changed for one call."""

from __future__ import annotations

import copy
import difflib
from typing import Any

from diffusers import SchedulerMixin
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from unclip.diffusion.samplers import SAMPLER_NAMES, check_scheduler_class
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.schedulers import PREDICTION_TYPES, alphas_cumprod, make_scheduler
from unclip.diffusion.stepping import uses_variance

# Ancestral sampling for the prior and the decoder, DDIM for the upsamplers (DALL-E 2, appendix C).
DEFAULT_SAMPLERS = {
    "prior": "ddpm",
    "decoder": "ddpm",
    "upsampler_256": "ddim",
    "upsampler_1024": "ddim",
}
MAX_THRESHOLD = 1e3  # of Imagen's s: none in practice
MAX_ABAR_ERROR = 1e-4  # of a noise schedule in float32, which errs by 1e-8


def scheduler_for(
    network: Any, sampler: str, score_norms: list[float] | None = None
) -> SchedulerMixin:
    """The scheduler that a network was trained for, with the sampler asked for.

    score_norms: statistics of the prior that the sampler "analytic" needs.
    """
    config = network.config
    scheduler = make_scheduler(
        sampler,
        config.schedule,
        config.get("prediction", "x_0"),
        learned_variance=bool(config.get("learned_variance", False)),
        clip_range=config.get("clip_range", 1.0),
        num_train_timesteps=config.num_train_timesteps,
    )
    if score_norms is not None:
        scheduler.register_to_config(score_norms=score_norms)
    return scheduler


def chosen_scheduler(
    argument: str, stage: str, network: Any, own: SchedulerMixin, asked: Any
) -> SchedulerMixin:
    """The scheduler that a call asks for by name or as an object, or the stage's own for None.

    Raises:
        ValueError: for one that cannot sample this network, beginning with the argument.
    """
    if asked is None:
        return own
    try:
        if isinstance(asked, str):
            check_sampler_name(asked)
            asked = scheduler_for(network, asked, own.config.get("score_norms"))
        elif not isinstance(asked, SchedulerMixin):
            raise ValueError(f"give a name or a diffusers scheduler, not {type(asked).__name__}")
        check_analytic(stage, asked)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None
    check_scheduler(stage, network, asked, argument)
    return asked


def check_sampler_name(name: str) -> None:
    """Refuse a name that no sampler has, with the nearest that one has."""
    if name not in SAMPLER_NAMES:
        near = difflib.get_close_matches(name, SAMPLER_NAMES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"give one of {', '.join(SAMPLER_NAMES)}, not {name!r}{hint}")


def check_analytic(stage: str, scheduler: SchedulerMixin) -> None:
    """Refuse Analytic-DPM for other stages than the prior, and without its statistics."""
    if not scheduler.config.get("analytic", False):
        return
    if stage != "prior":
        raise ValueError("analytic is for the prior alone, as in the paper")
    if not scheduler.config.get("score_norms"):
        raise ValueError("analytic needs statistics: call measure_score_norms() first")


def check_scheduler(
    stage: str, network: Any, scheduler: SchedulerMixin | None, argument: str | None = None
) -> None:
    """Refuse a scheduler that cannot sample, or not the network as it was trained.

    Raises:
        ValueError: beginning with the argument, the stage's own scheduler unless given.
    """
    argument = argument or f"{stage}_scheduler"
    if scheduler is None:
        raise ValueError(f"{argument}: the stage {stage} needs one")
    try:
        check_scheduler_class(scheduler)
        check_trained(network, scheduler)
        check_noise(stage, network, scheduler)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None


def check_trained(network: Any, scheduler: SchedulerMixin) -> None:
    """Refuse a scheduler that reads the network's output as what it is not."""
    wanted = {
        "prediction_type": PREDICTION_TYPES[getattr(network.config, "prediction", "x_0")],
        "num_train_timesteps": network.config.num_train_timesteps,
    }
    for key, value in wanted.items():
        if scheduler.config.get(key) != value:
            raise ValueError(
                f"its {key} is {scheduler.config.get(key)!r}, but the network was trained for "
                f"{value!r}"
            )
    if uses_variance(scheduler) and not network.config.get("learned_variance", False):
        raise ValueError(
            f"its variance_type {scheduler.config.variance_type!r} needs a network with "
            "learned_variance; make it with variance_type='fixed_small'"
        )


def check_noise(stage: str, network: Any, scheduler: SchedulerMixin) -> None:
    """Refuse a scheduler of another noise schedule; it may be rescaled to end without signal."""
    config = network.config
    betas = make_schedule(config.schedule, config.num_train_timesteps).betas
    own = alphas_cumprod(scheduler)
    for fitting in (betas, rescale_zero_terminal_snr(betas)):
        abar = (1 - fitting).cumprod(dim=0)
        if own.shape == abar.shape and (own - abar).abs().max() < MAX_ABAR_ERROR:
            return
    raise ValueError(
        f"its noise schedule is not the {config.schedule!r} one that the network was trained for; "
        f"give the name of a sampler, or make it by {type(scheduler).__name__}.from_config("
        f"pipe.{stage}_scheduler.config)"
    )


def thresholded(scheduler: SchedulerMixin, percentile: float) -> SchedulerMixin:
    """A copy with Imagen's dynamic thresholding in place of clipping, which denoise() heeds."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.register_to_config(
        clip_sample=False,
        thresholding=True,
        dynamic_thresholding_ratio=percentile,
        sample_max_value=MAX_THRESHOLD,
    )
    return scheduler
