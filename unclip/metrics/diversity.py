"""How much the pictures of one caption differ from each other."""

import torch.nn.functional as F
from torch import Tensor

from .checks import check_features


def mean_pairwise_distance(z: Tensor) -> float:
    """Mean of 1 - cos(z_i, z_j) over all pairs i < j, in [0, 2]; 0 when all are the same.

    z: [K, D], embeddings of K >= 2 pictures of one caption, of any length.
    """
    check_features("z", z, num_least=2)
    z = F.normalize(z.double(), dim=1)
    num = len(z)
    # |sum z|^2 = K + 2 sum over pairs of cos
    total = (z.sum(dim=0).square().sum() - z.square().sum()) / 2
    return max(1.0 - float(total) / (num * (num - 1) / 2), 0.0)
