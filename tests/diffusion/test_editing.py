"""Beginning from a picture and keeping a part of one: identities, RePaint's schedule, truth."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler

from unclip.diffusion.editing import (
    denoise_from,
    noised,
    num_steps_of,
    repaint,
    resampling_segments,
)
from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.samplers import SAMPLER_NAMES
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.schedulers import abar_of, make_scheduler
from unclip.diffusion.timesteps import timesteps_for

IMAGE = (3, 8, 8)
REPAINTERS = ("ddim", "ddpm", "dpm++", "dpm++sde", "dpm++s", "unipc", "deis", "sa")


def draws(seeds=(1, 2), shape=IMAGE, stage="decoder"):
    """x_T and the generators that follow it."""
    generators = child_generators(list(seeds), stage)
    return randn_per_sample(shape, generators), generators


def rough_network(x_t, t):
    """A deterministic stand-in for a network, neither good nor constant."""
    times = t.reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype)
    return torch.sin(3 * x_t + times / 100) + 0.5 * x_t.flip(1)


# --- noise ---


def test_noise_in_two_steps_is_noise_in_one():
    """Signal and variance of q(x_t | x_s) q(x_s | x_0) are those of q(x_t | x_0)."""
    abar = make_schedule("cosine").alphas_cumprod
    for s, t in [(0, 1), (10, 700), (300, 999)]:
        one, nothing = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        signal = noised(noised(one, nothing, abar[s].item()), nothing, abar[t].item(), abar[s])
        first = noised(noised(nothing, one, abar[s].item()), nothing, abar[t].item(), abar[s])
        second = noised(nothing, one, abar[t].item(), abar[s].item())
        torch.testing.assert_close(signal**2, abar[t : t + 1])
        torch.testing.assert_close(first**2 + second**2, 1 - abar[t : t + 1])


def test_a_scheduler_s_levels_are_those_of_its_schedule():
    abar = make_schedule("linear").alphas_cumprod
    scheduler = make_scheduler("ddim", "linear", "v")
    for t in (0, 1, 500, 999):
        assert abar_of(scheduler, t) == pytest.approx(abar[t].item(), rel=1e-4)
    assert abar_of(scheduler, -1) == 1.0


def test_noise_cannot_be_taken_away():
    with pytest.raises(ValueError, match="abar"):
        noised(torch.zeros(1), torch.zeros(1), abar=0.9, abar_from=0.5)


# --- parts of the steps, and beginning from a picture ---


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_two_parts_of_the_steps_are_the_whole(sampler):
    scheduler = make_scheduler(sampler, "cosine", "v")
    x_T, generators = draws()
    whole = denoise(rough_network, x_T, scheduler, 9, generators)
    x_T, generators = draws()
    x_t = denoise(rough_network, x_T, scheduler, 9, generators, stop=4)
    assert torch.equal(denoise(rough_network, x_t, scheduler, 9, generators, start=4), whole)


@pytest.mark.parametrize("sampler", [name for name in SAMPLER_NAMES if name != "analytic"])
def test_every_sampler_begins_from_a_picture(sampler):
    """A network that sees x_0 through the noise gives it back, from wherever it begins."""
    x_0 = torch.rand(1, *IMAGE) * 1.6 - 0.8
    scheduler = make_scheduler(sampler, "cosine", "x_0", clip_range=None)
    for strength in (0.1, 0.4, 0.5, 1.0):
        eps, generators = draws((1,))
        out = denoise_from(
            lambda x_t, t: x_0, eps, scheduler, 9, generators, x_0=x_0, strength=strength
        )
        torch.testing.assert_close(out, x_0, atol=5e-2, rtol=0)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (4, 4), (0, 5), (3, 2)])
def test_a_part_that_is_none_is_named(start, stop):
    x_T, generators = draws()
    with pytest.raises(ValueError, match="start and stop"):
        scheduler = make_scheduler("ddim", "cosine", "v")
        denoise(rough_network, x_T, scheduler, 4, generators, start=start, stop=stop)


def test_a_scheduler_that_adds_noise_alone_is_given_its_scale():
    """Euler's x_t is x_0 + sigma eps: from x_t at any step it comes to the same x_0 as DDIM."""
    x_0 = torch.full((1, *IMAGE), 0.3)
    eps, generators = draws((1,))
    euler = EulerDiscreteScheduler(prediction_type="sample", timestep_spacing="trailing")
    for scheduler in (euler, make_scheduler("ddim", "linear", "x_0", clip_range=None)):
        seen = []

        def predict(x_t, t, seen=seen):
            seen.append((t.item(), x_t.clone()))
            return x_0

        denoise_from(predict, eps, scheduler, 10, generators, x_0=x_0, strength=0.4)
        t, x_t = seen[0]
        assert len(seen) == 4 and t == pytest.approx(399, abs=1)
        torch.testing.assert_close(x_t, noised(x_0, eps, abar_of(scheduler, t)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_strength_is_the_share_of_the_steps_that_are_run(sampler):
    scheduler = make_scheduler(sampler, "cosine", "v")
    x_0 = torch.rand(2, *IMAGE) * 2 - 1
    for strength, expected in [(1.0, 20), (0.5, 10), (0.26, 5), (0.001, 1)]:
        count = []
        eps, generators = draws()
        denoise_from(
            rough_network,
            eps,
            scheduler,
            20,
            generators,
            x_0=x_0,
            strength=strength,
            on_step=lambda *step, count=count: count.append(step[0]),
        )
        assert count == list(range(20 - expected, 20))


def test_the_weaker_the_nearer_to_the_picture(gaussian_data):
    """With the network that knows the data, a drawing keeps more of x_0 at a smaller strength."""
    scheduler = make_scheduler("ddpm", "cosine", "v", clip_range=None)
    predict = gaussian_data.network("v")
    mean, std = (value.float().reshape(1, 3, 1, 1) for value in vars(gaussian_data).values())
    x_0 = mean + std * torch.randn(1, 3, 48, 48)
    correlations = []
    for strength in (0.1, 0.3, 0.5, 0.7, 1.0):
        eps, generators = draws((5,), x_0.shape[1:])
        drawn = denoise_from(predict, eps, scheduler, 50, generators, x_0=x_0, strength=strength)
        pairs = torch.stack([x_0[0, 0].flatten(), drawn[0, 0].flatten()])
        correlations.append(torch.corrcoef(pairs)[0, 1].item())
        assert (drawn.std((2, 3)) / std.flatten() - 1).abs().max() < 0.15, strength
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[0] > 0.9 and abs(correlations[-1]) < 0.1


def test_strengths_that_cannot_be_are_named():
    for strength in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            num_steps_of(strength, 10)


# --- RePaint ---


def published_schedule(num_steps, jump_length, num_resamples):
    """The times of RePaint's appendix B, figure 9: t falls, and jumps back where it still may."""
    jumps = {t: num_resamples - 1 for t in range(0, num_steps - jump_length, jump_length)}
    t, times = num_steps, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize("num_steps", [1, 2, 9, 10, 11, 25, 250])
@pytest.mark.parametrize(("jump_length", "num_resamples"), [(1, 1), (1, 3), (10, 10), (4, 2)])
def test_segments_are_repaint_s_schedule(num_steps, jump_length, num_resamples):
    segments = resampling_segments(num_steps, jump_length, num_resamples)
    visited = []
    for start, stop in segments:
        back = range(visited[-1] - 1, start - 1, -1) if visited else [0]
        visited += [*back, *range(start + 1, stop + 1)]
    times = [num_steps - 1 - state for state in visited]
    assert times == published_schedule(num_steps, jump_length, num_resamples)
    num_run = sum(stop - start for start, stop in segments)
    assert num_run == num_steps + (num_resamples - 1) * jump_length * (
        (num_steps - 1) // jump_length
    )


def run_repaint(sampler, mask, x_0, shape=IMAGE, predict=rough_network, steps=9, **options):
    scheduler = make_scheduler(sampler, "cosine", "v", clip_range=options.pop("clip_range", 1.0))
    x_T, generators = draws(range(len(x_0)), shape)
    known = child_generators(list(range(len(x_0))), "decoder known")
    return repaint(
        predict,
        x_T,
        scheduler,
        steps,
        generators,
        x_0=x_0,
        mask=mask,
        noise_generators=known,
        **options,
    )


@pytest.mark.parametrize("sampler", REPAINTERS)
def test_known_pixels_come_back_to_the_bit(sampler):
    x_0 = torch.rand(2, *IMAGE) * 2 - 1
    mask = (torch.rand(2, 1, 8, 8) > 0.5).float()
    known = (mask == 0).expand_as(x_0)
    for resampling in ({}, {"num_resamples": 3, "jump_length": 2}):
        out = run_repaint(sampler, mask, x_0, **resampling)
        assert torch.equal(out[known], x_0[known])
        assert (out[~known] - x_0[~known]).abs().mean() > 0.05


@pytest.mark.parametrize("sampler", REPAINTERS)
def test_to_repaint_all_is_to_draw(sampler):
    x_0, (x_T, generators) = torch.rand(2, *IMAGE), draws((0, 1))
    scheduler = make_scheduler(sampler, "cosine", "v")
    drawn = denoise(rough_network, x_T, scheduler, 9, generators)
    assert torch.equal(run_repaint(sampler, torch.ones(1, 1, 1, 1), x_0), drawn)


def test_the_rest_does_not_depend_on_what_the_mask_hides():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6] = 1
    x_0 = torch.rand(1, *IMAGE)
    one, other = (
        run_repaint("ddpm", mask, x_0 * (1 - mask) + fill * mask, num_resamples=2)
        for fill in (-1, 1)
    )
    assert torch.equal(one, other)


def test_a_sample_does_not_depend_on_its_batch():
    x_0, mask = torch.rand(3, *IMAGE), (torch.rand(3, 1, 8, 8) > 0.5).float()
    both = run_repaint("ddpm", mask, x_0, num_resamples=2, jump_length=3)
    alone = run_repaint("ddpm", mask[:1], x_0[:1], num_resamples=2, jump_length=3)
    assert torch.equal(both[:1], alone)


def test_steps_and_bar_are_told_of_every_evaluation():
    told, shown = [], []

    def bar(indices):
        for index in indices:
            shown.append(index)
            yield index
        shown.append("end")

    x_0 = torch.rand(1, *IMAGE)
    run_repaint(
        "ddim",
        torch.ones(1, 1, 1, 1),
        x_0,
        num_resamples=3,
        jump_length=4,
        on_step=lambda step, t, x_t: told.append((step, t)),
        progress=bar,
    )
    timesteps = [*timesteps_for(9, make_scheduler("ddim", "cosine", "v")), -1]
    assert len(told) == 9 + 2 * 4 * 2
    assert shown == [*(step for step, _ in told), "end"]
    assert all(t == timesteps[step + 1] for step, t in told)


def test_resampling_brings_the_rest_to_agree_with_what_is_known():
    """Two pixels of correlation 0.9, one known: the other's truth is N(0.9 known, 1 - 0.9^2).

    The network is exact. Without jumps the unknown pixel hears of the known one too late and
    follows it too little; with them it comes near the truth (RePaint section 4.2), of which the
    steps, 40 and none that learned its variance, leave a little to be wished for.
    """
    rho, side = 0.9, 64
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    abar = make_schedule("cosine").alphas_cumprod

    def predict(x_t, t):
        """v from E[x_0 | x_t] = sqrt(abar) C (abar C + (1 - abar) I)^-1 x_t."""
        level = abar[t[0].item()]
        noisy = level * covariance + (1 - level) * torch.eye(2)
        gain = (level.sqrt() * covariance @ torch.linalg.inv(noisy)).to(x_t.dtype)
        x_0 = torch.einsum("ij,bjhw->bihw", gain, x_t)
        eps = (x_t - level.sqrt() * x_0) / (1 - level).sqrt()
        return (level.sqrt() * eps - (1 - level).sqrt() * x_0).float()

    x_0 = torch.randn(1, 2, side, side)
    mask = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    slopes, spreads = [], []
    for num_resamples in (1, 3, 9):
        options = {"num_resamples": num_resamples, "jump_length": 4, "clip_range": None}
        out = run_repaint("ddpm", mask, x_0, (2, side, side), predict, 40, **options)
        known, drawn = out[0].flatten(1)
        slopes.append((known @ drawn / (known @ known)).item())
        spreads.append((drawn - rho * known).std().item())
    assert slopes[0] < 0.7 and slopes == sorted(slopes)
    assert slopes[-1] == pytest.approx(rho, abs=0.06)
    assert spreads[-1] == pytest.approx((1 - rho**2) ** 0.5, abs=0.06)
    assert spreads[0] > 0.55


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler(), PNDMScheduler()])
def test_schedulers_that_cannot_jump_are_refused(scheduler):
    x_T, generators = draws((0,))
    with pytest.raises(ValueError, match="^scheduler: .* cannot repaint"):
        repaint(
            rough_network,
            x_T,
            scheduler,
            5,
            generators,
            x_0=x_T,
            mask=torch.ones(1, 1, 1, 1),
            noise_generators=generators,
        )


@pytest.mark.parametrize("numbers", [{"jump_length": 0}, {"num_resamples": 0}])
def test_jumps_that_lead_nowhere_are_named(numbers):
    with pytest.raises(ValueError, match="jump_length and num_resamples"):
        run_repaint("ddim", torch.ones(1, 1, 1, 1), torch.rand(1, *IMAGE), **numbers)
