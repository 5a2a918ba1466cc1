"""AdamW or Muon as the configs describe them, and the learning rate at every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unclip_train.config import OptimizerConfig

COOLDOWN_SHARE = 0.2  # of a run (Haegele et al. 2024, 2405.18392, section 4)
MOMENTUM = 0.95  # of Muon, of Nesterov's kind (Jordan et al. 2024)
QUINTIC = (3.4445, -4.7750, 2.0315)  # a, b, c of a s + b s^3 + c s^5 (the same)
ITERATIONS = 5  # of it (the same): every singular value comes to 0.7 to 1.2
ADAMW_RMS = 0.2  # of the updates of AdamW at a rate of 1 (Liu et al. 2025, 2502.16982, section 2.2)


def make_optimizer(
    network: nn.Module,
    config: OptimizerConfig,
    fused: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.AdamW:
    """The optimizer that the config names; matrices and kernels decay, biases and gains do not.

    fused: one kernel for all tensors, where the device has it; for AdamW.
    dtype: of Muon's iteration, which bears bf16 (Jordan et al. 2024); weights stay as they are.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.algorithm == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=fused)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return Muon(groups, {m.weight for m in layers}, dtype, **settings)


class Muon(torch.optim.AdamW):
    """Steps of equal length in all directions for the weights of layers, AdamW for the rest.

    M <- mu M + (1 - mu) G,  O = U V^T of (1 - mu) G + mu M = U S V^T,
    W <- (1 - lr decay) W - 0.2 lr sqrt(max(m, n)) O
    for a weight W [m, n] and its gradient G, kernels [m, n / (k k), k, k] as matrices. The factor
    makes the update as long as AdamW's, so that its learning rates serve (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon; Liu et al. 2025, 2502.16982, eq. 4).

    Args:
        groups: of all parameters, as AdamW takes them.
        weights: those among them that are stepped by Muon.
        dtype: of the iteration that finds O.
    """

    def __init__(
        self, groups: list[dict], weights: set[nn.Parameter], dtype: torch.dtype, **settings
    ):
        super().__init__(groups, **settings)
        self.weights, self.dtype = weights, dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update; gradients of what Muon stepped are given back (AdamW passes over those)."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[nn.Parameter]] = {}  # by shape: one iteration for all
            for weight in group["params"]:
                if weight in self.weights and weight.grad is not None:
                    alike.setdefault(weight.shape, []).append(weight)
            for weights in alike.values():
                self._step_by_muon(weights, group["lr"], group["weight_decay"])
        super().step(closure)

    def _step_by_muon(self, weights: list[nn.Parameter], lr: float, decay: float) -> None:
        """Step weights of one shape, whose gradients are given back."""
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros(())  # which AdamW looks for in all that it loads
                state["momentum"] = torch.zeros_like(weight)
            state["step"] += 1
            momentum = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
            weight.grad.lerp_(momentum, MOMENTUM)
        matrices = torch.stack([weight.grad.flatten(1) for weight in weights])  # [K, m, n]
        rms = ADAMW_RMS * math.sqrt(max(matrices.shape[1:]))
        for weight, matrix in zip(weights, orthogonalized(matrices, self.dtype), strict=True):
            weight.mul_(1 - lr * decay).add_(matrix.reshape(weight.shape), alpha=-lr * rms)
            weight.grad = None


def orthogonalized(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V^T, nearly, of matrices U S V^T [K, m, n], by Newton and Schulz's iteration in a dtype.

    X <- a X + (b X X^T + c (X X^T)^2) X takes every singular value to around 1 from anywhere
    in (0, 1], where dividing by the Frobenius norm has brought them.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT, dtype).mT
    a, b, c = QUINTIC
    length = matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = (matrices / length).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then constant, or falling to 0 by half a cosine, a line, or a late line.

    The late one, "cooldown", is constant until the last fifth: a run can be made longer, or be
    told to end sooner, at any time before that.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    decay = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "cooldown": min(1.0, (1 - progress) / COOLDOWN_SHARE),
    }[config.decay]
    return config.lr * warmup * decay


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, steps: int
) -> None:
    """Give every parameter group the learning rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps)
