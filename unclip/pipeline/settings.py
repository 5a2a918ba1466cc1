"""How each stage is sampled in one call: what was asked for, checked, and the model's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from unclip.diffusion.timesteps import Steps
from unclip.pipeline import arguments
from unclip.pipeline.arguments import GUIDED, STAGES
from unclip.pipeline.schedulers import chosen_scheduler, thresholded

MAX_REUSE = 10


@dataclass(frozen=True)
class StageSettings:
    """How a stage is sampled; None leaves the choice to the model.

    Attributes:
        steps: a number, "fast27", "ddimN", or a descending list of timesteps.
        guidance_scale: of the prior and the decoder; 0 ignores the caption, 1 does not guide.
        image_guidance_scale: of the decoder, for z_img, so that guidance_scale is the caption's; 1
            leads by the caption alone at the same cost, others at half as much again. One scale
            for both where a model has no other default (DALL-E 2). Without words in a call one
            scale leads z_img: this one, else guidance_scale, else the model's for z_img.
        negative_prompt: what the guidance of this stage leads away from; one text, or one a prompt.
        scheduler: the name of a sampler ("ddpm", "analytic", "ddim", "dpm++", "unipc", "euler",
            ...), or a diffusers scheduler; any that can sample the network.
        guidance_interval: (low, high) timesteps; guidance is used between them alone. (0, 1000) is
            always, where a model's decoder has another default.
        guidance_rescale: share from 0 to 1 to which guided predictions get back their spread.
        dynamic_threshold: percentile from 0.5 to 1 of Imagen's dynamic thresholding, for pictures.
        reuse: so many steps of the decoder share the deep levels of its network, an approximation
            that is quicker (unclip.models.reuse); from 1, which is exact, to 10.
        latents: x_T [B, ...] to begin from, in place of the seeds' noise: [B, D] for the prior,
            or [K, B, D] for K candidates.
    """

    steps: Steps | None = None
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    negative_prompt: str | list[str] | None = None
    scheduler: str | SchedulerMixin | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    dynamic_threshold: float | None = None
    reuse: int | None = None
    latents: Tensor | None = None


def check_settings(
    components: Mapping[str, Any],
    given: Mapping[str, Any],
    steps: Mapping[str, Any],
    guidance: Mapping[str, Any],
    config: Mapping[str, Any],
    has_words: bool = True,
) -> dict[str, StageSettings]:
    """The settings of every stage that the model has, whole: with steps, scale and scheduler.

    given: the call's argument "stages". steps, guidance: its other arguments, by stage, None where
    they are not given. config: the pipeline's, with its defaults. has_words: whether there is a
    caption, or a negative one.

    Raises:
        ValueError: for a bad value, beginning with the name of its argument.
    """
    asked = check_stage_names(given, components)
    settings = {}
    for stage in STAGES:
        if components[stage] is None:
            continue
        chosen = asked.get(stage, StageSettings())
        own = f"stages[{stage!r}]"
        settings[stage] = check_stage(stage, chosen, own, components)
        where = f"{own}.steps" if chosen.steps is not None else f"{stage}_num_inference_steps"
        value = first(chosen.steps, steps[stage], config["default_steps"][stage])
        parts = {**components, f"{stage}_scheduler": settings[stage].scheduler}
        value = arguments.check_steps(where, value, parts, stage)
        settings[stage] = replace(settings[stage], steps=value)
        if stage in GUIDED:
            where = "guidance_scale" if stage == "decoder" else "prior_guidance_scale"
            where = f"{own}.guidance_scale" if chosen.guidance_scale is not None else where
            scale = first(chosen.guidance_scale, guidance[stage])
            scales = scales_of(
                stage, scale, chosen.image_guidance_scale, config["default_guidance"], has_words
            )
            scales["guidance_scale"] = arguments.check_guidance(where, scales["guidance_scale"])
            settings[stage] = replace(settings[stage], **scales)
        if stage == "decoder":
            interval = first(chosen.guidance_interval, config["default_guidance_interval"])
            settings[stage] = replace(settings[stage], guidance_interval=interval)
    return settings


def scales_of(
    stage: str,
    scale: float | None,
    image_scale: float | None,
    defaults: Mapping[str, float],
    has_words: bool,
) -> dict[str, float | None]:
    """The scales of guidance of a stage: those asked for, else the model's.

    Without words there is z_img alone, and one scale: what leads it is guidance_scale.
    """
    of_image = defaults.get("image") if stage == "decoder" else None
    if has_words:
        return {
            "guidance_scale": first(scale, defaults[stage]),
            "image_guidance_scale": first(image_scale, of_image),
        }
    one = first(image_scale, scale, of_image, defaults[stage])
    return {"guidance_scale": one, "image_guidance_scale": None}


def check_stage_names(
    given: Mapping[str, Any] | None, components: Mapping[str, Any]
) -> dict[str, StageSettings]:
    """The argument "stages" with a StageSettings for each stage that it names."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"stages: give settings by stage, not {arguments.short(given)}")
    known = {field.name for field in fields(StageSettings)}
    asked = {}
    for stage, chosen in (given or {}).items():
        arguments.check_choice("stages", stage, STAGES)
        if components[stage] is None:
            raise ValueError(f"stages: this model has no {stage}")
        if isinstance(chosen, Mapping):
            for name in set(chosen) - known:
                arguments.check_choice(f"stages[{stage!r}]", name, sorted(known))
            chosen = StageSettings(**chosen)
        if not isinstance(chosen, StageSettings):
            raise ValueError(
                f"stages[{stage!r}]: give StageSettings or a dict, not {arguments.short(chosen)}"
            )
        asked[stage] = chosen
    return asked


