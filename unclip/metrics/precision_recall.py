"""Precision and recall of generated pictures: how many look real, how much of the real they cover.

Source: PR = Kynkaanniemi et al. 2019 (arXiv 1904.06991).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_two_sets

BLOCK_ROWS = 1024


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]: fidelity, and coverage of what is real."""

    precision: float
    recall: float


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> PrecisionRecall:
    """Shares of each set that lie within the other's balls   (PR eq. 1 and 2).

    real: [N, D], generated: [M, D], features. Each row has a ball up to its k-th nearest neighbour
    in its own set; a row of the other set counts when it lies in any. N and M should be alike: more
    rows have smaller balls. Identical sets give (1, 1).
    """
    real, generated = check_two_sets(("real", "generated"), real, generated, num_least=2)
    if not 1 <= k < min(len(real), len(generated)):
        num = min(len(real), len(generated))
        raise ValueError(f"k: give 1 to {num - 1}, below the smaller set's {num} rows, not {k}")
    return PrecisionRecall(
        precision=_share_within_balls(generated, real, k),
        recall=_share_within_balls(real, generated, k),
    )


def _share_within_balls(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of points that lie in any ball around a centre."""
    # The nearest of all is the centre itself, hence k + 1.
    radii = [
        _squared_distances(rows, centres).kthvalue(k + 1, dim=1).values
        for rows in centres.split(BLOCK_ROWS)
    ]
    radius = torch.cat(radii)
    within = [
        (_squared_distances(rows, centres) <= radius).any(dim=1)
        for rows in points.split(BLOCK_ROWS)
    ]
    return float(torch.cat(within).double().mean())


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, [A, B]; exactly 0 for equal rows, which rounding would put beside each other.

    Without that, a picture that occurs k + 1 times would have a ball of radius 0 and miss itself.
    """
    norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    squares = norms - 2 * a @ b.T
    return squares.masked_fill(squares < 1e-12 * norms, 0.0)
