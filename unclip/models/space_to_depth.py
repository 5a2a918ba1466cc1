"""Space to depth: cells of pixels become channels, so that a network works on a smaller grid.

Shapes: B batch, C channels, H and W grid, p the stem: pixels along the side of a cell.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def space_to_depth(x: Tensor, stem: int) -> Tensor:
    """[B, C, H p, W p] -> [B, C p p, H, W]: the p by p pixels of a cell side by side as channels.

    Raises:
        ValueError: when a side is no multiple of the stem.
    """
    if x.shape[-1] % stem or x.shape[-2] % stem:
        raise ValueError(f"a picture of {tuple(x.shape[-2:])} pixels has no whole cells of {stem}")
    return rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=stem, q=stem)


def depth_to_space(x: Tensor, stem: int) -> Tensor:
    """[B, C p p, H, W] -> [B, C, H p, W p]: the inverse of space_to_depth."""
    return rearrange(x, "b (c p q) h w -> b c (h p) (w q)", p=stem, q=stem)
