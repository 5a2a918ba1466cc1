"""DDIM inversion on a network known exactly, spherical interpolation and the seeds of stages."""

import math

import pytest
import torch

from unclip.diffusion.interpolation import slerp
from unclip.diffusion.inversion import ddim_invert
from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedulers import alphas_cumprod, make_scheduler

GOLDEN_SEEDS = [3221601117278604034, 7352917903161476240, 6344026265135377695]


@pytest.fixture
def drawings(gaussian_data):
    """Ten samples x_0 [10, 3] of the data, in float64."""
    generator = torch.Generator().manual_seed(3)
    eps = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    return gaussian_data.mean + gaussian_data.std * eps


def round_trip_error(gaussian_data, x_0, steps, prediction="eps", **options):
    scheduler = make_scheduler("ddim", "cosine", prediction, clip_range=None)
    network = gaussian_data.network(prediction)
    x_T = ddim_invert(network, x_0, scheduler, steps, **options)
    generators = child_generators(range(len(x_0)), "decoder")
    return (denoise(network, x_T, scheduler, steps, generators) - x_0).abs().max().item()


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_inversion_finds_the_noise_of_each_drawing(gaussian_data, drawings, prediction):
    """The probability flow keeps quantiles, so x_T must be the standardised x_0."""
    scheduler = make_scheduler("ddim", "cosine", prediction, clip_range=None)
    x_T = ddim_invert(gaussian_data.network(prediction), drawings, scheduler, 1000)
    expected = (drawings - gaussian_data.mean) / gaussian_data.std
    torch.testing.assert_close(x_T, expected, rtol=0, atol=0.02)


def test_the_round_trip_improves_with_steps(gaussian_data, drawings):
    errors = [round_trip_error(gaussian_data, drawings, steps) for steps in (10, 50, 250)]
    assert errors[2] < 0.03 and errors[2] < errors[1] / 2 < errors[0] / 4


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
@pytest.mark.parametrize("steps", [25, "ddim27", "fast27"])
def test_refinements_make_the_round_trip_exact(gaussian_data, drawings, prediction, steps):
    rough = round_trip_error(gaussian_data, drawings, steps, prediction)
    refined = round_trip_error(gaussian_data, drawings, steps, prediction, num_refinements=3)
    assert refined < 0.02 and refined < rough / 10
    assert round_trip_error(gaussian_data, drawings, steps, prediction, num_refinements=30) < 1e-6


def test_an_iteration_that_does_not_converge_is_left(drawings):
    """Near t = T the v of an eps-network is its error over cos(angle), which is almost 0."""
    scheduler = make_scheduler("ddim", "cosine", "eps", clip_range=None)

    def network(x_t, t):
        return 0.9 * x_t + 0.1 * x_t.roll(1, dims=1)

    rough = ddim_invert(network, drawings, scheduler, 10)
    for number in (1, 2, 9):
        refined = ddim_invert(network, drawings, scheduler, 10, num_refinements=number)
        assert refined.abs().max() < 2 * rough.abs().max()


