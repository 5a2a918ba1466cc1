"""Guidance: what its scales mean, what it leaves alone, and who loses a condition."""

import pytest
import torch

from unclip.diffusion.guidance import drop_mask, guide, guide_twice, in_interval, lead, rescale


@pytest.fixture
def pair():
    """Conditional and unconditional predictions [4, 6, 5, 5]."""
    return torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5) * 1e3


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("learned_variance", [False, True])
def test_scale_one_is_conditional_and_zero_unconditional_to_the_bit(pair, learned_variance):
    cond, uncond = pair
    assert torch.equal(guide(cond, uncond, 1.0, learned_variance), cond)
    guided = 3 if learned_variance else 6
    assert torch.equal(guide(cond, uncond, 0.0, learned_variance)[:, :guided], uncond[:, :guided])


def test_other_scales_extrapolate(pair):
    cond, uncond = pair
    for scale in (0.5, 3.0, 8.0):
        torch.testing.assert_close(guide(cond, uncond, scale), uncond + scale * (cond - uncond))


def test_learned_variance_comes_from_the_conditional_prediction(pair):
    cond, uncond = pair
    guided = guide(cond, uncond, 4.0, learned_variance=True)
    assert torch.equal(guided[:, 3:], cond[:, 3:])
    torch.testing.assert_close(guided[:, :3], guide(cond[:, :3], uncond[:, :3], 4.0))


def test_a_scale_per_sample(pair):
    cond, uncond = pair
    scales = torch.tensor([0.0, 1.0, 2.0, 7.5])
    guided = guide(cond, uncond, scales)
    for i, scale in enumerate(scales.tolist()):
        assert torch.equal(guided[i], guide(cond[i : i + 1], uncond[i : i + 1], scale)[0])


def test_guide_works_on_embeddings():
    cond, uncond = torch.randn(2, 4, 8)
    torch.testing.assert_close(guide(cond, uncond, 2.0), 2 * cond - uncond)


def test_guide_refuses_what_does_not_fit(pair):
    cond, uncond = pair
    with pytest.raises(ValueError, match="shape"):
        guide(cond, uncond[:1], 2.0)
    with pytest.raises(ValueError, match="even number"):
        guide(cond[:, :5], uncond[:, :5], 2.0, learned_variance=True)


def test_rescale_restores_the_spread_of_the_conditional_prediction(pair):
    cond, uncond = pair
    guided = guide(cond, uncond, 8.0)
    result = rescale(guided, cond, 1.0)
    spread = (1, 2, 3)
    torch.testing.assert_close(result.std(dim=spread), cond.std(dim=spread))
    half = rescale(guided, cond, 0.5)
    torch.testing.assert_close(half, (result + guided) / 2)
    assert torch.equal(rescale(guided, cond, 0.0), guided)


def test_rescale_leaves_the_variance_alone(pair):
    cond, uncond = pair
    guided = guide(cond, uncond, 8.0, learned_variance=True)
    result = rescale(guided, cond, 0.7, learned_variance=True)
    assert torch.equal(result[:, 3:], guided[:, 3:])
    torch.testing.assert_close(result[:, :3], rescale(guided[:, :3], cond[:, :3], 0.7))


def test_rescale_refuses_shares_outside_zero_and_one(pair):
    with pytest.raises(ValueError, match="phi"):
        rescale(*pair, 1.5)


def test_the_interval_limits_guidance_to_some_timesteps():
    within = [in_interval(t, (200, 800)) for t in (199, 200, 800, 801)]
    assert within == [False, True, True, False]
    assert in_interval(torch.tensor(500), (200, 800)) and in_interval(5, None)
    for interval in ((800, 200), (-1, 5)):
        with pytest.raises(ValueError, match="interval"):
            in_interval(5, interval)


@pytest.mark.parametrize("learned_variance", [False, True])
def test_two_scales_agree_with_one_where_they_are_alike_or_one_is_1(pair, learned_variance):
    cond, uncond = pair
    image = cond.flip(0)
    told = {"learned_variance": learned_variance}
    alike = guide_twice(cond, image, uncond, 2.5, 2.5, **told)
    assert torch.allclose(alike, guide(cond, uncond, 2.5, **told), atol=1e-5)
    assert torch.equal(
        guide_twice(cond, image, uncond, 3, 1, **told), guide(cond, image, 3, **told)
    )


def test_two_scales_weigh_three_predictions():
    cond, image, uncond = torch.eye(3).reshape(3, 1, 3)
    assert guide_twice(cond, image, uncond, 3, 2).tolist() == [[3, -1, -1]]
    assert guide_twice(cond, image, uncond, 1, 2).tolist() == [[1, 1, -1]]


def test_drop_mask_depends_on_each_samples_generator_alone():
    whole = drop_mask(0.5, generators(range(64)))
    parts = [drop_mask(0.5, generators([seed]))[0] for seed in range(64)]
    assert whole.tolist() == [bool(part) for part in parts]
    assert whole.dtype == torch.bool


def test_drop_mask_has_the_probability_asked_for():
    rng = generators([0])[0]
    share = drop_mask(0.1, [rng] * 5000).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.015)
    assert not drop_mask(0.0, generators(range(50))).any()
    assert drop_mask(1.0, generators(range(50))).all()
    with pytest.raises(ValueError, match="probability"):
        drop_mask(1.1, generators([0]))


def test_a_score_leads_x_0_as_it_moves_the_mean_of_normal_data():
    """x_0 ~ N(0, 1) tilted by exp(s g x_0) is N(s g, 1): E[x_0 | x_t] moves by s (1 - abar) g."""
    x_t, g, scale = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3).double(), 2.5
    abar = torch.tensor([0.0, 0.2, 0.9, 1.0], dtype=torch.float64)
    column = abar[:, None]

    def posterior_mean(mean):
        return mean + column.sqrt() * (x_t - column.sqrt() * mean)

    led = lead(posterior_mean(torch.zeros(4, 3).double()), g, abar, scale)
    torch.testing.assert_close(led, posterior_mean(scale * g))
