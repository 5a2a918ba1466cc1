"""Schedules against their formulas, published end points and diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from unclip.diffusion.schedule import gather, make_schedule
from unclip.diffusion.schedulers import make_scheduler


def test_cosine_follows_its_formula():
    schedule = make_schedule("cosine")
    times = torch.arange(1, 1001).double() / 1000
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    expected = ((times + 0.008) / 1.008 * math.pi / 2).cos() ** 2 / start
    clipped = schedule.betas == 0.999
    assert clipped.nonzero().flatten().tolist() == [999]
    torch.testing.assert_close(schedule.alphas_cumprod[:-1], expected[:-1])


def test_terminal_alphas_cumprod_are_the_published_ones():
    assert make_schedule("cosine").alphas_cumprod[-1].item() == pytest.approx(2.4e-9, rel=0.02)
    assert make_schedule("linear").alphas_cumprod[-1].item() == pytest.approx(4.0e-5, rel=0.02)


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("num_steps", [1000, 100])
def test_betas_equal_those_of_the_scheduler_we_make(name, num_steps):
    schedule = make_schedule(name, num_steps)
    scheduler = make_scheduler("ddpm", name, "eps", num_train_timesteps=num_steps)
    torch.testing.assert_close(schedule.betas.float(), scheduler.betas)
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == torch.float64
    assert schedule.num_steps == num_steps


def test_linear_equals_the_library_default():
    torch.testing.assert_close(make_schedule("linear").betas.float(), DDPMScheduler().betas)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_snr_falls_and_is_abar_over_the_rest(name):
    schedule = make_schedule(name)
    snr = schedule.snr(torch.arange(1000))
    assert (snr.diff() < 0).all()
    abar = schedule.alphas_cumprod
    torch.testing.assert_close(snr, (abar / (1 - abar)).float())
    assert schedule.snr(3).shape == (1,)


def test_other_numbers_of_steps_end_at_about_the_same_noise():
    for num_steps in (50, 250, 4000):
        terminal = make_schedule("linear", num_steps).alphas_cumprod[-1].item()
        assert math.log(terminal) == pytest.approx(math.log(4.0e-5), rel=0.2)


def test_gather_broadcasts_and_never_falls_below_float32():
    values = make_schedule("linear").betas
    picked = gather(values, torch.tensor([0, 999]), torch.zeros(2, 3, 4, 4))
    assert picked.shape == (2, 1, 1, 1)
    assert picked.flatten().tolist() == pytest.approx([1e-4, 0.02])
    assert gather(values, 5, torch.zeros(2, 3)).shape == (1, 1)
    assert gather(values, torch.tensor(5), torch.zeros(2, 3)).shape == (1, 1)
    assert gather(values, 5, torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert gather(values, 5, torch.zeros(2, 3).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0, 1000]), "0..999"),
        (torch.tensor([-1, 0]), "0..999"),
        (torch.tensor([1, 2, 3]), "batch of 2"),
        (torch.tensor([0.5, 1.0]), "integer"),
        (torch.tensor([True, False]), "integer"),
        (torch.tensor([[1, 2]]), "integer"),
        (torch.tensor([], dtype=torch.long), "integer"),
        (0.5, "integer"),
    ],
)
def test_gather_refuses_wrong_timesteps(t, message):
    with pytest.raises(ValueError, match=message):
        gather(make_schedule("cosine").betas, t, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [("sigmoid", 1000), ("cosine", 1), ("cosine", 1000.0), ("cosine", True), ("linear", 10)],
)
def test_make_schedule_refuses_what_it_cannot_make(name, num_steps):
    with pytest.raises(ValueError, match="schedule|num_steps"):
        make_schedule(name, num_steps)
