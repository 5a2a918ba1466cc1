"""What samples draw depends on their own generators alone, and is distributed as it should be."""

import torch
import torch.nn.functional as F

from unclip.diffusion.noise import child_generators
from unclip_train.draws import (
    draw_logit_normal_timesteps,
    draw_noise_like,
    draw_timesteps,
    noised_z_img,
)


def generators(*positions: int):
    return child_generators(list(positions), "test")


def test_draws_do_not_depend_on_the_batch():
    x = torch.zeros(3, 2, 4)
    assert torch.equal(
        draw_noise_like(x, generators(5, 6, 7))[1:], draw_noise_like(x[1:], generators(6, 7))
    )
    for draw in (
        lambda g: draw_timesteps(1000, g, "cpu"),
        lambda g: draw_logit_normal_timesteps(1000, 0.5, 1.0, g, "cpu"),
    ):
        assert torch.equal(draw(generators(5, 6, 7))[1:], draw(generators(6, 7)))


def test_uniform_timesteps():
    t = draw_timesteps(1000, generators(*range(4000)), "cpu")
    assert t.min() >= 0 and t.max() <= 999 and t.dtype == torch.long
    assert abs(t.float().mean() - 499.5) < 15 and abs((t < 100).float().mean() - 0.1) < 0.02


def test_logit_normal_timesteps():
    """Logits have the mean and the standard deviation asked for."""
    t = draw_logit_normal_timesteps(1000, 1.2, 1.0, generators(*range(4000)), "cpu")
    assert t.min() >= 0 and t.max() <= 999
    logits = torch.logit((t.float() + 0.5) / 1000)
    assert abs(logits.mean() - 1.2) < 0.06 and abs(logits.std() - 1.0) < 0.05


def test_noise_moves_z_img_and_keeps_its_length():
    """The angle is arctan of the noise's length, whose mean over 0 .. largest is known."""
    z_img = 3 * F.normalize(torch.randn(2000, 512, generator=torch.Generator().manual_seed(0)))
    noised = noised_z_img(z_img, 0.8, generators(*range(2000)))
    torch.testing.assert_close(noised.norm(dim=1), z_img.norm(dim=1))
    cosines = F.cosine_similarity(noised, z_img)
    lengths = torch.tan(torch.acos(cosines.clamp(max=1)))
    assert abs(lengths.mean() - 0.4) < 0.02 and 0.75 < lengths.max() < 0.95
    unmoved = noised_z_img(z_img, 0.0, generators(*range(2000)))
    torch.testing.assert_close(unmoved, z_img)
    assert torch.equal(noised[5:7], noised_z_img(z_img[5:7], 0.8, generators(5, 6)))
