"""What a call of the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from unclip.diffusion.samplers import sampler_name
from unclip.models.clip import TextEncoding
from unclip.pipeline.arguments import GUIDED
from unclip.pipeline.order import Order
from unclip.pipeline.settings import StageSettings

# Settings of single stages that are told where they are not at their defaults.
SELDOM_SET = (
    *("image_guidance_scale", "guidance_interval", "guidance_rescale"),
    *("dynamic_threshold", "reuse"),
)
Images = list[Image.Image] | np.ndarray | Tensor


@dataclass
class UnCLIPOutput(BaseOutput):
    """Pictures, and what is needed to go on from them or to draw them again.

    Attributes:
        images: Pillow images, an array [B, S, S, 3] or a tensor [B, 3, S, S] in [0, 1].
        image_embeds: z_img [B, D] that the pictures were decoded from; None where none was.
        seeds: the seed of each picture.
        low_res: pictures of the earlier stages by their side (64, 256), in the form of images.
        settings: what else it takes to draw them again: stages, steps, guidance, sampler, size.
        text_embeds: the captions of the pictures as encode() gives them [B].
        scores: cosine of CLIP's embeddings of each picture and its caption, or without words what
            leads it [B], where best_of asked for them.
    """

    images: Images
    image_embeds: Tensor | None
    seeds: list[int]
    low_res: dict[int, Images]
    settings: dict[str, Any]
    text_embeds: TextEncoding | None = None
    scores: Tensor | None = None


def finished(x: Tensor, output_type: str) -> Images:
    """Pictures [B, 3, S, S] in [-1, 1] as "pil", "np", "pt" or "latent".

    A "latent" is the last x_0 as it was drawn.
    """
    if output_type == "latent":
        return x.float().cpu()
    x = ((x.float() + 1) / 2).clamp(0, 1).cpu()
    if output_type == "pt":
        return x.contiguous()
    pixels = x.permute(0, 2, 3, 1).contiguous()  # [B, S, S, 3]
    if output_type == "np":
        return pixels.numpy()
    levels = (pixels * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(picture) for picture in levels]


def settings_of(order: Order) -> dict[str, Any]:
    """What a call did, but for captions and seeds, in words that JSON can hold."""
    names = [*([] if order.led else ["prior"]), *order.stages]
    chosen = {name: order.settings[name] for name in names}
    settings = {
        "stages": names,
        "steps": {name: one.steps for name, one in chosen.items()},
        "guidance": {name: chosen[name].guidance_scale for name in names if name in GUIDED},
        "sampler": {name: sampler_name(one.scheduler) for name, one in chosen.items()},
        "size": order.size,
    }
    for key in SELDOM_SET:
        own = {name: getattr(one, key) for name, one in chosen.items()}
        own = {name: value for name, value in own.items() if value != getattr(StageSettings, key)}
        settings |= {key: own} if own else {}
    return settings if order.led else {**settings, "num_prior_candidates": order.num_candidates}
