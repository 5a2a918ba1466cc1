"""Edges and colours of a cascade: octaves hold their frequencies, faults move them rightly."""

import pytest
import torch
import torch.nn.functional as F

from unclip.metrics.cascade import NUM_OCTAVES, colour_shift, gradient_spectrum


@pytest.fixture
def pictures():
    """Two pictures of a few random shapes with sharp edges, 256 pixels a side."""
    x = F.interpolate(torch.rand(2, 3, 5, 5), 256, mode="bicubic")
    return as_bytes(0.2 + 0.6 * (x > 0.5))


def as_bytes(x):
    return (255 * x.clamp(0, 1)).round().byte().permute(0, 2, 3, 1)


def as_pixels(pictures):
    return pictures.permute(0, 3, 1, 2).float() / 255


def blurred(pictures, times=2):
    x = as_pixels(pictures)
    for _ in range(times):
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return as_bytes(x)


def test_a_flat_picture_has_no_edges():
    assert gradient_spectrum(torch.full((1, 128, 128, 3), 90, dtype=torch.uint8)).max() < 1e-6


@pytest.mark.parametrize("octave", range(4))
def test_stripes_fall_into_their_octave(octave):
    period = 2 * 2**octave * 4 / 3  # of |gradient|, well inside the octave
    stripes = 0.5 + 0.4 * torch.sin(torch.arange(257) * torch.pi / period)
    x = stripes[None, None, None, :257].expand(1, 3, 257, 257)
    assert int(gradient_spectrum(as_bytes(x))[0].argmax()) == octave


def test_blur_lowers_and_grain_raises_the_finest_octave(pictures):
    real = gradient_spectrum(pictures)
    soft = gradient_spectrum(blurred(pictures))
    grain = as_bytes(as_pixels(pictures) + 0.05 * torch.randn(2, 3, 256, 256))
    assert real.shape == (2, NUM_OCTAVES)
    assert (soft[:, 0] < 0.5 * real[:, 0]).all()
    assert (gradient_spectrum(grain)[:, 0] > 1.1 * real[:, 0]).all()
    assert gradient_spectrum(pictures[:1]).equal(real[:1])


def test_colour_shift_is_the_difference_of_means():
    small = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    large = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    large[1, :, :, 2] = 6  # one channel of the second by six levels
    large[1, :, :, 0] = 2
    assert colour_shift(small, large).tolist() == [0.0, 6.0]
    assert colour_shift(large, large).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "pictures, told",
    [
        (torch.zeros(1, 3, 128, 128, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 128, 128, 3), "float32"),
        (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), "at least 128"),
    ],
)
def test_other_shapes_are_refused(pictures, told):
    with pytest.raises(ValueError, match=f"^pictures: .*{told}"):
        gradient_spectrum(pictures)
    with pytest.raises(ValueError, match="^others: 2 pictures beside 1"):
        small = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
        colour_shift(small[:1], small)
