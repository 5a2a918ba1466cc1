"""Losses against direct computation, and which part of a network each of them teaches."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from unclip.diffusion.gaussian import (
    discretized_gaussian_log_likelihood,
    eps_from_x_0,
    learned_log_variance,
    posterior_mean_log_variance,
    q_sample,
    target_for,
    v_from_x_0_eps,
    x_0_from_eps,
)
from unclip.diffusion.losses import (
    contrastive_loss,
    hybrid_loss,
    min_snr_weight,
    prediction_loss,
    simple_loss,
    vlb_loss,
    x_0_loss_as_v,
)
from unclip.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("cosine")
TIMES = torch.tensor([0, 1, 300, 700])


@pytest.fixture
def batch():
    """x_0 at 8-bit values, eps and x_t [4, 3, 4, 4] at TIMES."""
    x_0 = torch.randint(0, 256, (4, 3, 4, 4)) / 127.5 - 1
    eps = torch.randn(4, 3, 4, 4)
    return x_0, eps, q_sample(SCHEDULE, x_0, TIMES, eps)


def test_simple_loss_is_a_mean_over_each_sample():
    prediction, target = torch.randn(2, 5, 3, 2, 2)
    expected = torch.stack([F.mse_loss(prediction[i], target[i]) for i in range(5)])
    torch.testing.assert_close(simple_loss(prediction, target), expected)
    assert simple_loss(prediction.bfloat16(), target).dtype == torch.float32
    with pytest.raises(ValueError, match="shape"):
        simple_loss(prediction, target[:1])


def test_vlb_terms_equal_distributions_computed_directly(batch):
    x_0, eps, x_t = batch
    eps_hat, fraction = eps + 0.1 * torch.randn_like(eps), torch.rand_like(eps) * 2 - 1
    result = vlb_loss(SCHEDULE, eps_hat, fraction, x_0, x_t, TIMES)
    x_0_hat = x_0_from_eps(SCHEDULE, x_t, eps_hat, TIMES)
    log_variance = learned_log_variance(SCHEDULE, fraction, TIMES)
    mean, true_log_variance = posterior_mean_log_variance(SCHEDULE, x_0, x_t, TIMES)
    mean_hat, _ = posterior_mean_log_variance(SCHEDULE, x_0_hat, x_t, TIMES)
    p = Normal(mean_hat, (log_variance / 2).exp())
    q = Normal(mean, (true_log_variance / 2).exp().expand_as(mean))
    terms = kl_divergence(q, p)
    terms[0] = -discretized_gaussian_log_likelihood(x_0, mean_hat, log_variance)[0]
    torch.testing.assert_close(result, terms.mean(dim=(1, 2, 3)) / math.log(2))


def test_vlb_of_a_perfect_network_is_zero_after_the_first_timestep(batch):
    x_0, eps, x_t = batch
    loss = vlb_loss(SCHEDULE, eps, -torch.ones_like(eps), x_0, x_t, TIMES)
    assert loss[1:].abs().max() < 1e-4
    assert loss[0] > 0


@pytest.mark.parametrize("kind", ["v", "x_0"])
def test_vlb_does_not_depend_on_the_kind_of_prediction(batch, kind):
    x_0, eps, x_t = batch
    x_0_hat = x_0 + 0.1 * torch.randn_like(x_0)
    fraction = torch.zeros_like(x_0)
    eps_hat = eps_from_x_0(SCHEDULE, x_t, x_0_hat, TIMES)
    prediction = target_for(SCHEDULE, kind, x_0_hat, eps_hat, TIMES)
    expected = vlb_loss(SCHEDULE, eps_hat, fraction, x_0, x_t, TIMES)
    result = vlb_loss(SCHEDULE, prediction, fraction, x_0, x_t, TIMES, kind)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


def test_vlb_can_clip_x_0(batch):
    x_0, eps, x_t = batch
    wild = eps - 3
    fraction = torch.zeros_like(eps)
    clipped = vlb_loss(SCHEDULE, wild, fraction, x_0, x_t, TIMES, clip_x_0=True)
    assert clipped[3] < vlb_loss(SCHEDULE, wild, fraction, x_0, x_t, TIMES)[3]


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_hybrid_loss_is_the_weighed_sum(batch, kind):
    x_0, eps, x_t = batch
    output = torch.randn(4, 6, 4, 4)
    prediction, fraction = output.chunk(2, dim=1)
    target = target_for(SCHEDULE, kind, x_0, eps, TIMES)
    vlb = vlb_loss(SCHEDULE, prediction, fraction, x_0, x_t, TIMES, kind)
    expected = simple_loss(prediction, target) + 1000 / 1000 * vlb
    result = hybrid_loss(SCHEDULE, output, x_0, x_t, eps, TIMES, kind=kind)
    torch.testing.assert_close(result, expected)


def test_hybrid_loss_teaches_the_mean_by_the_square_error_alone(batch):
    x_0, eps, x_t = batch
    output = torch.randn(4, 6, 4, 4, requires_grad=True)
    loss = hybrid_loss(SCHEDULE, output, x_0, x_t, eps, TIMES).sum()
    (gradient,) = torch.autograd.grad(loss, output)
    (of_simple,) = torch.autograd.grad(simple_loss(output[:, :3], eps).sum(), output)
    assert torch.equal(gradient[:, :3], of_simple[:, :3])
    vlb = vlb_loss(SCHEDULE, output[:, :3], output[:, 3:], x_0, x_t, TIMES).sum()
    (of_vlb,) = torch.autograd.grad(vlb, output)
    torch.testing.assert_close(gradient[:, 3:], of_vlb[:, 3:])
    assert of_vlb[:, :3].abs().sum() > 0 and gradient[:, 3:].abs().sum() > 0


def test_hybrid_loss_refuses_an_output_without_variance(batch):
    x_0, eps, x_t = batch
    with pytest.raises(ValueError, match="twice the channels"):
        hybrid_loss(SCHEDULE, eps, x_0, x_t, eps, TIMES)


def test_power_1_is_the_absolute_error():
    prediction, target = torch.tensor([[0.0, 3.0], [-1.0, 1.0]]), torch.tensor([[1.0, 1.0]] * 2)
    assert simple_loss(prediction, target, power=1).tolist() == [1.5, 1.0]
    assert simple_loss(prediction, target).tolist() == [2.5, 2.0]


@pytest.mark.parametrize("power", [1, 2])
def test_x_0_loss_is_the_error_of_the_implied_v(batch, power):
    x_0, eps, x_t = batch
    x_0_hat = x_0 + 0.1 * torch.randn_like(x_0)
    eps_hat = eps_from_x_0(SCHEDULE, x_t.double(), x_0_hat.double(), TIMES)
    v_hat = v_from_x_0_eps(SCHEDULE, x_0_hat.double(), eps_hat, TIMES)
    error = simple_loss(v_hat, v_from_x_0_eps(SCHEDULE, x_0.double(), eps.double(), TIMES), power)
    result = x_0_loss_as_v(SCHEDULE, x_0_hat, x_0, TIMES, math.inf, power)
    torch.testing.assert_close(result, error, rtol=1e-3, atol=1e-5)


def test_the_loss_of_each_kind_is_of_what_it_predicts(batch):
    x_0, eps, _ = batch
    output = torch.randn(4, 3, 4, 4)
    for power in (1, 2):
        given = (output, x_0, eps, TIMES, 7.0, power)
        for kind in ("eps", "v"):
            expected = simple_loss(output, target_for(SCHEDULE, kind, x_0, eps, TIMES), power)
            assert torch.equal(prediction_loss(SCHEDULE, kind, *given), expected)
        expected = x_0_loss_as_v(SCHEDULE, output, x_0, TIMES, 7.0, power)
        assert torch.equal(prediction_loss(SCHEDULE, "x_0", *given), expected)


def test_the_weight_of_the_x_0_loss_is_capped():
    loss = x_0_loss_as_v(SCHEDULE, torch.ones(4, 2), torch.zeros(4, 2), TIMES)
    assert loss[0] == 400
    assert loss[3].item() == pytest.approx(1 / (1 - SCHEDULE.alphas_cumprod[700].item()))


def test_min_snr_weighs_the_same_error_alike_for_every_kind(batch):
    x_0, eps, x_t = (part.double() for part in batch)
    t = torch.tensor([100, 300, 700, 990])
    x_t = q_sample(SCHEDULE, x_0, t, eps)
    x_0_hat = x_0 + 0.1 * torch.randn_like(x_0)
    eps_hat = eps_from_x_0(SCHEDULE, x_t, x_0_hat, t)
    losses = [
        min_snr_weight(SCHEDULE, t, 5.0, kind)
        * simple_loss(
            target_for(SCHEDULE, kind, x_0_hat, eps_hat, t),
            target_for(SCHEDULE, kind, x_0, eps, t),
        )
        for kind in ("x_0", "eps", "v")
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-3, atol=1e-7)


def test_min_snr_weights_at_both_ends():
    t = torch.tensor([0, 999])
    assert min_snr_weight(SCHEDULE, t, 5.0, "x_0")[0] == 5
    eps_weight = min_snr_weight(SCHEDULE, t, 5.0, "eps")
    assert eps_weight[1] == 1 and eps_weight[0] < 1e-3
    with pytest.raises(ValueError, match="gamma"):
        min_snr_weight(SCHEDULE, t, 0.0)
    with pytest.raises(ValueError, match="kind"):
        min_snr_weight(SCHEDULE, t, 5.0, "epsilon")


def test_contrastive_loss_of_orthogonal_pairs_has_a_closed_form():
    z = torch.eye(4) * 3
    loss = contrastive_loss(z, z, 2.0)
    torch.testing.assert_close(loss, torch.full((4,), math.log(1 + 3 * math.exp(-2))))


def test_contrastive_loss_is_symmetric_and_counts_both_directions():
    z_img, z_txt = torch.randn(2, 6, 8)
    loss = contrastive_loss(z_img, z_txt, 10.0)
    torch.testing.assert_close(loss, contrastive_loss(z_txt, z_img, 10.0))
    logits = 10 * F.cosine_similarity(z_img[:, None], z_txt[None], dim=-1)
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(loss.mean(), expected)


def test_contrastive_loss_of_parts_is_that_of_the_whole():
    z_img, z_txt = torch.randn(6, 8), torch.randn(6, 8)
    whole = contrastive_loss(z_img, z_txt, 10.0)
    for first in (0, 2, 4):
        rows = slice(first, first + 2)
        part = contrastive_loss(
            z_img[rows], z_txt[rows], 10.0, all_z_img=z_img, all_z_txt=z_txt, first=first
        )
        torch.testing.assert_close(part, whole[rows])


def test_contrastive_loss_is_in_fp32_under_autocast():
    z_img, z_txt = torch.randn(6, 8), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(z_img, z_txt, 100.0)
    assert torch.equal(loss, contrastive_loss(z_img, z_txt, 100.0))


def test_contrastive_loss_clamps_its_scale():
    z_img, z_txt = torch.randn(2, 6, 8)
    at_100 = contrastive_loss(z_img, z_txt, 100.0)
    assert torch.equal(contrastive_loss(z_img, z_txt, 5000.0), at_100)
    log_scale = torch.tensor(math.log(10.0), requires_grad=True)
    contrastive_loss(z_img, z_txt, log_scale.exp()).mean().backward()
    assert log_scale.grad.abs() > 0


def test_contrastive_loss_refuses_unequal_batches():
    with pytest.raises(ValueError, match="z_img"):
        contrastive_loss(torch.randn(3, 8), torch.randn(4, 8), 1.0)