@pytest.mark.parametrize("num_refinements", [0, 3])
def test_what_an_x_0_network_cannot_draw_does_not_make_x_T_loud(num_refinements):
    """It knows the large half of the numbers, N(0, 0.5^2), and answers 0 for small details."""
    scheduler = make_scheduler("ddim", "cosine", "x_0", clip_range=None)
    abar = alphas_cumprod(scheduler)
    details = torch.arange(200) >= 100
    x_0 = torch.randn(4, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_0 = x_0 * torch.where(details, 0.05, 0.5)

    asked = []

    def network(x_t, t):
        asked.append(t)
        a = abar[t][:, None]
        return torch.where(details, 0.0, a.sqrt() * 0.25 / (a * 0.25 + 1 - a) * x_t)

    x_T = ddim_invert(network, x_0, scheduler, 100, num_refinements=num_refinements)
    again = denoise(network, x_T, scheduler, 100, child_generators(range(4), "decoder"))
    assert x_T[:, details].std().item() == pytest.approx(1.1, abs=0.1)  # from x_0: 4 and 10
    assert x_T[:, ~details].std().item() == pytest.approx(1, abs=0.1)
    error = (again - x_0)[:, ~details].std()
    assert error < 0.1 and not again[:, details].any()
    asked.clear()
    alone = ddim_invert(network, x_0[2:3], scheduler, 100, num_refinements=num_refinements)
    torch.testing.assert_close(alone, x_T[2:3])
    assert len(asked) <= 100 * (1 + num_refinements)  # those below the first level are free


def test_inversion_leaves_out_a_learned_variance(gaussian_data, drawings):
    scheduler = make_scheduler("ddim", "cosine", "eps")
    network = gaussian_data.network("eps")

    def with_variance(x_t, t):
        return torch.cat([network(x_t, t), torch.ones_like(x_t)], dim=1)

    expected = ddim_invert(network, drawings, scheduler, 10)
    result = ddim_invert(with_variance, drawings, scheduler, 10, learned_variance=True)
    assert torch.equal(result, expected)


def test_inversion_uses_one_evaluation_a_step_and_never_a_generator(gaussian_data, drawings):
    asked, network = [], gaussian_data.network("eps")

    def counting(x_t, t):
        asked.append(t[0].item())
        return network(x_t, t)

    scheduler = make_scheduler("ddim", "cosine", "eps")
    state = torch.random.get_rng_state()
    ddim_invert(counting, drawings, scheduler, 4, progress=list)
    assert asked == [249, 249, 499, 749]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_inversion_names_its_faults(drawings):
    ddim = make_scheduler("ddim", "cosine", "eps")
    with pytest.raises(ValueError, match="DDIMScheduler"):
        ddim_invert(lambda x, t: x, drawings, make_scheduler("ddpm", "cosine", "eps"), 5)
    with pytest.raises(ValueError, match="num_refinements"):
        ddim_invert(lambda x, t: x, drawings, ddim, 5, num_refinements=-1)
    with pytest.raises(FloatingPointError, match="decoder.*step 1 of 5"):
        ddim_invert(lambda x, t: x * math.nan, drawings, ddim, 5)


def test_slerp_keeps_to_the_sphere_at_an_even_pace():
    a, b = torch.nn.functional.normalize(torch.randn(2, 4, 16, dtype=torch.float64), dim=-1)
    whole = torch.arccos((a * b).sum(-1))
    for theta in (0.0, 0.25, 0.5, 1.0):
        mixed = slerp(a, b, theta)
        torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(4).double())
        torch.testing.assert_close((a * mixed).sum(-1).clamp(-1, 1).arccos(), theta * whole)


def test_slerp_reaches_its_ends_exactly():
    a, b = torch.randn(2, 2, 3, 8, 8)
    assert torch.equal(slerp(a, b, 0.0), a) and torch.equal(slerp(a, b, 1.0), b)


def test_slerp_takes_a_theta_per_sample():
    a, b = torch.randn(2, 3, 5)
    thetas = torch.tensor([0.1, 0.5, 0.9])
    each = [slerp(a[i : i + 1], b[i : i + 1], float(thetas[i]))[0] for i in range(3)]
    torch.testing.assert_close(slerp(a, b, thetas), torch.stack(each))


def test_slerp_of_parallel_and_opposite_vectors():
    a = torch.randn(2, 6)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    with pytest.raises(ValueError, match="opposite"):
        slerp(a, -a, 0.3)
    with pytest.raises(ValueError, match="shape"):
        slerp(a, a[:1], 0.3)


def test_child_generators_are_stable_over_time():
    """A seed printed in a file years ago must still give the same picture."""
    seeds = [generator.initial_seed() for generator in child_generators([0, 1, 42], "decoder")]
    assert seeds == GOLDEN_SEEDS
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_stages_and_seeds_have_streams_of_their_own():
    draws = [
        randn_per_sample((4,), child_generators([seed], stage))
        for seed in (1, 2)
        for stage in ("prior", "decoder")
    ]
    assert len({tuple(draw[0].tolist()) for draw in draws}) == 4
    for seed in ("1", 1.0, True):
        with pytest.raises(ValueError, match="seeds"):
            child_generators([seed], "prior")


def test_noise_of_a_sample_does_not_depend_on_the_batch():
    whole = randn_per_sample((3, 5, 5), child_generators([8, 9, 10], "decoder"))
    assert whole.shape == (3, 3, 5, 5) and whole.dtype == torch.float32
    for i, seed in enumerate((8, 9, 10)):
        alone = randn_per_sample((3, 5, 5), child_generators([seed], "decoder"))
        assert torch.equal(alone[0], whole[i])
    with pytest.raises(ValueError, match="generators"):
        randn_per_sample((3,), [])
