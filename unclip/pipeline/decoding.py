"""How a latent is decoded: the settings that every operation on latents shares, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from unclip.diffusion.timesteps import Steps
from unclip.pipeline import arguments
from unclip.pipeline.advice import refuse_unknown
from unclip.pipeline.call import Report, check_report
from unclip.pipeline.settings import check_image_guidance, first, scales_of

MAX_CLIP_GUIDANCE = 1000.0
MAX_REFINEMENTS = 100


@dataclass(frozen=True)
class Decoding:
    """Settings of all operations on latents; what is None is the model's default.

    Args:
        prompt: words for the decoder beside z_img; none unless given.
        negative_prompt: takes the place of the empty text that guidance leads away from.
        guidance_scale: the decoder's; where x_T is a picture's own, 1 is the default and no
            guidance, because inversion is exact there.
        image_guidance_scale: of z_img alone, as in StageSettings.
        ..._num_inference_steps: as in a call of the pipeline; the prior draws z_img of captions.
        prior_guidance_scale, num_prior_candidates: the prior's, as in a call of the pipeline.
        num_refinements: fixed-point iterations a step of inversion, see ddim_invert.
        eta: noise that DDIM adds at every step, from 0 (none) to 1 (as much as DDPM).
        clip_x_0: whether every prediction of x_0 is clamped to [-1, 1]; not where x_T is a
            picture's own, because inversion cannot undo it.
        clip_guidance_scale: weight of the gradient of CLIP's score of clip_prompt, 0 for none.
        clip_prompt: what that score is of; prompt unless given.
        size: pixels a side, as in a call of the pipeline.
        seeds, generator: as in a call of the pipeline. One seed serves all frames of a path.
        max_batch_size: pictures at a time, as in a call of the pipeline.
        output_type, return_dict: as in a call of the pipeline.
        callback_on_step_end, callback_on_step_end_tensor_inputs, interrupt: as in a call of the
            pipeline. Steps of inversion are not told of, but a cancelled call ends there too.
    """

    prompt: str = ""
    negative_prompt: str = ""
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    decoder_num_inference_steps: Steps | None = None
    upsampler_256_num_inference_steps: Steps | None = None
    upsampler_1024_num_inference_steps: Steps | None = None
    prior_num_inference_steps: Steps | None = None
    prior_guidance_scale: float | None = None
    num_prior_candidates: int | None = None
    num_refinements: int = 3
    eta: float = 0.0
    clip_x_0: bool | None = None
    clip_guidance_scale: float = 0.0
    clip_prompt: str | None = None
    size: int | None = None
    seeds: int | list[int] | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    max_batch_size: int | None = None
    output_type: str = "pil"
    return_dict: bool = True
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("x_t",)
    interrupt: Any = None

    @property
    def report(self) -> Report:
        """What is told about every step, and whether the call is to end."""
        inputs = self.callback_on_step_end_tensor_inputs
        return check_report(self.callback_on_step_end, inputs, self.interrupt)

    def steps(self, stage: str) -> Steps:
        """The steps of a stage."""
        return getattr(self, f"{stage}_num_inference_steps")


def check_decoding(
    given: Mapping[str, Any],
    components: Mapping[str, Any],
    config: Mapping[str, Any],
    own_noise: bool,
) -> Decoding:
    """The settings that were given, checked, and the model's defaults for the others.

    config: that of the pipeline, with its defaults.
    own_noise: whether x_T is a picture's own, found by inversion.

    Raises:
        ValueError: for a value that cannot be, by name.
        TypeError: for a name that Decoding does not know, with what may have been meant.
    """
    refuse_unknown(given, [field.name for field in fields(Decoding)])
    asked = Decoding(**given)
    stages = arguments.check_size(asked.size, components)
    steps = {
        f"{stage}_num_inference_steps": check_stage_steps(asked, stage, components, config)
        for stage in ("prior", *stages)
        if components[stage] is not None
    }
    guidance, prior_guidance = asked.guidance_scale, asked.prior_guidance_scale
    default_guidance = config["default_guidance"]
    usual = {"decoder": 1.0} if own_noise and guidance is None else default_guidance
    has_words = bool(asked.prompt or asked.negative_prompt)
    scales = scales_of("decoder", guidance, asked.image_guidance_scale, usual, has_words)
    if prior_guidance is None:
        prior_guidance = default_guidance["prior"]
    interval = arguments.check_interval("guidance_interval", asked.guidance_interval)
    if asked.image_guidance_scale is not None:
        check_image_guidance("image_guidance_scale", "decoder", asked.image_guidance_scale)
    for name in ("prompt", "negative_prompt"):
        check_text(name, getattr(asked, name))
    scales["guidance_scale"] = arguments.check_guidance("guidance_scale", scales["guidance_scale"])
    check_clip_guidance(asked)
    arguments.check_choice("output_type", asked.output_type, arguments.OUTPUT_TYPES)
    asked.report.check()
    arguments.check_batch_size(asked.max_batch_size)
    check_whole("num_refinements", asked.num_refinements, 0, MAX_REFINEMENTS)
    return replace(
        asked,
        **steps,
        **scales,
        prior_guidance_scale=arguments.check_guidance("prior_guidance_scale", prior_guidance),
        num_prior_candidates=arguments.check_candidates(asked.num_prior_candidates, config),
        guidance_interval=first(interval, config["default_guidance_interval"]),
        guidance_rescale=check_number("guidance_rescale", asked.guidance_rescale, 0, 1),
        eta=check_number("eta", asked.eta, 0, 1),
        clip_x_0=not own_noise if asked.clip_x_0 is None else bool(asked.clip_x_0),
        size=asked.size or list(stages.values())[-1],
    )


def check_stage_steps(
    asked: Decoding,
    stage: str,
    components: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Steps:
    """The steps of a stage, the model's own unless they are given."""
    steps = asked.steps(stage)
    steps = config["default_steps"][stage] if steps is None else steps
    return arguments.check_steps(f"{stage}_num_inference_steps", steps, components, stage)


