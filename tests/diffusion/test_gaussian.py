"""Identities of the diffusion process: parity with diffusers, Bayes' rule, torch.distributions."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from unclip.diffusion.gaussian import (
    discretized_gaussian_log_likelihood,
    eps_from_v,
    eps_from_x_0,
    learned_log_variance,
    normal_kl,
    posterior_mean_log_variance,
    q_sample,
    target_for,
    v_from_x_0_eps,
    x_0_from_eps,
    x_0_from_prediction,
    x_0_from_v,
)
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.schedulers import make_scheduler

TIMES = torch.tensor([0, 1, 250, 600, 950])


@pytest.fixture(params=["cosine", "linear"])
def schedule(request):
    return make_schedule(request.param)


@pytest.fixture(params=[(3, 4, 4), (7,)], ids=["images", "embeddings"])
def sample(request):
    """x_0 and eps [5, ...] in float64."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(TIMES), *request.param)
    x_0 = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    return x_0, torch.randn(shape, generator=generator, dtype=torch.float64)


def test_q_sample_and_v_agree_with_diffusers(schedule, sample):
    x_0, eps = (part.float() for part in sample)
    scheduler = make_scheduler("ddpm", schedule.name, "v")
    x_t = q_sample(schedule, x_0, TIMES, eps)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_0, eps, TIMES), rtol=1e-3, atol=1e-5)
    v = v_from_x_0_eps(schedule, x_0, eps, TIMES)
    expected = scheduler.get_velocity(x_0, eps, TIMES)
    torch.testing.assert_close(v, expected, rtol=1e-3, atol=1e-4)


def test_parameterisations_are_inverse_to_each_other(schedule, sample):
    x_0, eps = sample
    x_t = q_sample(schedule, x_0, TIMES, eps)
    v = v_from_x_0_eps(schedule, x_0, eps, TIMES)
    torch.testing.assert_close(x_0_from_eps(schedule, x_t, eps, TIMES), x_0)
    torch.testing.assert_close(eps_from_x_0(schedule, x_t, x_0, TIMES), eps)
    torch.testing.assert_close(x_0_from_v(schedule, x_t, v, TIMES), x_0)
    torch.testing.assert_close(eps_from_v(schedule, x_t, v, TIMES), eps)


@pytest.mark.parametrize("kind", ["eps", "v", "x_0"])
def test_a_perfect_prediction_of_any_kind_gives_x_0(schedule, sample, kind):
    x_0, eps = sample
    x_t = q_sample(schedule, x_0, TIMES, eps)
    prediction = target_for(schedule, kind, x_0, eps, TIMES)
    torch.testing.assert_close(x_0_from_prediction(schedule, kind, x_t, prediction, TIMES), x_0)


def test_unknown_kind_is_refused(schedule, sample):
    x_0, eps = sample
    with pytest.raises(ValueError, match="kind"):
        target_for(schedule, "epsilon", x_0, eps, TIMES)
    with pytest.raises(ValueError, match="kind"):
        x_0_from_prediction(schedule, "sample", x_0, eps, TIMES)


def test_half_precision_inputs_are_computed_in_float32(schedule):
    x_0, eps = torch.ones(1, 3).bfloat16(), torch.zeros(1, 3).bfloat16()
    assert q_sample(schedule, x_0, 3, eps).dtype == torch.float32


def test_one_timestep_for_the_whole_batch(schedule, sample):
    x_0, eps = sample
    every = q_sample(schedule, x_0, torch.full((5,), 77), eps)
    assert torch.equal(q_sample(schedule, x_0, 77, eps), every)


def test_posterior_follows_from_bayes_rule(schedule, sample):
    """q(x_{t-1} | x_t, x_0) ~ q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions add."""
    x_0, eps = (part[1:] for part in sample)
    t = TIMES[1:]
    x_t = q_sample(schedule, x_0, t, eps)
    shape = (-1, *[1] * (x_0.ndim - 1))
    beta = schedule.betas[t].reshape(shape)
    abar_prev = schedule.alphas_cumprod[t - 1].reshape(shape)
    precision = (1 - beta) / beta + 1 / (1 - abar_prev)
    mean = ((1 - beta).sqrt() * x_t / beta + abar_prev.sqrt() * x_0 / (1 - abar_prev)) / precision
    result, log_variance = posterior_mean_log_variance(schedule, x_0, x_t, t)
    torch.testing.assert_close(result, mean)
    torch.testing.assert_close(log_variance, (1 / precision).log())


def test_posterior_at_the_first_timestep_is_x_0(schedule, sample):
    x_0, eps = sample
    x_t = q_sample(schedule, x_0, 0, eps)
    mean, log_variance = posterior_mean_log_variance(schedule, x_0, x_t, 0)
    torch.testing.assert_close(mean, x_0)
    assert torch.isfinite(log_variance).all()


def test_learned_variance_runs_between_its_bounds(schedule):
    t = TIMES[1:]
    ones = torch.ones(len(t), 2, dtype=torch.float64)
    upper = schedule.betas[t][:, None].log().expand(-1, 2)
    lower = schedule.posterior_variance[t][:, None].log().expand(-1, 2)
    torch.testing.assert_close(learned_log_variance(schedule, ones, t), upper)
    torch.testing.assert_close(learned_log_variance(schedule, -ones, t), lower)
    torch.testing.assert_close(learned_log_variance(schedule, 0 * ones, t), (upper + lower) / 2)
    assert torch.isfinite(learned_log_variance(schedule, -ones, 0)).all()


def test_kl_equals_torch_distributions():
    mean_q, mean_p, log_q, log_p = torch.randn(4, 6, 5, dtype=torch.float64)
    q, p = Normal(mean_q, (log_q / 2).exp()), Normal(mean_p, (log_p / 2).exp())
    torch.testing.assert_close(normal_kl(mean_q, log_q, mean_p, log_p), kl_divergence(q, p))
    assert (normal_kl(mean_q, log_q, mean_q, log_q) == 0).all()


@pytest.mark.parametrize("std", [0.002, 0.02, 0.3, 2.0])
def test_the_likelihoods_of_all_pixel_values_sum_to_one(std):
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-1.3, -1.0, 0.1234, 0.99):
        log_variance = torch.tensor(std, dtype=torch.float64).log() * 2
        total = discretized_gaussian_log_likelihood(values, torch.tensor(mean), log_variance)
        assert total.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_likelihood_is_a_difference_of_cumulative_probabilities():
    x = torch.tensor([0, 40, 128, 200, 255], dtype=torch.float64) / 127.5 - 1
    mean, std = x + 0.01, torch.tensor(0.02, dtype=torch.float64)
    normal = Normal(mean, std)
    upper, lower = normal.cdf(x + 1 / 255), normal.cdf(x - 1 / 255)
    upper[-1], lower[0] = 1, 0
    result = discretized_gaussian_log_likelihood(x, mean, 2 * std.log())
    torch.testing.assert_close(result, (upper - lower).log())


def test_likelihood_far_in_the_tail_keeps_a_finite_gradient():
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    mean = (-2 * x.sign() + 0.5).requires_grad_()
    log_variance = torch.full((5,), -10.0, requires_grad=True)
    total = discretized_gaussian_log_likelihood(x, mean, log_variance)
    total.sum().backward()
    assert torch.isfinite(total).all() and (total < -100).all()
    for gradient in (mean.grad, log_variance.grad):
        assert torch.isfinite(gradient).all() and (gradient != 0).all()
