"""What prior and decoder are told of a batch's pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from unclip.models.clip import CLIP
from unclip_train.data.loader import to_unit_range


def image_embeddings(clip: CLIP, batch: dict, device: torch.device) -> Tensor:
    """z_img [B, D]: those that came with the batch, else those of its pictures."""
    if "z_img" in batch:
        return batch["z_img"].to(device, non_blocking=True)
    return clip.encode_image(to_unit_range(batch["image"], device))
