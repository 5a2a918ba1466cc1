"""The sampling loop: parity with diffusers, exact answers, independence of the batch, faults."""

import copy

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UnCLIPScheduler

from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.schedulers import make_scheduler
from unclip.diffusion.stepping import ddim_step
from unclip.diffusion.timesteps import FAST27, timesteps_for

IMAGE = (3, 4, 4)


def start(seeds=(1, 2, 3), shape=IMAGE, stage="decoder"):
    """x_T and the generators that follow it."""
    generators = child_generators(list(seeds), stage)
    return randn_per_sample(shape, generators), generators


def rough_network(x_t, t):
    """A deterministic stand-in for a network, neither good nor constant."""
    times = t.reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype)
    return torch.sin(3 * x_t + times / 100) + 0.5 * x_t.flip(1)


def rough_network_with_variance(x_t, t):
    return torch.cat([rough_network(x_t, t), torch.tanh(5 * x_t)], dim=1)


CORE = ("ddpm", "ddim", "dpm++")  # test_samplers.py holds the others to the same distribution


# --- schedulers and timesteps ---


@pytest.mark.parametrize("sampler", CORE)
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedulers_use_our_schedules(sampler, schedule):
    scheduler = make_scheduler(sampler, schedule, "v")
    expected = make_schedule(schedule).betas.float()
    torch.testing.assert_close(scheduler.betas, expected)
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("steps", [2, 7, 25, 50, 250])
def test_ddpm_takes_the_timesteps_of_the_unclip_scheduler(steps):
    reference = UnCLIPScheduler()
    reference.set_timesteps(steps)
    timesteps = timesteps_for(steps, make_scheduler("ddpm", "cosine", "eps"))
    assert timesteps == reference.timesteps.tolist()


def test_seven_steps_are_those_of_karlo():
    scheduler = make_scheduler("ddpm", "cosine", "eps")
    assert timesteps_for(7, scheduler) == [999, 832, 666, 500, 333, 166, 0]


@pytest.mark.parametrize("sampler", CORE)
@pytest.mark.parametrize("steps", [1, 2, 4, 27, 61, 122, 123, 999, 1000])
def test_every_number_of_steps_starts_at_the_last_timestep(sampler, steps):
    """61 steps with trailing spacing are 62 in the library, the last of them at -1."""
    timesteps = timesteps_for(steps, make_scheduler(sampler, "cosine", "eps"))
    assert len(timesteps) == steps
    assert timesteps[0] == 999 and timesteps[-1] >= 0
    assert timesteps == sorted(set(timesteps), reverse=True)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        DDPMScheduler(timestep_spacing="linspace"),
        UnCLIPScheduler(),
        diffusers.EulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(timestep_spacing="leading"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_one_step_starts_at_999_with_any_spacing(scheduler):
    assert timesteps_for(1, scheduler) == [999]


@pytest.mark.parametrize("sampler", CORE)
def test_published_lists(sampler):
    scheduler = make_scheduler(sampler, "cosine", "eps")
    fast27 = timesteps_for("fast27", scheduler)
    assert fast27 == list(FAST27) and len(fast27) == 27
    assert timesteps_for("ddim15", scheduler) == list(range(938, -1, -67))
    assert timesteps_for("ddim27", scheduler) == list(range(988, -1, -38))
    assert timesteps_for([900, 20, 3], scheduler) == [900, 20, 3]


@pytest.mark.parametrize(
    "steps",
    [0, -1, 1001, 2.5, True, None, "ddim64", "ddim", "slow", [], [3, 5], [5, 5], [1000], [3, -1]],
)
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        timesteps_for(steps, make_scheduler("ddim", "cosine", "eps"))


def test_fast27_needs_1000_timesteps():
    scheduler = make_scheduler("ddim", "cosine", "eps", num_train_timesteps=100)
    with pytest.raises(ValueError, match="1000"):
        timesteps_for("fast27", scheduler)


def test_a_list_is_refused_where_the_library_cannot_take_one():
    with pytest.raises(ValueError, match="PNDMScheduler"):
        timesteps_for("fast27", diffusers.PNDMScheduler())


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampler": "eulr"},
        {"schedule": "squaredcos_cap_v2"},
        {"prediction": "epsilon"},
        {"clip_range": 0.0},
        {"clip_range": float("inf")},
    ],
)
def test_make_scheduler_names_the_wrong_argument(arguments):
    valid = {"sampler": "ddpm", "schedule": "cosine", "prediction": "eps"}
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make_scheduler(**{**valid, **arguments})


