"""A data distribution whose best network is known in closed form."""

from dataclasses import dataclass, field

import pytest
import torch

from unclip.diffusion.schedule import make_schedule


@dataclass
class GaussianData:
    """Independent normal dimensions: x_0 ~ N(mean, std^2), so E[x_0 | x_t] is known exactly."""

    mean: torch.Tensor = field(default_factory=lambda: torch.tensor([0.8, -0.5, 0.2]).double())
    std: torch.Tensor = field(default_factory=lambda: torch.tensor([0.5, 0.2, 0.7]).double())

    def network(self, kind: str, schedule: str = "cosine"):
        """predict(x_t, t) of a network that minimises the loss of its kind."""
        values = make_schedule(schedule).alphas_cumprod

        def predict(x_t, t):
            abar = values[t.long()].to(x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))
            mean = self.mean.to(x_t.dtype).reshape(1, -1, *[1] * (x_t.ndim - 2))
            variance = self.std.to(x_t.dtype).reshape(mean.shape) ** 2
            gain = abar.sqrt() * variance / (abar * variance + 1 - abar)
            x_0 = mean + gain * (x_t - abar.sqrt() * mean)
            eps = (x_t - abar.sqrt() * x_0) / (1 - abar).sqrt()
            v = abar.sqrt() * eps - (1 - abar).sqrt() * x_0
            return {"x_0": x_0, "eps": eps, "v": v}[kind]

        return predict

    def flow(self, x_T: torch.Tensor, abar_T: float) -> torch.Tensor:
        """Where the probability flow takes x_T: it keeps each dimension's quantile."""
        spread = (abar_T * self.std**2 + 1 - abar_T) ** 0.5
        return self.mean + self.std * (x_T - abar_T**0.5 * self.mean) / spread


@pytest.fixture
def gaussian_data() -> GaussianData:
    return GaussianData()
