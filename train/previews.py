"""Sheets of pictures to look at while a network learns."""

from __future__ import annotations

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor


def picture_grid(rows: list[Tensor]) -> Image.Image:
    """Batches [B, 3, S, S] in [-1, 1], one a row, as a single picture."""
    pixels = rearrange(torch.stack(rows).float().cpu(), "r b c h w -> (r h) (b w) c")
    return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().numpy())
