"""Tiles: they cover the canvas, and joined predictions are those of the whole where they can be."""

import pytest
import torch
import torch.nn.functional as F

from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedulers import make_scheduler
from unclip.diffusion.tiles import tile_starts, tiled, window


@pytest.mark.parametrize(
    ("size", "tile_size", "overlap", "multiple"),
    [
        *[(2048, 1024, 128, 16), (4096, 1024, 128, 16), (64, 64, 8, 4)],
        *[(1024, 256, 0, 32), (96, 64, 60, 4)],
    ],
)
def test_tiles_cover_and_overlap(size, tile_size, overlap, multiple):
    starts = tile_starts(size, tile_size, overlap, multiple)
    assert starts[0] == 0 and starts[-1] + tile_size == size
    assert all(start % multiple == 0 for start in starts)
    shared = [a + tile_size - b for a, b in zip(starts, starts[1:], strict=False)]
    assert all(overlap <= pixels < tile_size for pixels in shared)


def test_a_canvas_of_one_tile_is_one_tile():
    assert tile_starts(64, 64, 16) == tile_starts(64, 128, 16) == [0]


@pytest.mark.parametrize(
    "arguments", [(64, 32, 32, 4), (64, 32, -1, 4), (64, 30, 4, 4), (62, 32, 4, 4)]
)
def test_tiles_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match="overlap|multiples"):
        tile_starts(*arguments)


def test_the_window_is_positive_and_falls_to_every_border():
    weight = window(8)
    assert (weight > 0).all() and torch.equal(weight, weight.flip(0).T.flip(0))
    assert torch.equal(weight[3], weight.amax(0)) and (weight[0] < weight[1]).all()


def test_pointwise_predictions_are_those_of_the_whole():
    x_t, t = torch.randn(2, 3, 64, 64), torch.tensor([500, 500])
    joined = tiled(lambda x, t, tile: torch.sin(3 * x), tile_starts(64, 32, 8), 32)(x_t, t)
    torch.testing.assert_close(joined, torch.sin(3 * x_t), atol=1e-6, rtol=1e-6)


def test_a_tile_is_told_its_place():
    low, x_t = torch.randn(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    predict = tiled(lambda x, t, tile: x + low[..., *tile], tile_starts(64, 24, 8), 24)
    torch.testing.assert_close(predict(x_t, torch.tensor([1])), low)


def blurry(x_t, t, tile=None):
    """A stand-in for a network that sees its surroundings and zeros beyond its borders."""
    kernel = torch.ones(3, 1, 9, 9) / 81
    return torch.tanh(2 * F.conv2d(x_t, kernel, padding=4, groups=3) + 0.5)


def jump_at(x, columns):
    """Mean difference of neighbouring columns at some places, over that everywhere else."""
    steps = (x[..., 1:] - x[..., :-1]).abs().mean(dim=(0, 1, 2))
    seam = torch.zeros(len(steps), dtype=torch.bool)
    seam[[column - 1 for column in columns]] = True
    return (steps[seam].mean() / steps[~seam].mean()).item()


def test_seams_do_not_show():
    """Where tiles end, neighbours differ no more than elsewhere; without overlap they do."""
    scheduler = make_scheduler("ddim", "linear", "x_0")
    generators = child_generators([3], "upsampler_1024")
    x_T = randn_per_sample((3, 128, 128), generators)
    ratios = {}
    for overlap in (16, 0):
        starts = tile_starts(128, 32, overlap)
        x_0 = denoise(tiled(blurry, starts, 32), x_T, scheduler, 4, generators)
        borders = {*starts[1:], *(start + 32 for start in starts[:-1])}
        ratios[overlap] = jump_at(x_0, borders)
    assert ratios[16] < 1.05
    assert ratios[0] > 2
