"""The shock filter: edges come back as steep as they were, and nothing comes that was not there."""

import pytest
import torch

from unclip.models.shock import (
    BAND,
    binomial_blur,
    of_neighbours,
    smooth,
    steepen,
    with_steep_edges,
)


def disc(side: int = 64, radius: float = 20.3) -> torch.Tensor:
    """An antialiased disc [1, 1, S, S] of 1 on -1."""
    along = torch.arange(4 * side) / 4 + 0.125 - side / 2
    inside = (along[:, None].square() + along.square()).sqrt() < radius
    return torch.nn.functional.avg_pool2d(2 * inside.float()[None, None] - 1, 4)


def test_a_binomial_blur_is_nearly_a_gaussian_and_keeps_sums():
    x = torch.zeros(1, 1, 17, 17)
    x[..., 8, 8] = 1
    blurred = binomial_blur(x, 6)
    along = torch.arange(17) - 8.0
    variance = (blurred[0, 0].sum(0) * along.square()).sum()
    assert blurred.sum() == pytest.approx(1, abs=1e-6)
    assert variance == pytest.approx(6 / 4, abs=1e-6)
    assert torch.allclose(blurred, blurred.mT)
    even = torch.full((2, 3, 5, 7), 0.25)
    assert torch.equal(binomial_blur(even, 4), even)


def test_neighbours_are_those_of_a_pooling_layer():
    x = torch.randn(2, 3, 9, 12)
    pooled = torch.nn.functional.max_pool2d(x, 3, 1, 1)
    assert torch.equal(of_neighbours(x, torch.maximum), pooled)
    assert torch.equal(of_neighbours(-x, torch.minimum), -pooled)


def test_three_passes_make_the_edges_of_a_drawing_again():
    x = disc()
    soft = smooth(x)
    errors = [(steepen(soft, passes) - x).abs().mean() for passes in range(5)]
    assert errors[0] > errors[1] > errors[2] and errors[3] < errors[0] / 10
    assert errors[4] > errors[3]  # too steep: no antialiasing is left


@pytest.mark.parametrize("height", [1, BAND - 1, BAND, 2 * BAND + 5])
def test_bands_leave_no_trace(height):
    x = torch.rand(2, 3, height, 20)
    assert torch.equal(with_steep_edges(x, 3), steepen(smooth(x), 3))
    half = with_steep_edges(x.bfloat16(), 3)
    assert torch.equal(half, steepen(smooth(x.bfloat16()), 3).bfloat16())


def test_nothing_leaves_the_range_of_its_surroundings():
    x = torch.rand(1, 3, 32, 32)
    least, most = (of_neighbours(x, choose) for choose in (torch.minimum, torch.maximum))
    once = steepen(x, 1)
    assert ((once >= least) & (once <= most)).all()
    assert (once - x).abs().max() > 0.1  # and yet it did something
    flat = torch.full((1, 3, 8, 8), -0.3)
    assert torch.equal(steepen(flat, 3), flat)