@pytest.mark.parametrize("sampler", CORE)
def test_a_saved_scheduler_samples_alike(sampler, tmp_path):
    scheduler = make_scheduler(sampler, "cosine", "x_0", clip_range=0.3)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    results = []
    for each in (scheduler, loaded):
        x_T, generators = start()
        results.append(denoise(rough_network, x_T, each, 5, generators))
    assert torch.equal(*results)
    assert results[0].abs().max() <= 0.3 + 1e-6


# --- parity with diffusers' own loops ---


def library_loop(scheduler, predict, x_t, steps, generators, **extra):
    """Sampling as diffusers' pipelines write it."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = predict(x_t, t.expand(len(x_t)))
        x_t = scheduler.step(output, t, x_t, generator=generators, **extra).prev_sample
    return x_t


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_ddim_equals_diffusers_on_an_even_stride(eta, prediction):
    scheduler = make_scheduler("ddim", "cosine", prediction)
    x_T, generators = start()
    result = denoise(rough_network, x_T, scheduler, 50, generators, eta=eta)
    x_T, generators = start()
    extra = {"eta": eta, "use_clipped_model_output": True}
    expected = library_loop(scheduler, rough_network, x_T, 50, generators, **extra)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_dpm_solver_equals_diffusers_with_its_own_threshold(schedule, prediction):
    scheduler = make_scheduler("dpm++", schedule, prediction)
    assert scheduler.config.thresholding and scheduler.config.sample_max_value == 1
    x_T, generators = start()
    result = denoise(rough_network, x_T, scheduler, 20, generators)
    scheduler.set_timesteps(20)
    for t in scheduler.timesteps:
        x_T = scheduler.step(rough_network(x_T, t.expand(3)), t, x_T).prev_sample
    torch.testing.assert_close(result, x_T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("learned_variance", [False, True])
def test_ddpm_equals_the_unclip_scheduler(learned_variance):
    """Karlo's scheduler, both driven as its pipeline does and given to denoise()."""
    network = rough_network_with_variance if learned_variance else rough_network
    variance_type = "learned_range" if learned_variance else "fixed_small_log"
    reference = UnCLIPScheduler(variance_type=variance_type)
    reference.set_timesteps(25)
    x_t, generators = start()
    for i, t in enumerate(reference.timesteps):
        following = reference.timesteps[i + 1] if i < 24 else None
        output = network(x_t, t.expand(3))
        x_t = reference.step(output, t, x_t, following, generator=generators).prev_sample
    for scheduler in (make_scheduler("ddpm", "cosine", "eps", learned_variance), reference):
        x_T, generators = start()
        result = denoise(network, x_T, scheduler, 25, generators, learned_variance)
        torch.testing.assert_close(result, x_t, rtol=1e-3, atol=1e-3)


def test_the_lowest_learned_variance_is_the_fixed_small_one():
    def lowest(x_t, t):
        return torch.cat([rough_network(x_t, t), -torch.ones_like(x_t)], dim=1)

    x_T, generators = start()
    learned = make_scheduler("ddpm", "cosine", "eps", learned_variance=True)
    result = denoise(lowest, x_T, learned, 20, generators, learned_variance=True)
    x_T, generators = start()
    fixed = make_scheduler("ddpm", "cosine", "eps")
    expected = denoise(rough_network, x_T, fixed, 20, generators)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("scheduler_name", ["ddim", "dpm++", "fixed ddpm", "euler", "unipc"])
def test_a_learned_variance_is_left_out_where_it_has_no_use(scheduler_name):
    schedulers = {
        "ddim": make_scheduler("ddim", "cosine", "eps"),
        "dpm++": make_scheduler("dpm++", "cosine", "eps"),
        "fixed ddpm": make_scheduler("ddpm", "cosine", "eps"),
        "euler": diffusers.EulerDiscreteScheduler(),
        "unipc": diffusers.UniPCMultistepScheduler(),
    }
    scheduler = schedulers[scheduler_name]
    x_T, generators = start()
    expected = denoise(rough_network, x_T, scheduler, 6, generators)
    x_T, generators = start()
    result = denoise(rough_network_with_variance, x_T, scheduler, 6, generators, True)
    assert torch.equal(result, expected)