def check_stage(
    stage: str, asked: StageSettings, own: str, components: Mapping[str, Any]
) -> StageSettings:
    """The settings of one stage, checked, with the scheduler that they come to."""
    network, scheduler = components[stage], components[f"{stage}_scheduler"]
    for name in ("guidance_scale", "negative_prompt", "guidance_interval", "guidance_rescale"):
        if stage not in GUIDED and getattr(asked, name) not in (None, 0):
            raise ValueError(f"{own}.{name}: {stage} has no guidance; leave it out")
    if asked.image_guidance_scale is not None:
        check_image_guidance(f"{own}.image_guidance_scale", stage, asked.image_guidance_scale)
    if asked.negative_prompt is not None:
        arguments.check_texts(f"{own}.negative_prompt", asked.negative_prompt)
    number = isinstance(asked.guidance_rescale, int | float)
    if not number or not 0 <= asked.guidance_rescale <= 1:
        raise ValueError(
            f"{own}.guidance_rescale: give a number from 0 to 1, not "
            f"{arguments.short(asked.guidance_rescale)}"
        )
    interval = arguments.check_interval(f"{own}.guidance_interval", asked.guidance_interval)
    argument = f"{own}.scheduler" if asked.scheduler is not None else f"{stage}_scheduler"
    scheduler = chosen_scheduler(argument, stage, network, scheduler, asked.scheduler)
    if asked.dynamic_threshold is not None:
        check_threshold(f"{own}.dynamic_threshold", stage, asked.dynamic_threshold)
        scheduler = thresholded(scheduler, float(asked.dynamic_threshold))
    if asked.reuse is not None:
        check_reuse(f"{own}.reuse", stage, network, asked.reuse)
    if asked.latents is not None:
        check_latents(f"{own}.latents", asked.latents)
    return replace(asked, guidance_interval=interval, scheduler=scheduler)


def check_reuse(argument: str, stage: str, network: Any, value: Any) -> None:
    """Refuse what is no number of steps, and networks without deep levels to keep."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_REUSE:
        raise ValueError(
            f"{argument}: give a number from 1 to {MAX_REUSE}, not {arguments.short(value)}"
        )
    if stage != "decoder":
        raise ValueError(f"{argument}: it is for the decoder alone; leave it out")
    if value > 1 and network.config.attention_levels[0]:
        raise ValueError(f"{argument}: this decoder attends at its first level; leave it out")


def check_image_guidance(argument: str, stage: str, value: Any) -> None:
    """Refuse what is no scale, and stages without a z_img to be led by."""
    if stage != "decoder":
        raise ValueError(f"{argument}: it is for the decoder alone; leave it out")
    arguments.check_guidance(argument, value)


def check_threshold(argument: str, stage: str, value: Any) -> None:
    """A percentile, of a stage whose results lie in [-1, 1]."""
    if stage == "prior":
        raise ValueError(f"{argument}: it is for pictures; leave it out of the prior")
    if not isinstance(value, int | float) or not 0.5 <= value <= 1:
        raise ValueError(
            f"{argument}: give a percentile from 0.5 to 1, not {arguments.short(value)}"
        )


def check_latents(argument: str, value: Any) -> None:
    """Noise that can be begun from; its shape is seen when the number of pictures is known."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{argument}: give a float tensor, not {arguments.short(value)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{argument}: all values must be finite")


def check_latent_shapes(
    settings: Mapping[str, StageSettings],
    components: Mapping[str, Any],
    sides: Mapping[str, int],
    num_images: int,
    num_candidates: int,
) -> dict[str, Tensor]:
    """x_T by stage, where it was given: [B, 3, S, S], and [K, B, D] for the prior."""
    found = {}
    for stage, chosen in settings.items():
        if chosen.latents is None:
            continue
        x_T = chosen.latents.float()
        if stage == "prior":
            wanted = (num_candidates, num_images, components["prior"].config.embedding_dim)
            x_T = x_T[None] if x_T.ndim == 2 else x_T
        elif stage not in sides:
            raise ValueError(f"stages[{stage!r}].latents: this size does not need {stage}")
        else:
            wanted = (num_images, 3, sides[stage], sides[stage])
        if x_T.shape != wanted:
            raise ValueError(
                f"stages[{stage!r}].latents: the shape must be {list(wanted)}, not "
                f"{list(chosen.latents.shape)}"
            )
        found[stage] = x_T
    return found


def first(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)
