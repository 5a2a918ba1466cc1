"""What a network is asked by every sampler, and what it may answer."""

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]  # predict(x_t, t)


def predicted(predict: Predict, x_t: Tensor, t: Tensor, learned_variance: bool) -> Tensor:
    """The network's output in x_t's dtype, its shape checked."""
    kind = torch.float32 if t.is_floating_point() else t.dtype  # MPS has no float64
    times = torch.full((x_t.shape[0],), t.item(), dtype=kind, device=x_t.device)
    output = predict(x_t, times)
    expected = (x_t.shape[0], x_t.shape[1] * (2 if learned_variance else 1), *x_t.shape[2:])
    if output.shape != expected:
        raise ValueError(
            f"predict returned {tuple(output.shape)} for x_t {tuple(x_t.shape)}, expected "
            f"{expected} (learned_variance is {learned_variance})"
        )
    return output.to(x_t.dtype)


def check_finite(x: Tensor, message: str) -> None:
    """FloatingPointError with the message where a value is not finite."""
    if not torch.isfinite(x).all():
        raise FloatingPointError(message)
