"""The timesteps at which a network is evaluated: numbers, names and lists of steps.

Source of the names: GLIDE = Nichol et al. 2021 (arXiv 2112.10741) and its code.
"""

import copy
import inspect
from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, SchedulerMixin, UnCLIPScheduler

# GLIDE's "fast27": sections of 10, 10, 3, 2 and 2 steps, 999 moved to 997.
FAST27 = (
    *(997, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266, 244, 222, 200),
    *(199, 177, 155, 133, 111, 88, 66, 44, 22, 0),
)

Steps = int | str | Sequence[int]


def timesteps_for(steps: Steps, scheduler: SchedulerMixin) -> list[int] | list[float]:
    """Return the timesteps, descending, at which a network is evaluated for the given steps.

    steps: a number from 1 to num_train_timesteps, spaced as the scheduler's config says (one
    step starts at the last timestep, with any spacing); "fast27", GLIDE's list for upsamplers;
    "ddimN", the integer stride that gives exactly N steps (ddim15: every 67th from 0); or a
    descending list of timesteps. ValueError for anything else.
    """
    return with_timesteps(scheduler, steps).timesteps.tolist()


def with_timesteps(scheduler: SchedulerMixin, steps: Steps) -> SchedulerMixin:
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
