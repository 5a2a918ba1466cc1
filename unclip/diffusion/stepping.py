"""One step of a sampler: from a prediction at a timestep to x at the next one.

stepper() gives step_once(index, output, x_t, x_in) for a scheduler whose timesteps are set: the
library's own step, with x_0_hat bounded as the config says, and our DDIM and Analytic-DPM.

Sources: DDPM = Ho et al. 2020 (arXiv 2006.11239), DDIM = Song et al. 2020 (arXiv 2010.02502).
"""

import inspect
import math
from collections.abc import Callable, Mapping

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    SchedulerMixin,
    UnCLIPScheduler,
)
from torch import Tensor

from .analytic import optimal_variance, score_norm_at
from .guidance import dynamic_threshold
from .noise import randn_per_sample
from .schedulers import abar_at, alphas_cumprod, x_0_hat_of

# Schedulers whose step() raises for a prediction of x_0.
SPEAK_NO_X_0 = (
    "EulerAncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)

StepOnce = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (index, output, x_t, x_in)


def stepper(scheduler: SchedulerMixin, generators: list[torch.Generator], eta: float) -> StepOnce:
    """step_once(index, output, x_t, x_in) -> x at the next timestep."""
    if isinstance(scheduler, DDIMScheduler):
        return _ddim_stepper(scheduler, generators, eta)
    if scheduler.config.get("analytic", False):
        return _analytic_stepper(scheduler, generators)
    return _library_stepper(scheduler, generators, eta)


def ddim_step(
    x_t: Tensor,
    x_0_hat: Tensor,
    abar_t: float,
    abar_next: float,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """One step from noise level abar_t to abar_next with the given x_0_hat   (DDIM eq. 12, 16).

    sigma = eta sqrt((1 - abar_next) / (1 - abar_t)) sqrt(1 - abar_t / abar_next)
    x_next = sqrt(abar_next) x_0_hat + sqrt(1 - abar_next - sigma^2) eps_hat + sigma noise
    eps_hat is the noise that x_0_hat leaves in x_t, after any clipping, as in GLIDE's code.
    noise is needed where eta > 0 only. ValueError when it is missing.
    """
    if eta > 0 and noise is None:
        raise ValueError("noise must be given when eta is above 0")
    eps_hat = (x_t - math.sqrt(abar_t) * x_0_hat) / math.sqrt(1 - abar_t)
    sigma = eta * math.sqrt((1 - abar_next) / (1 - abar_t) * max(1 - abar_t / abar_next, 0.0))
    direction = math.sqrt(max(1 - abar_next - sigma**2, 0.0))
    x_next = math.sqrt(abar_next) * x_0_hat + direction * eps_hat
    return x_next if sigma == 0 else x_next + sigma * noise


def uses_variance(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler's step consumes a learned variance."""
    ancestral = isinstance(scheduler, (DDPMScheduler, UnCLIPScheduler))
    return ancestral and scheduler.config.variance_type in ("learned", "learned_range")


def _library_stepper(
    scheduler: SchedulerMixin, generators: list[torch.Generator], eta: float
) -> StepOnce:
    """A step by the library's own scheduler.step; eta is for DDIM only and already checked."""
    if isinstance(scheduler, EulerAncestralDiscreteScheduler):
        # Its variance is a difference of squares that float32 may round to below 0, and so to nan.
        scheduler.sigmas = scheduler.sigmas.double()
    parameters = inspect.signature(scheduler.step).parameters
    ancestral = isinstance(scheduler, (DDPMScheduler, UnCLIPScheduler))
    timesteps = scheduler.timesteps
    clip_output = _clipping_function(scheduler)

    def step_once(index: int, output: Tensor, x_t: Tensor, x_in: Tensor) -> Tensor:
        output = clip_output(output, x_in, timesteps[index].item())
        last = index + 1 == len(timesteps)
        extra = {"generator": generators} if "generator" in parameters else {}
        if "prev_timestep" in parameters:
            extra["prev_timestep"] = -1 if last else timesteps[index + 1]
        output, x_t = _at_least_3d(output), _at_least_3d(x_t)
        result = scheduler.step(output, timesteps[index], x_t, return_dict=False, **extra)
        # The mean of the last ancestral step is x_0_hat; no noise belongs on top of it. At t = 0
        # UnCLIPScheduler adds none, and its mean is left as published pipelines have it.
        own_end = isinstance(scheduler, UnCLIPScheduler) and timesteps[index] == 0
        return result[1 if ancestral and last and not own_end else 0].reshape(x_in.shape)

    return step_once


def _ddim_stepper(
    scheduler: DDIMScheduler, generators: list[torch.Generator], eta: float
) -> StepOnce:
    """A DDIM step to the next timestep of the list, where the library assumes an even stride."""
    abar = alphas_cumprod(scheduler)
    levels = [abar[t].item() for t in scheduler.timesteps]
    levels.append(float(scheduler.final_alpha_cumprod))
    config, bound = scheduler.config, _bound(scheduler) or (lambda x_0_hat: x_0_hat)

    def step_once(index: int, output: Tensor, x_t: Tensor, x_in: Tensor) -> Tensor:
        x_0_hat = x_0_hat_of(config.prediction_type, output, x_t, levels[index])
        x_0_hat = bound(x_0_hat)
        noise = None
        if eta > 0:
            noise = randn_per_sample(x_t.shape[1:], generators, x_t.device).to(x_t.dtype)
        return ddim_step(x_t, x_0_hat, levels[index], levels[index + 1], eta, noise)

    return step_once


def _analytic_stepper(scheduler: DDPMScheduler, generators: list[torch.Generator]) -> StepOnce:
    """An ancestral step with the optimal variance of Analytic-DPM; see analytic.py.

    E ||eps_hat||^2 / d is what the config's "score_norms" say.
    """
    abar, config = alphas_cumprod(scheduler), scheduler.config
    timesteps = scheduler.timesteps.tolist()
    levels = [*(abar[t].item() for t in timesteps), 1.0]
    bound = _bound(scheduler) or (lambda x_0_hat: x_0_hat)
    norms = config.get("score_norms")
    if not norms:
        raise ValueError("scheduler: the sampler 'analytic' needs score_norms in its config")

    def step_once(index: int, output: Tensor, x_t: Tensor, x_in: Tensor) -> Tensor:
        level, next_level = levels[index], levels[index + 1]
        x_0_hat = x_0_hat_of(config.prediction_type, output, x_t, level)
        x_0_hat, alpha = bound(x_0_hat), level / next_level
        if next_level == 1:  # no noise belongs on top of x_0
            return x_0_hat
        mean = math.sqrt(next_level) * (1 - alpha) * x_0_hat  # DDPM eq. 7
        mean = (mean + math.sqrt(alpha) * (1 - next_level) * x_t) / (1 - level)
        norm = score_norm_at(norms, timesteps[index], config.num_train_timesteps)
        sigma = math.sqrt(optimal_variance(level, next_level, norm))
        noise = randn_per_sample(x_t.shape[1:], generators, x_t.device).to(x_t.dtype)
        return mean + sigma * noise

    return step_once


def _clipping_function(
    scheduler: SchedulerMixin,
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """clip_output(output, x_t, t): the prediction whose x_0_hat is bounded, ready for step().

    Where there is nothing to bound or to translate, output comes back as it is. Solvers that accept
    x_0_hat itself are set to receive it, because eps says little about x_0 at the last timesteps;
    those that know no x_0_hat receive eps.
    """
    kind, name = scheduler.config.prediction_type, type(scheduler).__name__
    clips_itself = isinstance(scheduler, (DDPMScheduler, UnCLIPScheduler))
    thresholds = scheduler.config.get("thresholding", False)
    bound = None if clips_itself and not thresholds else _bound(scheduler)
    spoken = "epsilon" if kind == "sample" and name in SPEAK_NO_X_0 else kind
    if bound is not None and "thresholding" in _parameters(scheduler):
        spoken = "sample"
    if bound is None and spoken == kind:
        return lambda output, x_t, t: output
    _leave_unbounded(scheduler, spoken)
    abar = alphas_cumprod(scheduler)

    def clip_output(output: Tensor, x_t: Tensor, t: float) -> Tensor:
        level = abar_at(abar, t)
        output, fraction = output[:, : x_t.shape[1]], output[:, x_t.shape[1] :]
        x_0_hat = x_0_hat_of(kind, output, x_t, level)
        x_0_hat = x_0_hat if bound is None else bound(x_0_hat)
        eps_hat = (x_t - math.sqrt(level) * x_0_hat) / math.sqrt(1 - level)
        v_hat = math.sqrt(level) * eps_hat - math.sqrt(1 - level) * x_0_hat
        said = {"sample": x_0_hat, "epsilon": eps_hat, "v_prediction": v_hat}[spoken]
        return torch.cat([said, fraction], dim=1)

    return clip_output


def _bound(scheduler: SchedulerMixin) -> Callable[[Tensor], Tensor] | None:
    """What the scheduler's config asks to be done to x_0_hat, None for nothing.

    Solvers made with from_config() keep the clip_sample of the config they came from but ignore
    it; here it counts. A threshold at 1 is a clamp too, and cheaper without the quantile that it
    never uses.
    """
    config = scheduler.config
    if config.get("use_flow_sigmas", False):
        return None
    if config.get("thresholding", False):
        if config.get("sample_max_value", 1.0) <= 1:
            return lambda x_0_hat: x_0_hat.clamp(-1, 1)
        ratio, largest = config.get("dynamic_thresholding_ratio", 0.995), config.sample_max_value
        return lambda x_0_hat: dynamic_threshold(x_0_hat, ratio, largest)
    if not config.get("clip_sample", False):
        return None
    clip_range = config.get("clip_sample_range", 1.0)
    return lambda x_0_hat: x_0_hat.clamp(-clip_range, clip_range)


def _leave_unbounded(scheduler: SchedulerMixin, prediction_type: str) -> None:
    """Set a copy of a scheduler to take x_0_hat, eps or v as it is given."""
    off = {key: False for key in ("clip_sample", "thresholding") if key in _parameters(scheduler)}
    scheduler.register_to_config(prediction_type=prediction_type, **off)


def _parameters(scheduler: SchedulerMixin) -> Mapping[str, inspect.Parameter]:
    """The settings that the class of a scheduler knows."""
    return inspect.signature(type(scheduler).__init__).parameters


def _at_least_3d(x: Tensor) -> Tensor:
    """Embeddings [B, D] as [B, D, 1]: the library's thresholding needs a third dimension."""
    return x.unsqueeze(-1) if x.ndim == 2 else x
