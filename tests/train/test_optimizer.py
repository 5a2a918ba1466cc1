"""Muon: orthogonal steps for the weights of layers, AdamW's for the rest."""

import pytest
import torch
from torch import nn

from unclip_train.config import OptimizerConfig
from unclip_train.optimizer import MOMENTUM, make_optimizer, orthogonalized


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (8, 8)])
def test_orthogonalized_keeps_directions_and_evens_lengths(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    within = u.mT @ orthogonalized(matrices) @ vh.mT
    lengths = within.diagonal(dim1=1, dim2=2)
    assert (within - lengths.diag_embed()).abs().max() < 1e-4
    assert 0.6 < lengths.min() and lengths.max() < 1.3


def test_orthogonalized_in_half_precision_is_the_same_to_its_rounding():
    torch.manual_seed(0)
    matrix = torch.randn(2, 24, 100)
    whole, half = orthogonalized(matrix), orthogonalized(matrix, torch.bfloat16)
    assert half.dtype == matrix.dtype
    assert 0 < (half - whole).norm() < 0.03 * whole.norm()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(4, 6), nn.Linear(6, 8), nn.Flatten(), nn.Linear(8, 3))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = (model(torch.arange(4)[:, None]) - torch.eye(4)[:, :3]).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_an_update_is_that_of_the_equation():
    config = OptimizerConfig(algorithm="muon", lr=0.01, weight_decay=0.1)
    model, plain = network(), network()
    learn(model, make_optimizer(model, config))
    learn(plain, make_optimizer(plain, OptimizerConfig(lr=0.01, weight_decay=0.1)))
    fresh = network()
    loss = (fresh(torch.arange(4)[:, None]) - torch.eye(4)[:, :3]).square().mean()
    loss.backward()
    for name, weight in fresh.named_parameters():
        if name in ("1.weight", "3.weight"):
            # Nesterov's: the gradient, and the mean of it that has begun at 0
            looked_at = weight.grad * (1 - MOMENTUM + MOMENTUM * (1 - MOMENTUM))
            step = 0.2 * max(weight.shape) ** 0.5 * orthogonalized(looked_at[None])[0]
            wanted = (1 - 0.01 * 0.1) * weight - 0.01 * step
        else:
            wanted = plain.get_parameter(name)
        torch.testing.assert_close(model.get_parameter(name), wanted, atol=1e-6, rtol=1e-5)


def test_kernels_are_stepped_as_matrices():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 5, 2, bias=False), nn.Linear(12, 5, bias=False)
    linear.weight.data.copy_(conv.weight.flatten(1))
    x = torch.randn(7, 3, 2, 2)
    for layer, inputs in ((conv, x), (linear, x.flatten(1))):
        optimizer = make_optimizer(layer, OptimizerConfig(algorithm="muon", lr=0.1))
        layer(inputs).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight, atol=1e-5, rtol=1e-5)


def test_muon_overfits_a_batch():
    model = network()
    optimizer = make_optimizer(model, OptimizerConfig(algorithm="muon", lr=0.02))
    found = [learn(model, optimizer) for _ in range(60)]
    assert found[-1] < 0.02 * found[0]
