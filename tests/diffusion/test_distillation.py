"""Distillation: a target that leads where the teacher goes, on the grid of the sampler."""

import pytest
import torch

from unclip.diffusion.distillation import (
    check_steps,
    ddim_to,
    jump_target,
    student_times,
    teacher_jump,
    times_between,
)
from unclip.diffusion.gaussian import q_sample
from unclip.diffusion.noise import child_generators
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.schedulers import make_scheduler
from unclip.diffusion.timesteps import with_timesteps

SCHEDULE = make_schedule("cosine")
T, T_END = torch.tensor([999, 499, 249]), torch.tensor([499, 249, -1])


@pytest.fixture
def x():
    return torch.randn(3, 2, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 7, 10])
def test_times_are_those_of_the_sampler(num_steps):
    scheduler = with_timesteps(make_scheduler("ddim", "cosine", "v"), num_steps)
    assert student_times(1000, num_steps).flip(0).tolist() == scheduler.timesteps.tolist()


def test_substeps_share_the_way():
    times = times_between(torch.tensor([999, 249]), torch.tensor([749, -1]), 5)
    assert times.tolist() == [[999, 949, 899, 849, 799, 749], [249, 199, 149, 99, 49, -1]]


def test_a_step_to_minus_one_is_x_0(x):
    t, end = torch.full((3,), 100), torch.full((3,), -1)
    torch.testing.assert_close(ddim_to(SCHEDULE, x, x / 2, t, end), x / 2)


def test_a_step_of_the_truth_stays_on_its_line(x):
    eps = torch.randn_like(x)
    x_t, x_end = q_sample(SCHEDULE, x, T, eps), q_sample(SCHEDULE, x[:2], T_END[:2], eps[:2])
    landed = ddim_to(SCHEDULE, x_t, x, T, T_END)
    torch.testing.assert_close(landed[:2], x_end, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(landed[2], x[2], rtol=1e-5, atol=1e-5)


def test_one_step_with_the_target_lands_where_the_teacher_did(x):
    x_t, x_end = x, torch.randn_like(x)
    target = jump_target(SCHEDULE, x_t, x_end, T, T_END)
    torch.testing.assert_close(ddim_to(SCHEDULE, x_t, target, T, T_END), x_end)


def test_one_substep_of_a_teacher_is_its_own_prediction(x):
    def predict_x_0(x_t, t):
        return (0.5 * x_t).tanh()

    target = teacher_jump(SCHEDULE, predict_x_0, x, T, T_END, 1)
    torch.testing.assert_close(target, predict_x_0(x, T), rtol=1e-4, atol=1e-4)


def test_jumps_in_turn_are_the_teachers_many_steps():
    """A student that knows its targets samples in 4 steps what the teacher samples in 20."""
    x_T = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def predict_x_0(x_t, t):
        level = (t.to(x_t) / 999).reshape(-1, 1, 1, 1)
        return ((1.5 - level) * x_t).tanh()

    scheduler = make_scheduler("ddim", "cosine", "x_0")
    generators = child_generators([0, 1], "x")
    teacher = denoise(predict_x_0, x_T, scheduler, 20, generators)
    x_t, times = x_T, [999, 749, 499, 249, -1]
    for now, after in zip(times, times[1:], strict=False):
        t, t_end = torch.full((2,), now), torch.full((2,), after)
        target = teacher_jump(SCHEDULE, predict_x_0, x_t, t, t_end, 5)
        x_t = ddim_to(SCHEDULE, x_t, target, t, t_end)
    torch.testing.assert_close(x_t, teacher.double(), rtol=1e-3, atol=1e-3)


def test_substeps_that_do_not_fit_are_refused():
    check_steps(1000, 4, 249)
    with pytest.raises(ValueError, match="250 substeps in each of 4 steps .*; 249 do"):
        check_steps(1000, 4, 250)
