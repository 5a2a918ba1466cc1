"""Features that a U-Net may keep from one step for the next ones: an approximation, for speed.

Source: DeepCache = Ma et al. 2023 (arXiv 2312.00858): between neighbouring steps the deep levels of
a U-Net change little, so that most steps need its first level alone.

The levels are run one by one, as UNet2DConditionModel.forward does: a hook on a block would be told
of the passes of other threads as well.

Shapes: B batch, C channels, h and w grid, E time embedding, P tokens of the context.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn


def whole_pass(
    unet: UNet2DConditionModel,
    h: Tensor,
    t: Tensor,
    time: Tensor,
    encoder_hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """All levels: what the U-Net predicts, and what its last block was given from below.

    h [B, C, h, w] at t, time [B, E] beside the time embedding; the others as UNet2DConditionModel
    has them: the context [B, P, C'], its mask [B, P], and what the attention layers are told.
    """
    embedding = time_embedding(unet, h, t, time)
    if attention_mask is not None:  # as the library tells its layers what to leave out
        attention_mask = (1 - attention_mask.to(h.dtype))[:, None] * -10000.0  # [B, 1, P]
    told = {
        "temb": embedding,
        "encoder_hidden_states": encoder_hidden_states,
        "attention_mask": attention_mask,
        "cross_attention_kwargs": cross_attention_kwargs,
    }
    x = unet.conv_in(h)
    skipped = [x]
    for block in unet.down_blocks:
        x, outputs = block(hidden_states=x, **told)
        skipped.extend(outputs)
    x = unet.mid_block(x, **told)
    *inner, last = unet.up_blocks
    for block in inner:
        x = upwards(block, x, skipped, told)
    return predicted(unet, upwards(last, x, skipped, told)), x


def outer_pass(
    unet: UNet2DConditionModel, h: Tensor, t: Tensor, time: Tensor, from_below: Tensor
) -> Tensor:
    """The first level alone, over what its last block was given from below at another step."""
    embedding = time_embedding(unet, h, t, time)
    x = unet.conv_in(h)
    skipped = [x]
    for block in unet.down_blocks[0].resnets:
        x = block(x, embedding)
        skipped.append(x)
    return predicted(unet, upwards(unet.up_blocks[-1], from_below, skipped, {"temb": embedding}))


def time_embedding(unet: UNet2DConditionModel, h: Tensor, t: Tensor, time: Tensor) -> Tensor:
    """What the residual blocks are told [B, E] of t, and of what stands beside it."""
    return unet.time_embedding(unet.get_time_embed(sample=h, timestep=t)) + time


def upwards(block: nn.Module, x: Tensor, skipped: list[Tensor], told: dict[str, Any]) -> Tensor:
    """A block of the way up, which takes its part of what was skipped from the end of the list."""
    first = len(skipped) - len(block.resnets)
    used = tuple(skipped[first:])
    del skipped[first:]
    return block(hidden_states=x, res_hidden_states_tuple=used, **told)


def predicted(unet: UNet2DConditionModel, x: Tensor) -> Tensor:
    """What the U-Net says after its last block."""
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
