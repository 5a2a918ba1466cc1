"""Inception Score: whether pictures are of clear classes, and of many.

Sources: IS = Salimans et al. 2016 (arXiv 1606.03498); Barratt & Sharma 2018 (arXiv 1801.01973) on
what it does not tell: it never looks at real pictures.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_features


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits; between 1 and the number of classes."""

    mean: float
    std: float


def inception_score(probabilities: Tensor, splits: int = 10) -> InceptionScore:
    """exp(mean over x of KL(p(y|x) || p(y))), p(y) the mean of p(y|x) in a split   (IS section 4).

    probabilities: [N, C], rows that sum to 1: a classifier's softmax for each generated picture, in
    random order. splits: parts of equal size, of which mean and deviation are taken; papers use 10.
    """
    check_features("probabilities", probabilities)
    p = probabilities.double()
    if p.min() < 0 or (p.sum(dim=1) - 1).abs().max() > 1e-3:
        raise ValueError("probabilities: each row must be at least 0 and sum to 1; give a softmax")
    if not 1 <= splits <= len(p):
        raise ValueError(f"splits: give 1 to {len(p)}, one picture a split, not {splits}")
    scores = []
    for part in p.tensor_split(splits):  # [n, C]
        # xlogy(0, 0) is 0, as p log p tends to
        divergence = torch.special.xlogy(part, part) - torch.special.xlogy(part, part.mean(dim=0))
        scores.append(divergence.sum(dim=1).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(float(values.mean()), float(values.std(correction=0)))
