"""What samples draw depends on their own generators alone, and is distributed as it should be."""

import torch

from unclip.diffusion.noise import child_generators
from unclip_train.draws import draw_logit_normal_timesteps, draw_noise_like, draw_timesteps


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
