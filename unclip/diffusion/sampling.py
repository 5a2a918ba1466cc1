"""Sampling: one loop for every stage, the samplers it can use, DDIM inversion and seeds.

A stage hands denoise() a function predict(x_t, t) and a diffusers scheduler; prior embeddings
[B, D] and images [B, C, H, W] go through the same loop. Randomness comes only from one CPU
generator per sample, so that a sample does not depend on the batch it is made in.

Sources: DDPM = Ho et al. 2020 (arXiv 2006.11239), DDIM = Song et al. 2020 (arXiv 2010.02502),
ADM = Dhariwal & Nichol 2021 (arXiv 2105.05233), GLIDE = Nichol et al. 2021 (arXiv 2112.10741),
PD = Salimans & Ho 2022 (arXiv 2202.00512), unCLIP = Ramesh et al. 2022 (arXiv 2204.06125).
"""

import copy
import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    SchedulerMixin,
    UnCLIPScheduler,
)
from torch import Tensor

from .analytic import optimal_variance, score_norm_at
from .guidance import dynamic_threshold
from .samplers import SAMPLER_NAMES, SAMPLERS, check_scheduler_class
from .schedule import SCHEDULE_NAMES, linear_beta_range

# Schedulers whose step() raises for a prediction of x_0.
SPEAK_NO_X_0 = (
    "EulerAncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}
# GLIDE's "fast27": sections of 10, 10, 3, 2 and 2 steps, 999 moved to 997.
FAST27 = (
    *(997, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266, 244, 222, 200),
    *(199, 177, 155, 133, 111, 88, 66, 44, 22, 0),
)

Predict = Callable[[Tensor, Tensor], Tensor]
Steps = int | str | Sequence[int]


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
    _check_choice("sampler", sampler, SAMPLER_NAMES)
    _check_choice("schedule", schedule, SCHEDULE_NAMES)
    _check_choice("prediction", prediction, tuple(PREDICTION_TYPES))
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


def timesteps_for(steps: Steps, scheduler: SchedulerMixin) -> list[int] | list[float]:
    """Return the timesteps, descending, at which a network is evaluated for the given steps.

    steps: a number from 1 to num_train_timesteps, spaced as the scheduler's config says (one
    step starts at the last timestep, with any spacing); "fast27", GLIDE's list for upsamplers;
    "ddimN", the integer stride that gives exactly N steps (ddim15: every 67th from 0); or a
    descending list of timesteps. ValueError for anything else.
    """
    return _with_timesteps(scheduler, steps).timesteps.tolist()


def abar_of(scheduler: SchedulerMixin, t: float) -> float:
    """abar of a diffusers scheduler at a timestep, which may be fractional; 1 for x_0 at -1."""
    return 1.0 if t < 0 else _abar_at(_alphas_cumprod(scheduler), t)


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
    scheduler = _with_timesteps(scheduler, steps)
    step_once = _stepper(scheduler, generators, eta)
    timesteps = scheduler.timesteps
    indices = _part(len(timesteps), start, stop)
    x_t = x_T.to(torch.promote_types(x_T.dtype, torch.float32)) * _scale_at(scheduler, start)
    for index in indices if progress is None else progress(indices):
        where = f"at step {index + 1} of {len(timesteps)} (t = {timesteps[index].item()})"
        x_in = scheduler.scale_model_input(x_t, timesteps[index])
        output = _predicted(predict, x_in, timesteps[index], learned_variance)
        _check_finite(output, f"{stage}: the network's output is not finite {where}")
        if learned_variance and not _uses_variance(scheduler):
            output = output.chunk(2, dim=1)[0]
        x_t = step_once(index, output, x_t, x_in)
        if on_step is not None:
            t_next = timesteps[index + 1].item() if index + 1 < len(timesteps) else -1
            x_t = _replaced(on_step(index, t_next, x_t), x_t)
        _check_finite(x_t, f"{stage}: the sample is not finite {where}")
    return x_t


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
    predict, learned_variance, progress and stage are those of denoise(), and so are the errors.
    """
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(f"scheduler must be a DDIMScheduler, got {type(scheduler).__name__}")
    if num_refinements < 0:
        raise ValueError(f"num_refinements must not be negative, got {num_refinements}")
    scheduler = _with_timesteps(scheduler, steps)
    velocity = _velocity_function(predict, scheduler, learned_variance)
    angles = _angles(scheduler)[::-1]  # from 0 of x_0 to almost pi / 2
    timesteps = scheduler.timesteps.flip(0)
    x_t = x_0.to(torch.promote_types(x_0.dtype, torch.float32))
    indices = range(len(timesteps))
    for index in indices if progress is None else progress(indices):
        x_low, angle = x_t, angles[index + 1] - angles[index]
        # x_0 has no timestep of its own: the first one stands for it.
        v = velocity(x_low, timesteps[max(index - 1, 0)], angles[index])
        rough = math.cos(angle) * x_low + math.sin(angle) * v
        v_high = functools.partial(velocity, t=timesteps[index], angle=angles[index + 1])
        x_t = _solved_for_x_high(v_high, x_low, rough, angle, num_refinements)
        where = f"at step {index + 1} of {len(timesteps)} (t = {timesteps[index].item()})"
        _check_finite(x_t, f"{stage}: the inversion is not finite {where}")
    return x_t


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


def slerp(a: Tensor, b: Tensor, theta: float | Tensor) -> Tensor:
    """Spherical interpolation from a (theta = 0) to b (theta = 1)   (unCLIP section 3.2).

    slerp = (sin((1 - theta) omega) a + sin(theta omega) b) / sin(omega), omega the angle of a, b.
    a and b are [B, ...], each sample one vector (any norm); theta is a number or [B]. Nearly
    parallel vectors are interpolated linearly. ValueError for opposite vectors (no single path).
    """
    if a.shape != b.shape:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} differ in shape")
    flat_a, flat_b = (x.flatten(1).cpu().double() for x in (a, b))  # MPS has no float64
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1, eps=1e-12)
    if (cosine < -1 + 1e-6).any():
        raise ValueError("a and b point in opposite directions: there is no single path")
    omega = cosine.clamp(-1, 1).acos()
    theta = torch.as_tensor(theta, dtype=torch.float64).cpu().expand(len(a))
    parallel = omega < 1e-4
    safe = torch.where(parallel, torch.ones_like(omega), omega)
    weight_a = torch.where(parallel, 1 - theta, ((1 - theta) * safe).sin() / safe.sin())
    weight_b = torch.where(parallel, theta, (theta * safe).sin() / safe.sin())
    mixed = weight_a[:, None] * flat_a + weight_b[:, None] * flat_b
    return mixed.reshape(a.shape).to(a)


def child_generators(seeds: Sequence[int], stage: str) -> list[torch.Generator]:
    """One CPU generator a seed, on a stream of the stage's own.

    The stream's seed is the first 63 bits of sha256("seed|stage"), so a stage's noise does not
    depend on how much another stage drew. ValueError for seeds that are not integers.
    """
    return [torch.Generator().manual_seed(_child_seed(seed, stage)) for seed in seeds]


def randn_per_sample(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal noise [B, *shape] in float32: sample i from generators[i], then moved.

    shape is that of one sample. Each is drawn where its generator lives (the CPU).
    """
    if not generators:
        raise ValueError("generators must hold one generator a sample")
    draws = [torch.randn(tuple(shape), generator=g, device=g.device) for g in generators]
    return torch.stack(draws).to(device)


def _child_seed(seed: int, stage: str) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seeds must be integers, got {seed!r}")
    digest = hashlib.sha256(f"{seed}|{stage}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _beta_config(schedule: str, num_train_timesteps: int) -> dict[str, object]:
    if schedule == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2"}
    first, last = linear_beta_range(num_train_timesteps)
    return {"beta_schedule": "linear", "beta_start": first, "beta_end": last}


def _with_timesteps(scheduler: SchedulerMixin, steps: Steps) -> SchedulerMixin:
    """A copy of the scheduler with its timesteps set, on the CPU."""
    scheduler = copy.deepcopy(scheduler)
    num_train_timesteps = scheduler.config.num_train_timesteps
    explicit = _explicit_timesteps(steps, num_train_timesteps)
    if steps == 1 and isinstance(scheduler, UnCLIPScheduler):
        explicit = [num_train_timesteps - 1]  # it divides by steps - 1
    elif steps == 1:  # other spacings start one step at 0, or in the middle
        scheduler.register_to_config(timestep_spacing="trailing")
    if explicit is None:
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.tolist()
        if timesteps[-1] < 0:
            explicit = timesteps[:-1]  # "trailing" rounds 61 steps and others to one too many
    if explicit is not None:
        _set_explicit_timesteps(scheduler, explicit)
    return scheduler


def _set_explicit_timesteps(scheduler: SchedulerMixin, timesteps: list[int]) -> None:
    if isinstance(scheduler, (DDIMScheduler, UnCLIPScheduler)):
        scheduler.num_inference_steps = len(timesteps)
        scheduler.timesteps = torch.tensor(timesteps)
    elif "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(timesteps=timesteps)
    else:
        raise ValueError(
            f"steps that need the timesteps {timesteps} cannot be set on a "
            f"{type(scheduler).__name__}: give another number, or a DDIM, DDPM or DPM-Solver++ "
            "scheduler"
        )


def _explicit_timesteps(steps: Steps, num_train_timesteps: int) -> list[int] | None:
    """The timesteps that a name or a list stands for; None for a valid number of steps."""
    if isinstance(steps, str):
        return _named_timesteps(steps, num_train_timesteps)
    if isinstance(steps, Sequence):
        timesteps = list(steps)
        integers = all(isinstance(t, int) and not isinstance(t, bool) for t in timesteps)
        if not timesteps or not integers or timesteps != sorted(set(timesteps), reverse=True):
            raise ValueError(f"steps, as a list, must be descending integers, got {timesteps}")
        if timesteps[0] >= num_train_timesteps or timesteps[-1] < 0:
            raise ValueError(f"steps must lie in 0..{num_train_timesteps - 1}, got {timesteps}")
        return timesteps
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise ValueError(f"steps must be an integer, a name or a list of integers, got {steps!r}")
    if not 1 <= steps <= num_train_timesteps:
        raise ValueError(f"steps must lie in 1..{num_train_timesteps}, got {steps}")
    return None


def _named_timesteps(name: str, num_train_timesteps: int) -> list[int]:
    if name == "fast27":
        if num_train_timesteps != 1000:
            raise ValueError(f"steps 'fast27' is for 1000 timesteps, not {num_train_timesteps}")
        return list(FAST27)
    if not name.startswith("ddim") or not name[4:].isdecimal():
        raise ValueError(f"steps must be a number, 'fast27' or 'ddimN', got {name!r}")
    count = int(name[4:])
    for stride in range(1, num_train_timesteps + 1):
        timesteps = range(0, num_train_timesteps, stride)
        if len(timesteps) == count:
            return list(reversed(timesteps))
    raise ValueError(
        f"steps {name!r}: no integer stride over {num_train_timesteps} timesteps gives {count} "
        f"steps; use the number {count} instead"
    )


def _stepper(
    scheduler: SchedulerMixin, generators: list[torch.Generator], eta: float
) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """step_once(index, output, x_t, x_in) -> x at the next timestep."""
    if isinstance(scheduler, DDIMScheduler):
        return _ddim_stepper(scheduler, generators, eta)
    if scheduler.config.get("analytic", False):
        return _analytic_stepper(scheduler, generators)
    return _library_stepper(scheduler, generators, eta)


def _library_stepper(
    scheduler: SchedulerMixin, generators: list[torch.Generator], eta: float
) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """A step by the library's own scheduler.step; eta is for DDIM only and already checked."""
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
) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """A DDIM step to the next timestep of the list, where the library assumes an even stride."""
    abar = _alphas_cumprod(scheduler)
    levels = [abar[t].item() for t in scheduler.timesteps]
    levels.append(float(scheduler.final_alpha_cumprod))
    config, bound = scheduler.config, _bound(scheduler) or (lambda x_0_hat: x_0_hat)

    def step_once(index: int, output: Tensor, x_t: Tensor, x_in: Tensor) -> Tensor:
        x_0_hat = _x_0_hat(config.prediction_type, output, x_t, levels[index])
        x_0_hat = bound(x_0_hat)
        noise = None
        if eta > 0:
            noise = randn_per_sample(x_t.shape[1:], generators, x_t.device).to(x_t.dtype)
        return ddim_step(x_t, x_0_hat, levels[index], levels[index + 1], eta, noise)

    return step_once


def _analytic_stepper(
    scheduler: DDPMScheduler, generators: list[torch.Generator]
) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """An ancestral step with the optimal variance of Analytic-DPM; see analytic.py.

    E ||eps_hat||^2 / d is what the config's "score_norms" say.
    """
    abar, config = _alphas_cumprod(scheduler), scheduler.config
    timesteps = scheduler.timesteps.tolist()
    levels = [*(abar[t].item() for t in timesteps), 1.0]
    bound = _bound(scheduler) or (lambda x_0_hat: x_0_hat)
    norms = config.get("score_norms")
    if not norms:
        raise ValueError("scheduler: the sampler 'analytic' needs score_norms in its config")

    def step_once(index: int, output: Tensor, x_t: Tensor, x_in: Tensor) -> Tensor:
        level, next_level = levels[index], levels[index + 1]
        x_0_hat = _x_0_hat(config.prediction_type, output, x_t, level)
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
    abar = _alphas_cumprod(scheduler)

    def clip_output(output: Tensor, x_t: Tensor, t: float) -> Tensor:
        level = _abar_at(abar, t)
        output, fraction = output[:, : x_t.shape[1]], output[:, x_t.shape[1] :]
        x_0_hat = _x_0_hat(kind, output, x_t, level)
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


def _x_0_hat(prediction_type: str, output: Tensor, x_t: Tensor, abar: float) -> Tensor:
    """x_0_hat from a prediction of diffusers' prediction_type at the noise level abar."""
    _check_choice("prediction_type", prediction_type, tuple(PREDICTION_TYPES.values()))
    if prediction_type == "sample":
        return output
    if prediction_type == "epsilon":
        return (x_t - math.sqrt(1 - abar) * output) / math.sqrt(abar)
    return math.sqrt(abar) * x_t - math.sqrt(1 - abar) * output


def _velocity_function(
    predict: Predict, scheduler: DDIMScheduler, learned_variance: bool
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """v(x_t, t, angle) of a network asked at timestep t about an x_t whose noise level is angle.

    With sin(angle) = sqrt(1 - abar), v = (eps - sin(angle) x_t) / cos(angle). The angle is that
    of t, except for x_0, whose angle is 0 and whose v is eps.
    """
    abar = _alphas_cumprod(scheduler)
    kind = scheduler.config.prediction_type

    def velocity(x_t: Tensor, t: Tensor, angle: float) -> Tensor:
        output = _predicted(predict, x_t, t, learned_variance)
        if learned_variance:
            output = output.chunk(2, dim=1)[0]
        if kind == "v_prediction" and angle > 0:
            return output
        level = abar[t].item()
        if kind == "sample" and angle > 0:
            return (math.sqrt(level) * x_t - output) / math.sqrt(1 - level)
        x_0_hat = _x_0_hat(kind, output, x_t, level)
        eps_hat = (x_t - math.sqrt(level) * x_0_hat) / math.sqrt(1 - level)
        return (eps_hat - math.sin(angle) * x_t) / math.cos(angle)

    return velocity


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
    levels = [*_alphas_cumprod(scheduler)[scheduler.timesteps].tolist()]
    levels.append(float(scheduler.final_alpha_cumprod))
    return [math.atan2(math.sqrt(1 - level), math.sqrt(level)) for level in levels]


def _alphas_cumprod(scheduler: SchedulerMixin) -> Tensor:
    """abar_t [T] in float64, from the scheduler's float32 betas."""
    return (1 - scheduler.betas.double().cpu()).cumprod(dim=0)


def _abar_at(abar: Tensor, t: float) -> float:
    """abar at a timestep that may be fractional: the noise-to-signal ratio is interpolated."""
    sigmas = ((1 - abar) / abar).sqrt().numpy()
    return 1 / (1 + float(np.interp(t, np.arange(len(sigmas)), sigmas)) ** 2)


def _predicted(predict: Predict, x_t: Tensor, t: Tensor, learned_variance: bool) -> Tensor:
    """The network's output in x_t's dtype, its shape checked."""
    kind = torch.float32 if t.is_floating_point() else t.dtype  # MPS has no float64
    times = torch.full((x_t.shape[0],), t.item(), dtype=kind, device=x_t.device)
    output = predict(x_t, times)
    expected = (x_t.shape[0], x_t.shape[1] * (2 if learned_variance else 1), *x_t.shape[2:])
    if output.shape != expected:
        raise ValueError(
            f"predict returned {tuple(output.shape)} for x_t {tuple(x_t.shape)}, expected "
            f"{expected} (learned_variance is {learned_variance})"
        )
    return output.to(x_t.dtype)


def _replaced(replacement: Tensor | None, x_t: Tensor) -> Tensor:
    if replacement is None:
        return x_t
    if replacement.shape != x_t.shape:
        raise ValueError(
            f"on_step returned {tuple(replacement.shape)} in place of x_t {tuple(x_t.shape)}"
        )
    return replacement.to(x_t)


def _uses_variance(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler's step consumes a learned variance."""
    ancestral = isinstance(scheduler, (DDPMScheduler, UnCLIPScheduler))
    return ancestral and scheduler.config.variance_type in ("learned", "learned_range")


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


def _at_least_3d(x: Tensor) -> Tensor:
    """Embeddings [B, D] as [B, D, 1]: the library's thresholding needs a third dimension."""
    return x.unsqueeze(-1) if x.ndim == 2 else x


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
    if _uses_variance(scheduler) and not learned_variance:
        raise ValueError(
            f"the scheduler's variance_type {scheduler.config.variance_type!r} needs a network "
            "with learned_variance"
        )
    if not torch.isfinite(x_T).all():
        raise ValueError("x_T must be finite")


def _check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")


def _check_finite(x: Tensor, message: str) -> None:
    if not torch.isfinite(x).all():
        raise FloatingPointError(message)