def check_clip_guidance(asked: Decoding) -> None:
    """Refuse a gradient of CLIP's score that has no text to be of."""
    check_number("clip_guidance_scale", asked.clip_guidance_scale, 0, MAX_CLIP_GUIDANCE)
    if asked.clip_prompt is not None:
        check_text("clip_prompt", asked.clip_prompt)
    if asked.clip_guidance_scale and not (asked.clip_prompt or asked.prompt):
        raise ValueError("clip_prompt: give the text that clip_guidance_scale leads towards")


def check_text(argument: str, value: Any) -> str:
    """A single text."""
    if not isinstance(value, str):
        raise ValueError(f"{argument}: give one text, not {arguments.short(value)}")
    return arguments.check_texts(argument, value)[0]


def check_number(argument: str, value: Any, low: float, high: float) -> float:
    """A number from low to high."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # nan compares false
        raise ValueError(
            f"{argument}: give a number from {low:g} to {high:g}, not {arguments.short(value)}"
        )
    return float(value)


def check_whole(argument: str, value: Any, low: int, high: int) -> int:
    """A whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(
            f"{argument}: give a whole number from {low} to {high}, not {arguments.short(value)}"
        )
    return value


def check_noise(x_T: Any, num_rows: int, size: int) -> Tensor:
    """Noise x_T [num_rows, 3, S, S]; a single one may be [3, S, S] and serves all rows."""
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point():
        raise ValueError(
            f"x_T: give a float tensor [N, 3, {size}, {size}], not {arguments.short(x_T)}"
        )
    x_T = x_T[None] if x_T.ndim == 3 else x_T
    if x_T.shape[1:] != (3, size, size) or len(x_T) not in (1, num_rows):
        raise ValueError(
            f"x_T: the shape must be [{num_rows}, 3, {size}, {size}], not {list(x_T.shape)}"
        )
    if not torch.isfinite(x_T).all():
        raise ValueError("x_T: all values must be finite")
    return x_T.float().expand(num_rows, -1, -1, -1)
