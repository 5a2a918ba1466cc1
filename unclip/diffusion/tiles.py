"""Predictions for a canvas larger than a network's pictures, joined from overlapping tiles.

Source: MultiDiffusion = Bar-Tal et al. 2023 (arXiv 2302.08113), section 4: at every step each
window is predicted alone and the predictions are averaged, so the windows share one x_t.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from .prediction import Predict

Tile = tuple[slice, slice]  # rows and columns of the canvas
PredictTile = Callable[[Tensor, Tensor, Tile], Tensor]


def tile_starts(size: int, tile_size: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where tiles begin that cover size pixels, evenly spread, each overlapping the next.

    overlap: pixels that neighbours share at least. multiple: of which every start is one.
    ValueError when size and tile_size are no multiples of it or the tiles do not move on.
    """
    if size % multiple or tile_size % multiple:
        raise ValueError(f"tile_size {tile_size} and {size} pixels must be multiples of {multiple}")
    if tile_size >= size:
        return [0]
    step = (tile_size - overlap) // multiple * multiple
    if overlap < 0 or step < 1:
        raise ValueError(f"overlap must be from 0 to {tile_size - multiple}, got {overlap}")
    count = -(-(size - tile_size) // step)  # steps, rounded up
    last = (size - tile_size) // multiple
    return [last * number // count * multiple for number in range(count + 1)]


def window(tile_size: int) -> Tensor:
    """Weights [tile_size, tile_size] of a tile's pixels, falling linearly to every border."""
    ramp = torch.arange(1, tile_size + 1).float()
    ramp = torch.minimum(ramp, ramp.flip(0)) / tile_size
    return ramp[:, None] * ramp[None, :]


def tiled(predict_tile: PredictTile, starts: Sequence[int], tile_size: int) -> Predict:
    """predict(x_t, t) of a square canvas from predict_tile(x_t of the tile, t, tile).

    prediction(pixel) = sum_i w_i prediction_i(pixel) / sum_i w_i   over the tiles i that hold the
    pixel (MultiDiffusion eq. 5), w the window. It is linear, so that it is the same mean for eps,
    v and x_0. starts: rows, and columns as well, at which tiles begin.
    """
    places = [slice(start, start + tile_size) for start in starts]

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        weight = window(tile_size).to(x_t.device)
        total = torch.zeros(x_t.shape[-2:], device=x_t.device)
        joined = torch.zeros_like(x_t)
        for rows, columns in product(places, places):
            total[rows, columns] += weight
            part = predict_tile(x_t[..., rows, columns], t, (rows, columns))
            joined[..., rows, columns] += weight * part.to(x_t)
        return joined / total

    return predict
