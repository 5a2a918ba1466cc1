"""What the metrics ask of the numbers that they are given."""

import torch
from torch import Tensor


def check_features(name: str, features: Tensor, num_least: int = 1) -> None:
    """Refuse what is no [N, D] of finite numbers with N >= num_least, in one line with the name.

    A metric of broken numbers must not come out: a comparison with NaN is false, so that a NaN
    score would count as the best.
    """
    if features.ndim != 2 or not features.is_floating_point():
        shape, kind = tuple(features.shape), features.dtype
        raise ValueError(f"{name}: give floating features [N, D], not {shape} of {kind}")
    if len(features) < num_least:
        raise ValueError(f"{name}: give at least {num_least} rows, not {len(features)}")
    if not torch.isfinite(features).all():
        bad = int((~torch.isfinite(features).all(dim=1)).sum())
        raise ValueError(f"{name}: {bad} of {len(features)} rows are not finite")


def check_two_sets(
    names: tuple[str, str], x: Tensor, y: Tensor, num_least: int = 1
) -> tuple[Tensor, Tensor]:
    """Both sets [N, D] and [M, D] in float64; they may differ in number, not in width."""
    for name, features in zip(names, (x, y), strict=True):
        check_features(name, features, num_least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[1]}: features of {y.shape[1]} numbers beside {names[0]} of {x.shape[1]}; "
            "use one extractor for both"
        )
    return x.double(), y.double()


def check_pairs(names: tuple[str, str], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets [N, D] in float64, row i of one belonging to row i of the other."""
    a, b = check_two_sets(names, a, b)
    if len(a) != len(b):
        raise ValueError(f"{names[1]}: {len(b)} rows beside {len(a)} of {names[0]}; give pairs")
    return a, b


def check_values(name: str, values: Tensor) -> Tensor:
    """Finite numbers [N], N >= 1, in float64."""
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name}: give numbers [N], not {tuple(values.shape)}")
    values = values.double()
    if not torch.isfinite(values).all():
        raise ValueError(f"{name}: {int((~torch.isfinite(values)).sum())} numbers are not finite")
    return values
