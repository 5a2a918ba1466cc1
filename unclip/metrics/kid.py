"""KID: how far generated pictures lie from real ones, without FID's bias for small sets.

Source: KID = Binkowski et al. 2018 (arXiv 1801.01401).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_two_sets
from .discrepancy import squared_mmd


class KID(NamedTuple):
    """Mean and standard deviation over subsets, in units of MMD^2 (papers print 1000 times it)."""

    mean: float
    std: float


def kernel_distance(x: Tensor, y: Tensor, unbiased: bool = True) -> float:
    """MMD^2 under the cubic kernel (a . b / D + 1)^3 over all rows   (KID section 4).

    x: [N, D] and y: [M, D], N, M >= 2: features of two sets of pictures. Unbiased, it may lie a
    little below 0; otherwise it is 0 for identical sets.
    """
    x, y = check_two_sets(("x", "y"), x, y, num_least=2)
    return squared_mmd(x, y, _cubic, unbiased)


def kernel_distance_of_subsets(
    x: Tensor, y: Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KID:
    """Mean and spread of kernel_distance over random subsets, as published figures are made.

    x: [N, D], y: [M, D], both of at least subset_size rows. Each subset is drawn without
    replacement; the same seed draws the same ones.
    """
    x, y = check_two_sets(("x", "y"), x, y, num_least=2)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(
            f"subset_size: give 2 to {min(len(x), len(y))}, the smaller set, not {subset_size}"
        )
    if num_subsets < 1:
        raise ValueError(f"num_subsets: give at least 1, not {num_subsets}")
    generator = torch.Generator().manual_seed(seed)

    def subset(features: Tensor) -> Tensor:
        rows = torch.randperm(len(features), generator=generator)[:subset_size]
        return features[rows.to(features.device)]

    values = [squared_mmd(subset(x), subset(y), _cubic, True) for _ in range(num_subsets)]
    values = torch.tensor(values, dtype=torch.float64)
    return KID(float(values.mean()), float(values.std(correction=0)))


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
