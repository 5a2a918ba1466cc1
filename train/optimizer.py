"""AdamW as the configs describe it, and its learning rate at every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from unclip_train.config import OptimizerConfig

COOLDOWN_SHARE = 0.2  # of a run (Haegele et al. 2024, 2405.18392, section 4)


def make_optimizer(
    network: nn.Module, config: OptimizerConfig, fused: bool | None = None
) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, not biases and gains.

    fused: one kernel for all tensors, where the device has it.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused
    )


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
