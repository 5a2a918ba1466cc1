"""FID: the Frechet distance of two sets of features, each taken for a normal distribution.

Sources: FID = Heusel et al. 2017 (arXiv 1706.08500), Dowson & Landau 1982 for the distance.
"""

import torch
from torch import Tensor

from .checks import check_features, check_two_sets


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))   (FID eq. 6).

    x: [N, D] and y: [M, D], features of two sets of pictures. Smaller is better; 0 for identical
    sets. Only values with the same extractor, resize and N compare: the fewer rows, the larger.
    ValueError for N or M <= D, where a covariance has no full rank.
    """
    x, y = check_two_sets(("x", "y"), x, y)
    for name, features in (("x", x), ("y", y)):
        num, width = features.shape
        if num <= width:
            raise ValueError(
                f"{name}: too few pictures for FID, {num} for {width} features; give at least "
                f"{width + 1} (published figures: 30,000), or take CMMD or KID"
            )
    return frechet_of_moments(*moments(x), *moments(y))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] (divided by N - 1) of features [N, D], N >= 2, in float64."""
    check_features("features", features, num_least=2)
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], -1)


def frechet_of_moments(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """The Frechet distance of N(mean_x, cov_x) and N(mean_y, cov_y): [D], [D, D] float64 each.

    tr (C_x C_y)^(1/2) is taken as tr (S C_y S)^(1/2) with S = C_x^(1/2): the same eigenvalues, but
    of a symmetric matrix, so that rounding cannot make them complex.
    """
    if mean_x.shape != mean_y.shape or cov_x.shape != cov_y.shape:
        raise ValueError(
            f"mean_y, cov_y: {tuple(mean_y.shape)} and {tuple(cov_y.shape)} beside "
            f"{tuple(mean_x.shape)} and {tuple(cov_x.shape)} of x; use one extractor for both"
        )
    root_x = _symmetric_root(cov_x)
    eigenvalues = torch.linalg.eigvalsh(root_x @ cov_y @ root_x)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    distance = (mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * trace_of_root
    return max(float(distance), 0.0)  # rounding alone brings it below


def _symmetric_root(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
