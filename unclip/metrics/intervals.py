"""How sure a figure is: intervals of means, of differences on the same prompts, and of shares.

Sources: Efron & Tibshirani 1993 for the percentile bootstrap, Wilson 1927 for the score interval,
unCLIP = Ramesh et al. 2022 (arXiv 2204.06125).
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_values

BLOCK_DRAWS = 64


class Interval(NamedTuple):
    """Two ends, low <= high."""

    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference and the ends of its interval; real at that level when 0 lies outside."""

    difference: float
    low: float
    high: float


class Ratio(NamedTuple):
    """A ratio of means and the ends of its interval."""

    ratio: float
    low: float
    high: float


def bootstrap_interval(
    values: Tensor, level: float = 0.95, num_draws: int = 2000, seed: int = 0
) -> Interval:
    """The percentile bootstrap interval of the mean: how it varies as the N prompts vary.

    values: [N] numbers, one a prompt; average several pictures of a prompt first. level: in (0, 1).
    The same seed gives the same ends.
    """
    values = check_values("values", values).cpu()
    return _middle(_redrawn_means(values, num_draws, seed), level)


def paired_difference(
    a: Tensor, b: Tensor, level: float = 0.95, num_draws: int = 2000, seed: int = 0
) -> Difference:
    """mean(a - b) and its bootstrap interval, prompts drawn in pairs.

    a, b: [N], the same prompts and seeds under two models or settings. What both find hard cancels,
    so that the interval is narrower than those of a and b let expect.
    """
    a, b = _check_pairs(a, b)
    ends = bootstrap_interval(a - b, level, num_draws, seed)
    return Difference(float((a - b).mean()), *ends)


def paired_ratio(
    a: Tensor, b: Tensor, level: float = 0.95, num_draws: int = 2000, seed: int = 0
) -> Ratio:
    """mean(a) / mean(b) and its bootstrap interval, prompts drawn in pairs.

    a, b: [N], b of positive mean: the same prompts. ValueError where that is not so. Where b's mean
    may as well be 0, an end is infinite; draws of which both means are 0 say nothing of a ratio.
    """
    a, b = _check_pairs(a, b)
    if not b.mean() > 0:
        raise ValueError(f"b: give numbers of a positive mean, not {float(b.mean()):g}")
    means = _redrawn_means(torch.stack([a, b], dim=1), num_draws, seed)  # [num_draws, 2]
    over, under = means[:, 0], means[:, 1].clamp(min=0)
    told = (over != 0) | (under > 0)
    if not told.any():
        raise ValueError(f"num_draws: both means are 0 in all of {num_draws}; give more")
    ends = _middle((over / under)[told], level, "nearest")  # between infinities lies no number
    return Ratio(float(a.mean() / b.mean()), *ends)


def wilson_interval(wins: float, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share, sensible for few trials and for shares near 0 and 1.

    wins: of total trials, 0 <= wins <= total; a half counts a trial that was left undecided.
    """
    share, z = _share(wins, total), _quantile(level)
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Interval(0.0 if wins == 0 else low, 1.0 if wins == total else high)


def normal_half_width(wins: float, total: int, level: float = 0.95) -> float:
    """z sqrt(p (1 - p) / n), the +- of a share as printed in unCLIP's table 1."""
    share = _share(wins, total)
    return _quantile(level) * math.sqrt(share * (1 - share) / total)


def _check_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both [N] in float64 on the CPU, number i of one belonging to number i of the other."""
    a, b = check_values("a", a).cpu(), check_values("b", b).cpu()
    if len(a) != len(b):
        raise ValueError(f"b: {len(b)} numbers beside {len(a)} of a; give the same prompts")
    return a, b


def _redrawn_means(values: Tensor, num_draws: int, seed: int) -> Tensor:
    """Means [num_draws, ...] of N of values [N, ...], drawn anew and with replacement each time."""
    if num_draws < 1:
        raise ValueError(f"num_draws: give at least 1, not {num_draws}")
    generator = torch.Generator().manual_seed(seed)
    num, means = len(values), []
    for start in range(0, num_draws, BLOCK_DRAWS):
        shape = (min(BLOCK_DRAWS, num_draws - start), num)
        means.append(values[torch.randint(num, shape, generator=generator)].mean(dim=1))
    return torch.cat(means)


def _middle(values: Tensor, level: float, interpolation: str = "linear") -> Interval:
    """The ends of the middle share `level` of values [N]; interpolation is that of quantile()."""
    _check_level(level)
    tail = (1 - level) / 2
    shares = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    ends = values.quantile(shares, interpolation=interpolation)
    return Interval(*ends.tolist())


def _share(wins: float, total: int) -> float:
    if total < 1 or not 0 <= wins <= total:
        raise ValueError(f"wins: give 0 <= wins <= total and total >= 1, not {wins} of {total}")
    return wins / total


def _quantile(level: float) -> float:
    """Standard deviations that hold the middle share `level` of a normal distribution."""
    _check_level(level)
    return NormalDist().inv_cdf((1 + level) / 2)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: give a number between 0 and 1, not {level}")