# --- exact answers ---


@pytest.mark.parametrize("steps", ["fast27", "ddim15", [997, 500, 3], 7, 1])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_with_a_network_that_knows_x_0_ends_there(steps, eta):
    x_0 = torch.linspace(-1, 1, 48).reshape(1, *IMAGE).double()
    abar = make_schedule("linear").alphas_cumprod

    def knowing(x_t, t):
        level = abar[t].reshape(-1, 1, 1, 1)
        return (x_t - level.sqrt() * x_0) / (1 - level).sqrt()

    x_T, generators = start((4,))
    scheduler = make_scheduler("ddim", "linear", "eps", clip_range=None)
    result = denoise(knowing, x_T.double(), scheduler, steps, generators, eta=eta)
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-5)


def test_uneven_lists_use_the_next_timestep_of_the_list():
    """After the step from 900 the sample must be at the noise level of 100, whatever the stride."""
    x_0, abar = torch.zeros(1, 2), make_schedule("cosine").alphas_cumprod
    levels = {}

    def on_step(step, t, x_t):
        levels[t] = x_t

    x_T, generators = start((7,), (2,))
    scheduler = make_scheduler("ddim", "cosine", "x_0")
    denoise(lambda x_t, t: x_0, x_T, scheduler, [900, 100, 50], generators, on_step=on_step)
    for t in (100, 50):
        share = ((1 - abar[t]) / (1 - abar[900])).sqrt().float()
        torch.testing.assert_close(levels[t], share * x_T)


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"), [("ddim", 1000, 3e-3), ("dpm++", 50, 2e-2)]
)
def test_deterministic_samplers_follow_the_probability_flow(
    gaussian_data, prediction, sampler, steps, tolerance
):
    x_T, generators = start(range(20), (3,))
    x_T = x_T.double()
    scheduler = make_scheduler(sampler, "cosine", prediction, clip_range=None)
    result = denoise(gaussian_data.network(prediction), x_T, scheduler, steps, generators)
    expected = gaussian_data.flow(x_T, make_schedule("cosine").alphas_cumprod[-1].item())
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("sampler", "eta", "steps"),
    [("ddpm", 0.0, 150), ("ddim", 0.0, 100), ("ddim", 1.0, 150), ("dpm++", 0.0, 20)],
)
def test_samples_have_the_moments_of_the_data(gaussian_data, sampler, eta, steps):
    x_T, generators = start(range(1000), (3,), "prior")
    scheduler = make_scheduler(sampler, "cosine", "x_0", clip_range=10.0)
    network = gaussian_data.network("x_0")
    x_0 = denoise(network, x_T, scheduler, steps, generators, stage="prior", eta=eta).double()
    standard_error = gaussian_data.std / 1000**0.5
    assert ((x_0.mean(dim=0) - gaussian_data.mean).abs() < 4 * standard_error).all()
    assert ((x_0.std(dim=0) / gaussian_data.std - 1).abs() < 0.12).all()


@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "UnCLIPScheduler",
    ],
)
def test_other_diffusers_schedulers_work(gaussian_data, name):
    """Those that scale the input, repeat timesteps, or give fractional ones."""
    if name == "UnCLIPScheduler":
        scheduler, schedule = UnCLIPScheduler(clip_sample=False), "cosine"
    else:
        scheduler, schedule = getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02), "linear"
    network = gaussian_data.network("eps", schedule)
    x_T, generators = start(range(400), (3,))
    x_0 = denoise(network, x_T, scheduler, 50, generators).double()
    standard_error = gaussian_data.std / 400**0.5
    assert ((x_0.mean(dim=0) - gaussian_data.mean).abs() < 4 * standard_error + 0.02).all()
    assert ((x_0.std(dim=0) / gaussian_data.std - 1).abs() < 0.25).all()


def test_one_ddim_step_between_the_same_levels_changes_nothing():
    x_t, x_0_hat = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(ddim_step(x_t, x_0_hat, 0.3, 0.3), x_t)
    torch.testing.assert_close(ddim_step(x_t, x_0_hat, 0.3, 1.0), x_0_hat)
    with pytest.raises(ValueError, match="noise"):
        ddim_step(x_t, x_0_hat, 0.3, 0.5, eta=1.0)


