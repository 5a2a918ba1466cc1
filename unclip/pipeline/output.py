"""What a call of the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

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
    """

    images: Images
    image_embeds: Tensor | None
    seeds: list[int]
    low_res: dict[int, Images]
    settings: dict[str, Any]


def finished(x: Tensor, output_type: str) -> Images:
    """Pictures [B, 3, S, S] in [-1, 1] in the form that was asked for: "pil", "np" or "pt"."""
    x = ((x.float() + 1) / 2).clamp(0, 1).cpu()
    if output_type == "pt":
        return x.contiguous()
    pixels = x.permute(0, 2, 3, 1).contiguous()  # [B, S, S, 3]
    if output_type == "np":
        return pixels.numpy()
    levels = (pixels * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(picture) for picture in levels]
