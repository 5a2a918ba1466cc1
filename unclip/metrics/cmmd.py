"""CMMD: how far generated pictures lie from real ones among CLIP embeddings.

Source: CMMD = Jayasumana et al. 2024 (arXiv 2401.09603) and its published code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_two_sets
from .discrepancy import squared_mmd


def cmmd(
    x: Tensor, y: Tensor, sigma: float = 10.0, scale: float = 1000.0, unbiased: bool = False
) -> float:
    """scale MMD^2 under exp(-|a - b|^2 / (2 sigma^2)) of embeddings of length 1   (CMMD eq. 4).

    x: [N, D] and y: [M, D], CLIP embeddings of two sets of pictures, brought to length 1 here. The
    published code averages over all pairs, which is biased upward by at most
    scale (1/N + 1/M) (1 - mean k), and so do we unless unbiased; the paper's equation is the
    unbiased form. Smaller is better; 0 for identical sets (biased form).
    """
    if not sigma > 0 or not scale > 0:
        raise ValueError(f"sigma, scale: give numbers above 0, not {sigma} and {scale}")
    x, y = check_two_sets(("x", "y"), x, y, num_least=2)
    x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)

    def gaussian(a: Tensor, b: Tensor) -> Tensor:
        squared_distance = (2 - 2 * a @ b.T).clamp(min=0)  # |a| = |b| = 1
        return torch.exp(squared_distance / (-2 * sigma**2))

    return scale * squared_mmd(x, y, gaussian, unbiased)
