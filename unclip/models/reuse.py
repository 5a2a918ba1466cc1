"""Features that a U-Net may keep from one step for the next ones: an approximation, for speed.

Source: DeepCache = Ma et al. 2023 (arXiv 2312.00858): between neighbouring steps the deep levels of
a U-Net change little, so that most steps need its first level alone.

Shapes: B batch, C channels, h and w grid, E time embedding.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor


def whole_pass(
    unet: UNet2DConditionModel, h: Tensor, t: Tensor, time: Tensor, **told: Any
) -> tuple[Tensor, Tensor]:
    """All levels: what the U-Net predicts, and what its last block was given from below.

    h [B, C, h, w] at t, time [B, E] beside the time embedding; told are other arguments.
    """
    kept: list[Tensor] = []
    watched = unet.up_blocks[-1].register_forward_pre_hook(
        lambda block, args, given: kept.append(given["hidden_states"]), with_kwargs=True
    )
    try:
        output = unet(h, t, class_labels=time, **told).sample
    finally:
        watched.remove()
    return output, kept[0]


def outer_pass(
    unet: UNet2DConditionModel, h: Tensor, t: Tensor, time: Tensor, from_below: Tensor
) -> Tensor:
    """The first level alone, over what its last block was given from below at another step."""
    embedding = unet.time_embedding(unet.get_time_embed(sample=h, timestep=t)) + time
    x = unet.conv_in(h)
    skipped = [x]
    for block in unet.down_blocks[0].resnets:
        x = block(x, embedding)
        skipped.append(x)
    x = unet.up_blocks[-1](
        hidden_states=from_below, res_hidden_states_tuple=tuple(skipped), temb=embedding
    )
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
