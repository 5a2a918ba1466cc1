"""Maximum mean discrepancy: how far two sets of features lie apart under a kernel.

Source: Gretton = Gretton et al. 2012, "A kernel two-sample test" (JMLR 13).
"""

from collections.abc import Callable

from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
BLOCK_ROWS = 1024


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel, unbiased: bool) -> float:
    """MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)   (Gretton, section 2.2).

    x: [N, D], y: [M, D]. kernel(a [A, D], b [B, D]) -> [A, B]. The biased form (Gretton eq. 5)
    averages over all pairs, is never below 0, and 0 for identical sets; the unbiased one (eq. 3)
    leaves out each row's pair with itself, and may be a little below 0.
    """
    within = _mean_within(x, kernel, unbiased) + _mean_within(y, kernel, unbiased)
    across = sum(float(kernel(rows, y).sum()) for rows in x.split(BLOCK_ROWS))
    return within - 2 * across / (len(x) * len(y))


def _mean_within(x: Tensor, kernel: Kernel, unbiased: bool) -> float:
    num = len(x)
    total = sum(float(kernel(rows, x).sum()) for rows in x.split(BLOCK_ROWS))
    if not unbiased:
        return total / num**2
    with_itself = sum(float(kernel(rows, rows).trace()) for rows in x.split(BLOCK_ROWS))
    return (total - with_itself) / (num * (num - 1))