# --- clipping ---


@pytest.mark.parametrize("sampler", CORE)
@pytest.mark.parametrize("clip_range", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("shape", [IMAGE, (8,)], ids=["images", "embeddings"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_x_0_stays_in_the_clip_range(sampler, clip_range, shape, prediction):
    x_T, generators = start(shape=shape)
    scheduler = make_scheduler(sampler, "cosine", prediction, clip_range=clip_range)
    x_0 = denoise(lambda x_t, t: 3000 * rough_network(x_t, t), x_T, scheduler, 6, generators)
    assert x_0.abs().max() <= clip_range * (1 + 1e-3)
    assert x_0.abs().max() >= clip_range * (1 - 1e-3)


@pytest.mark.parametrize("sampler", CORE)
def test_no_clipping_when_none_is_asked_for(sampler):
    x_T, generators = start(shape=(4,))
    scheduler = make_scheduler(sampler, "cosine", "x_0", clip_range=None)
    x_0 = denoise(lambda x_t, t: torch.full_like(x_t, 40.0), x_T, scheduler, 5, generators)
    torch.testing.assert_close(x_0, torch.full_like(x_0, 40.0))


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_a_solver_made_from_a_config_that_clips_clips(name):
    config = make_scheduler("ddim", "cosine", "eps").config
    scheduler = getattr(diffusers, name).from_config(config)
    x_T, generators = start()
    x_0 = denoise(lambda x_t, t: 30 * rough_network(x_t, t), x_T, scheduler, 8, generators)
    assert x_0.abs().max() <= 1.001


def test_dynamic_thresholding_of_a_user_is_kept():
    scheduler = DDIMScheduler(
        prediction_type="sample", thresholding=True, sample_max_value=3.0, clip_sample=False
    )
    x_T, generators = start()
    output = torch.linspace(-2, 2, 48).reshape(1, *IMAGE).expand(3, *IMAGE)
    x_0 = denoise(lambda x_t, t: output, x_T, scheduler, 3, generators)
    torch.testing.assert_close(x_0, scheduler._threshold_sample(output))
    assert 0.9 < x_0.abs().max() <= 1


# --- one loop for all ---


@pytest.mark.parametrize("sampler", CORE)
@pytest.mark.parametrize("shape", [IMAGE, (8,)], ids=["images", "embeddings"])
def test_a_sample_does_not_depend_on_its_batch(sampler, shape):
    scheduler = make_scheduler(sampler, "cosine", "eps")
    eta = 1.0 if sampler == "ddim" else 0.0
    x_T, generators = start((5, 6, 7, 8), shape)
    whole = denoise(rough_network, x_T, scheduler, 10, generators, eta=eta)
    for i, seed in enumerate((5, 6, 7, 8)):
        x_T, generators = start((seed,), shape)
        alone = denoise(rough_network, x_T, scheduler, 10, generators, eta=eta)
        assert torch.equal(alone[0], whole[i])
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize("sampler", CORE)
def test_the_scheduler_is_not_changed(sampler):
    scheduler = make_scheduler(sampler, "cosine", "eps")
    before = copy.deepcopy(vars(scheduler))
    x_T, generators = start()
    first = denoise(rough_network, x_T, scheduler, 10, generators)
    for name, value in before.items():
        now = vars(scheduler)[name]
        assert torch.equal(now, value) if isinstance(value, torch.Tensor) else now == value
    x_T, generators = start()
    assert torch.equal(denoise(rough_network, x_T, scheduler, 10, generators), first)


@pytest.mark.parametrize("sampler", CORE)
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_one_step_is_the_clipped_prediction_at_999(sampler, prediction):
    asked = []

    def network(x_t, t):
        asked.append(t.tolist())
        return rough_network(x_t, t)

    x_T, generators = start()
    scheduler = make_scheduler(sampler, "cosine", prediction)
    x_0 = denoise(network, x_T, scheduler, 1, generators)
    output, abar = rough_network(x_T, torch.tensor([999] * 3)), 2.4288e-9
    expected = {
        "eps": (x_T - output) / abar**0.5,
        "v": -output,
        "x_0": output,
    }[prediction].clamp(-1, 1)
    assert asked == [[999, 999, 999]]
    torch.testing.assert_close(x_0, expected, rtol=0, atol=5e-3)


def test_the_last_ancestral_step_adds_no_noise_even_above_timestep_0():
    def network(x_t, t):
        return torch.cat([torch.full_like(x_t, 0.25), torch.ones_like(x_t)], dim=1)

    scheduler = make_scheduler("ddpm", "cosine", "x_0", learned_variance=True)
    x_T, generators = start()
    x_0 = denoise(network, x_T, scheduler, [999, 500], generators, learned_variance=True)
    torch.testing.assert_close(x_0, torch.full_like(x_0, 0.25))


def test_the_network_is_asked_in_float32_with_a_timestep_per_sample():
    seen = []

    def network(x_t, t):
        seen.append((x_t.dtype, tuple(t.shape), t.dtype))
        return x_t.bfloat16()

    x_T, generators = start()
    scheduler = make_scheduler("dpm++", "cosine", "eps")
    x_0 = denoise(network, x_T.bfloat16(), scheduler, 3, generators)
    assert seen == [(torch.float32, (3,), torch.int64)] * 3
    assert x_0.dtype == torch.float32 and not x_0.requires_grad


def test_on_step_sees_every_step_and_may_replace_x_t():
    calls, seen = [], []

    def on_step(step, t, x_t):
        calls.append((step, t))
        return torch.zeros_like(x_t) if step == 1 else None

    def network(x_t, t):
        seen.append(x_t)
        return rough_network(x_t, t)

    x_T, generators = start()
    scheduler = make_scheduler("ddim", "cosine", "eps")
    denoise(network, x_T, scheduler, 4, generators, on_step=on_step)
    assert calls == [(0, 749), (1, 499), (2, 249), (3, -1)]
    assert (seen[2] == 0).all() and (seen[1] != 0).any()


def test_progress_wraps_the_steps():
    wrapped = []

    def progress(indices):
        wrapped.append(len(indices))
        return indices

    x_T, generators = start()
    scheduler = make_scheduler("ddim", "cosine", "eps")
    denoise(rough_network, x_T, scheduler, 4, generators, progress=progress)
    assert wrapped == [4]


# --- faults ---


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampler", CORE)
def test_a_value_that_is_not_finite_names_the_stage_and_the_step(sampler, bad):
    calls = []

    def failing(x_t, t):
        calls.append(t)
        output = rough_network(x_t, t)
        if len(calls) == 3:
            output[1, 0] = bad
        return output

    x_T, generators = start()
    scheduler = make_scheduler(sampler, "cosine", "eps")
    with pytest.raises(FloatingPointError, match=r"upsampler_256.*step 3 of 7 \(t = \d+\)"):
        denoise(failing, x_T, scheduler, 7, generators, stage="upsampler_256")
    assert len(calls) == 3


def test_a_replacement_that_is_not_finite_is_named_too():
    x_T, generators = start()
    scheduler = make_scheduler("ddim", "cosine", "eps")
    with pytest.raises(FloatingPointError, match="step 1 of 4"):
        denoise(rough_network, x_T, scheduler, 4, generators, on_step=lambda step, t, x: x / 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_T": torch.full((3, 8), float("nan"))}, "x_T must be finite"),
        ({"x_T": torch.zeros(3, 8, dtype=torch.long)}, "x_T"),
        ({"generators": child_generators([1, 2], "decoder")}, "generators"),
        ({"eta": 1.5}, "eta"),
        ({"eta": 0.5, "scheduler": make_scheduler("ddpm", "cosine", "eps")}, "DDIMScheduler"),
        ({"learned_variance": True}, "predict returned"),
        ({"predict": rough_network_with_variance}, "predict returned"),
        ({"scheduler": make_scheduler("ddpm", "cosine", "eps", True)}, "learned_variance"),
        ({"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}, "betas"),
        ({"steps": 0}, "steps"),
        ({"on_step": lambda step, t, x_t: x_t[:1]}, "on_step"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {
        "predict": rough_network,
        "x_T": torch.zeros(3, 8),
        "scheduler": make_scheduler("ddim", "cosine", "eps"),
        "steps": 3,
        "generators": child_generators([1, 2, 3], "decoder"),
    }
    with pytest.raises(ValueError, match=message):
        denoise(**{**arguments, **change})
