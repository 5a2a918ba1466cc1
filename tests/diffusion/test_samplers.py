"""Every sampler by name draws the distribution it should, in any number of steps."""

import logging
import math

import diffusers
import pytest
import torch

from unclip.diffusion.analytic import estimate_score_norms, optimal_variance
from unclip.diffusion.guidance import dynamic_threshold
from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.samplers import REFUSED, SAMPLER_NAMES, sampler_name
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedulers import abar_of, make_scheduler
from unclip.diffusion.timesteps import timesteps_for

MEAN, STD = 0.3, 0.4  # of Gaussian data, whose best network is a formula
DIM, NUM_SAMPLES = 32, 200


def x_0_of(x_t, abar):
    """E[x_0 | x_t] of the data."""
    gain = math.sqrt(abar) * STD**2 / (abar * STD**2 + 1 - abar)
    return MEAN + gain * (x_t - math.sqrt(abar) * MEAN)


def eps_of(x_t, abar):
    return (x_t - math.sqrt(abar) * x_0_of(x_t, abar)) / math.sqrt(1 - abar)


def scheduler_of(name, prediction, clip_range=5.0):
    scheduler = make_scheduler(name, "cosine", prediction, clip_range=clip_range)
    if name == "analytic":
        generators = child_generators(range(100, 300), "data")
        x_0 = MEAN + STD * randn_per_sample((DIM,), generators)
        knots = [round(i * 999 / 63) for i in range(64)]
        abar = [abar_of(scheduler, t) for t in range(1000)]
        norms = estimate_score_norms(
            lambda x_t, t: eps_of(x_t, abar[int(t[0])]), x_0, abar, knots, generators
        )
        scheduler.register_to_config(score_norms=norms)
    return scheduler


def draw(name, prediction, steps, clip_range=5.0):
    scheduler = scheduler_of(name, prediction, clip_range)

    def predict(x_t, t):
        abar = abar_of(scheduler, float(t[0]))
        x_0, eps = x_0_of(x_t, abar), eps_of(x_t, abar)
        v = math.sqrt(abar) * eps - math.sqrt(1 - abar) * x_0
        return {"x_0": x_0, "eps": eps, "v": v}[prediction]

    generators = child_generators(range(NUM_SAMPLES), "x")
    return denoise(predict, randn_per_sample((DIM,), generators), scheduler, steps, generators)


@pytest.mark.parametrize("name", SAMPLER_NAMES)
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_the_data_come_out(name, prediction):
    x = draw(name, prediction, 25)
    assert abs(x.mean() - MEAN) < 0.02
    assert abs(x.std() - STD) < 0.07  # 25 steps of DDPM's own variance are 0.055 short


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_one_step_is_the_mean_and_two_are_finite(name):
    one = draw(name, "x_0", 1)
    assert abs(one.mean() - MEAN) < 1e-3 and one.std() < 0.02
    assert torch.isfinite(draw(name, "x_0", 2)).all()
    assert timesteps_for(1, scheduler_of(name, "x_0"))[0] == 999


@pytest.mark.parametrize("steps", [3, 5, 25])
def test_the_optimal_variance_keeps_the_spread_of_the_data_in_few_steps(steps):
    assert abs(draw("analytic", "x_0", steps).std() - STD) < 0.025  # three steps leave 0.02
    assert draw("ddpm", "x_0", steps).std() < STD - 0.05


def test_the_optimal_variance_against_the_posterior_of_gaussian_data():
    abar_t, abar_s = 0.2, 0.6
    alpha, left = abar_t / abar_s, 1 - abar_t
    norm = left / (abar_t * STD**2 + left)  # E eps_hat^2 of x_t ~ N(., abar s^2 + 1 - abar)
    # x_s given x_t of jointly Gaussian values: var_s - cov^2 / var_t
    var_s, var_t = abar_s * STD**2 + 1 - abar_s, abar_t * STD**2 + left
    covariance = math.sqrt(alpha) * var_s
    assert optimal_variance(abar_t, abar_s, norm) == pytest.approx(var_s - covariance**2 / var_t)


def test_analytic_without_its_statistics_is_refused():
    scheduler = make_scheduler("analytic", "cosine", "x_0")
    with pytest.raises(ValueError, match="score_norms"):
        denoise(lambda x, t: x, torch.zeros(1, 2), scheduler, 2, child_generators([1], "x"))


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_names_come_back(name):
    assert sampler_name(make_scheduler(name, "linear", "v")) == name


@pytest.mark.parametrize("name", [*sorted(REFUSED), "FlowMatchEulerDiscreteScheduler"])
def test_schedulers_that_cannot_work_are_refused_by_name(name):
    scheduler = getattr(diffusers, name)()
    with pytest.raises(ValueError, match=f"^scheduler: {name} .*give one of ddpm"):
        denoise(lambda x, t: x, torch.zeros(1, 2), scheduler, 2, child_generators([1], "x"))


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++", "euler", "euler-a", "heun", "unipc"])
def test_dynamic_thresholding_with_any_sampler(name):
    scheduler = make_scheduler(name, "cosine", "x_0", clip_range=None)
    scheduler.register_to_config(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=100.0
    )
    target = torch.linspace(-3, 3, 48).reshape(1, 3, 4, 4)
    generators = child_generators([1], "x")
    x_T = randn_per_sample((3, 4, 4), generators)
    x = denoise(lambda x_t, t: target, x_T, scheduler, 5, generators)
    torch.testing.assert_close(x, dynamic_threshold(target, 0.9), atol=2e-3, rtol=0)


def test_dynamic_thresholding_is_imagens():
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2
    s = x.abs().flatten(1).quantile(0.95, dim=1, interpolation="nearest").reshape(3, 1, 1, 1)
    torch.testing.assert_close(dynamic_threshold(x, 0.95), x.clamp(-s, s) / s, atol=0.02, rtol=0)
    small = x / 100
    assert torch.equal(dynamic_threshold(small, 0.95), small)
    assert dynamic_threshold(x, 0.95, max_value=1.0).equal(x.clamp(-1, 1))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_euler_ancestral_is_finite_with_any_few_steps(schedule):
    """With 3 steps on the cosine schedule float32 takes the root of what is rounded below 0."""
    for steps in range(1, 11):
        scheduler = make_scheduler("euler-a", schedule, "x_0")
        x_T = torch.ones(1, 2, 2)
        drawn = denoise(lambda x, t: x * 0, x_T, scheduler, steps, child_generators([1], "decoder"))
        assert drawn.abs().max() < 0.01, steps


def test_odd_steps_of_the_singlestep_solver_are_not_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    with caplog.at_level("WARNING"):
        timesteps_for(5, make_scheduler("dpm++s", "cosine", "x_0"))
    assert not caplog.messages


def test_a_setting_that_another_class_left_behind_names_no_sampler():
    other = make_scheduler("dpm++sde", "cosine", "x_0").config
    assert sampler_name(diffusers.DDIMScheduler.from_config(other)) == "ddim"
    assert sampler_name(diffusers.DPMSolverMultistepScheduler.from_config(other)) == "dpm++sde"
