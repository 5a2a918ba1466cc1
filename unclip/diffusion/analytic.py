"""Analytic-DPM: the optimal variance of a reverse step, which the paper's prior is sampled with.

Sources: Bao = Bao et al. 2022 (arXiv 2201.06503), unCLIP = Ramesh et al. 2022 (arXiv 2204.06125),
table 3: "sampling variance: analytic".
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def optimal_variance(abar_t: float, abar_next: float, score_norm: float) -> float:
    """The variance of the reverse step from noise level abar_t to abar_next   (Bao eq. 7 and 13).

    With alpha = abar_t / abar_next and the posterior's lambda^2 = (1 - abar_next) / (1 - abar_t)
    (1 - alpha):
    sigma^2 = lambda^2 + (sqrt((1 - abar_t) / alpha) - sqrt(1 - abar_next - lambda^2))^2 (1 - Gamma)
            = lambda^2 + abar_next ((1 - alpha) / (1 - abar_t))^2 V,
    V = (1 - abar_t) / abar_t (1 - Gamma) the variance of x_0 that x_t leaves open. score_norm is
    Gamma = E ||eps_hat||^2 / d; V is kept within [0, 1], that of data of unit variance, which are
    the bounds of Bao's theorem 2.
    """
    alpha = abar_t / abar_next
    posterior = (1 - abar_next) / (1 - abar_t) * (1 - alpha)
    open_variance = min(max((1 - abar_t) / abar_t * (1 - score_norm), 0.0), 1.0)
    return posterior + abar_next * ((1 - alpha) / (1 - abar_t)) ** 2 * open_variance


def estimate_score_norms(
    eps_hat: Callable[[Tensor, Tensor], Tensor],
    x_0: Tensor,
    alphas_cumprod: Tensor,
    timesteps: Sequence[int],
    generators: Sequence[torch.Generator],
) -> list[float]:
    """Gamma_t = E ||eps_hat(x_t, t)||^2 / d over x_t ~ q(x_t | x_0), for each timestep (Bao eq. 8).

    x_0: data [B, ...]; generators: one a sample, for its noise.
    """
    norms = []
    for t in timesteps:
        abar = float(alphas_cumprod[t])
        draws = [torch.randn(x_0.shape[1:], generator=generator) for generator in generators]
        noise = torch.stack(draws).to(x_0)
        x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise
        times = torch.full((len(x_0),), t, device=x_0.device)
        norms.append(float(eps_hat(x_t, times).float().square().mean()))
    return norms


def score_norm_at(norms: Sequence[float], t: float, num_train_timesteps: int) -> float:
    """Gamma at a timestep, between values that stand at even distances from 0 to T - 1."""
    knots = np.linspace(0, num_train_timesteps - 1, len(norms))
    return float(np.interp(t, knots, norms))
