"""The samplers that a stage can be given by name, and the schedulers that cannot sample it.

Sources: DDPM = Ho et al. 2020 (arXiv 2006.11239), DDIM = Song et al. 2020 (2010.02502),
Analytic-DPM = Bao et al. 2022 (2201.06503), DPM-Solver++ = Lu et al. 2022 (2211.01095), UniPC =
Zhao et al. 2023 (2302.04867), DEIS = Zhang & Chen 2022 (2204.13902), Euler and Heun = Karras et
al. 2022 (2206.00364), SA-Solver = Xue et al. 2023 (2309.05019).
"""

from typing import Any, NamedTuple

import diffusers
from diffusers import SchedulerMixin


class Sampler(NamedTuple):
    """A diffusers scheduler by the name of its class, and how it is set up."""

    class_name: str
    settings: dict[str, Any] = {}

    @property
    def scheduler_class(self) -> type[SchedulerMixin]:
        """The class itself."""
        return getattr(diffusers, self.class_name)


SAMPLERS = {
    "ddpm": Sampler("DDPMScheduler"),  # ancestral; uses a learned variance
    "analytic": Sampler("DDPMScheduler", {"variance_type": "fixed_small"}),  # the paper's prior
    "ddim": Sampler("DDIMScheduler"),
    "dpm++": Sampler("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++sde": Sampler(
        "DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}
    ),
    "dpm++s": Sampler(
        "DPMSolverSinglestepScheduler", {"solver_order": 2, "lower_order_final": True}
    ),
    "unipc": Sampler("UniPCMultistepScheduler", {"solver_order": 2}),
    "deis": Sampler("DEISMultistepScheduler", {"solver_order": 2}),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler-a": Sampler("EulerAncestralDiscreteScheduler"),
    "heun": Sampler("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    "sa": Sampler("SASolverScheduler"),
}
SAMPLER_NAMES = tuple(SAMPLERS)
SCHEDULER_CLASSES = tuple(dict.fromkeys(sampler.class_name for sampler in SAMPLERS.values()))

# Schedulers that have betas and yet draw nothing from an ordinary network.
DISTILLED = "is for networks that were distilled for few steps"
REFUSED = {
    "LCMScheduler": DISTILLED,
    "TCDScheduler": DISTILLED,
    "DDIMInverseScheduler": "goes from pictures to noise",
    "DPMSolverMultistepInverseScheduler": "goes from pictures to noise",
    "RePaintScheduler": "needs a picture and a mask at every step",
    "CogVideoXDDIMScheduler": "is for video latents",
    "CogVideoXDPMScheduler": "is for video latents",
    "DDPMParallelScheduler": "is for parallel sampling",
    "DDIMParallelScheduler": "is for parallel sampling",
    "PNDMScheduler": "cannot do one step, nor predictions of x_0",
}


def check_scheduler_class(scheduler: SchedulerMixin) -> None:
    """Refuse a scheduler that cannot sample, by the name of its class and with the reason.

    Raises:
        ValueError: naming the samplers that can be had instead.
    """
    name = type(scheduler).__name__
    reason = REFUSED.get(name)
    if reason is None and not all(hasattr(scheduler, part) for part in NEEDED):
        reason = "has no betas: it is for flows or for other noise than ours"
    if reason is not None:
        raise ValueError(f"{name} {reason}; give one of {', '.join(SAMPLER_NAMES)}")


NEEDED = ("betas", "scale_model_input", "step")


def sampler_name(scheduler: SchedulerMixin) -> str:
    """The name of a scheduler's sampler; of one that has none, that of its class."""
    config, kind = scheduler.config, type(scheduler).__name__
    if kind == "DDPMScheduler":
        return "analytic" if config.get("analytic", False) else "ddpm"
    is_multistep = kind == "DPMSolverMultistepScheduler"  # others may keep its settings unread
    if is_multistep and config.get("algorithm_type") == "sde-dpmsolver++":
        return "dpm++sde"
    names = (name for name, sampler in SAMPLERS.items() if sampler.class_name == kind)
    return next(names, kind)
