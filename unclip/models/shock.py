"""A shock filter: soft edges become steep, even areas stay even, and no rim can appear.

Small networks find where an edge runs far sooner than they draw it: how steep it is takes the
finest details, where it runs takes none. So they may draw pictures smooth, and a filter without
weights makes the edges steep again (Osher & Rudin 1990, SIAM J. Numer. Anal. 27; smoothed first by
Alvarez & Mazorra 1994, the same 31).
Shapes: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 4  # order of the binomial filter: a Gaussian of sigma 1, in pixels
SURROUNDINGS = 6  # the same, of sigma 1.2: what a pixel is led away from
BAND = 256  # rows that a CPU filters at a time


def smooth(x: Tensor) -> Tensor:
    """Pictures [B, C, H, W] as they are before their edges are made steep; float32."""
    return binomial_blur(x.float(), SMOOTHING)


def steepen(x: Tensor, passes: int) -> Tensor:
    """Smooth pictures [B, C, H, W] with steep edges, by so many passes of

    x <- clip(x + (x - G x), min x, max x), the bounds over a pixel and its eight neighbours.

    Of the edges of smooth(x) three passes make those of an antialiased drawing x again.
    """
    for _ in range(passes):
        sharpened = x + (x - binomial_blur(x, SURROUNDINGS))
        least, most = (of_neighbours(x, choose) for choose in (torch.minimum, torch.maximum))
        x = torch.minimum(torch.maximum(sharpened, least), most)
    return x


def with_steep_edges(x: Tensor, passes: int) -> Tensor:
    """steepen(smooth(x), passes) of pictures [B, C, H, W], in their dtype.

    On a CPU one picture after another, by bands of rows: what lies between the steps stays in the
    caches then. The result is the same to the bit.
    """
    if x.device.type != "cpu":
        return steepen(smooth(x), passes).to(x.dtype)
    reach = (SMOOTHING + passes * SURROUNDINGS) // 2  # pixels that a pixel depends on, each way
    steep = torch.empty_like(x)
    for top in range(0, x.shape[2], BAND):
        first = max(0, top - reach)
        for picture, result in zip(x[:, :, first : top + BAND + reach], steep, strict=True):
            band = steepen(smooth(picture[None]), passes)[0]
            result[:, top : top + BAND] = band[:, top - first :][:, :BAND]
    return steep


def binomial_blur(x: Tensor, order: int) -> Tensor:
    """The means of neighbours, `order` (even) times along each side: nearly a Gaussian.

    Its sigma is sqrt(order) / 2 pixels. [B, C, H, W] to the same; borders go on as they end.
    """
    half = order // 2
    x = F.pad(x, (half, half, half, half), mode="replicate")
    for side in (-1, -2):
        for _ in range(order):
            x = x.narrow(side, 0, x.shape[side] - 1) + x.narrow(side, 1, x.shape[side] - 1)
    return x / 4**order


def of_neighbours(x: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The least or greatest of each pixel and its eight neighbours, [B, C, H, W] to the same.

    choose: torch.minimum or torch.maximum. A pooling layer does the same ten times slower on CPUs.
    """
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    for side in (-1, -2):
        first, second, third = (x.narrow(side, i, x.shape[side] - 2) for i in range(3))
        x = choose(choose(first, second), third)
    return x
