"""Bad arguments are refused by name before any network runs; good ones are spread as documented."""

import re

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from unclip.pipeline import arguments
from unclip.pipeline.arguments import image_seeds
from unclip.pipeline.order import check_order

NAN, INF = float("nan"), float("inf")
WHITE = Image.new("RGB", (8, 8), "white")

BAD = [
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": 3}),
    ("prompt", {"prompt": ["a", 3]}),
    ("prompt", {"prompt": "half a character: \ud800"}),
    ("prompt", {"prompt": ["a", "b"], "image_embeds": torch.ones(3, 32)}),
    ("negative_prompt", {"negative_prompt": ["a", "b"]}),
    ("negative_prompt", {"negative_prompt": 0}),
    ("guidance_scale", {"guidance_scale": NAN}),
    ("guidance_scale", {"guidance_scale": INF}),
    ("guidance_scale", {"guidance_scale": -1}),
    ("guidance_scale", {"guidance_scale": 1e9}),
    ("guidance_scale", {"guidance_scale": "3"}),
    ("guidance_scale", {"guidance_scale": True}),
    ("prior_guidance_scale", {"prior_guidance_scale": NAN}),
    ("num_images_per_prompt", {"num_images_per_prompt": 0}),
    ("num_images_per_prompt", {"num_images_per_prompt": 1.5}),
    ("size", {"size": 0}),
    ("size", {"size": 300}),
    ("size", {"size": "64"}),
    ("size", {"size": 64.0}),
    ("prior_num_inference_steps", {"prior_num_inference_steps": 0}),
    ("decoder_num_inference_steps", {"decoder_num_inference_steps": -3}),
    ("decoder_num_inference_steps", {"decoder_num_inference_steps": 1001}),
    ("decoder_num_inference_steps", {"decoder_num_inference_steps": 2.5}),
    ("decoder_num_inference_steps", {"decoder_num_inference_steps": "fast28"}),
    ("decoder_num_inference_steps", {"decoder_num_inference_steps": [1, 2]}),
    ("upsampler_1024_num_inference_steps", {"upsampler_1024_num_inference_steps": 0}),
    ("num_prior_candidates", {"num_prior_candidates": 0}),
    ("num_prior_candidates", {"num_prior_candidates": 10**9}),
    ("image", {"image": "cat.png"}),
    ("image", {"image": []}),
    ("image", {"image": torch.full((3, 8, 8), -0.5)}),
    ("image", {"image": torch.full((3, 8, 8), NAN)}),
    ("image", {"image": torch.zeros(1, 8, 8)}),
    ("image", {"image": WHITE, "image_embeds": torch.ones(1, 32)}),
    ("image_embeds", {"image_embeds": torch.ones(1, 31)}),
    ("image_embeds", {"image_embeds": torch.full((1, 32), NAN)}),
    ("image_embeds", {"image_embeds": np.ones((1, 32))}),
    ("generator", {"generator": 7}),
    ("generator", {"generator": [torch.Generator()] * 2}),
    ("generator", {"prompt": ["a", "b"], "generator": [torch.Generator()]}),
    ("seeds", {"seeds": 1, "generator": torch.Generator()}),
    ("seeds", {"seeds": [1, 2]}),
    ("seeds", {"seeds": -1}),
    ("seeds", {"seeds": 1.0}),
    ("seeds", {"seeds": 2**63}),
    ("output_type", {"output_type": "bogus"}),
    ("best_of", {"best_of": 0}),
    ("best_of", {"best_of": 2, "num_images_per_prompt": 3}),
    ("max_batch_size", {"max_batch_size": 0}),
    ("text_embeds", {"prompt": None, "text_embeds": torch.ones(1, 32)}),
    ("stages", {"stages": {"priors": {}}}),
    ("stages", {"stages": 3}),
    ("interrupt", {"interrupt": True}),
    ("callback_on_step_end_tensor_inputs", {"callback_on_step_end_tensor_inputs": ["x"]}),
    ("callback_on_step_end", {"callback_on_step_end": 3}),
]


BAD_STAGES = [
    ("decoder", "scheduler", "eulr"),
    ("decoder", "scheduler", "analytic"),
    ("prior", "scheduler", "analytic"),  # without its statistics
    ("decoder", "scheduler", diffusers.LCMScheduler()),
    ("decoder", "scheduler", diffusers.DDIMScheduler(num_train_timesteps=10)),
    ("decoder", "scheduler", diffusers.DDIMScheduler()),  # of linear betas
    ("decoder", "scheduler", 3),
    ("decoder", "steps", 0),
    ("prior", "guidance_scale", NAN),
    ("upsampler_256", "guidance_scale", 3),
    ("decoder", "image_guidance_scale", -1),
    ("prior", "image_guidance_scale", 2),
    ("decoder", "guidance_interval", (5, 1)),
    ("decoder", "guidance_interval", 5),
    ("decoder", "guidance_rescale", 1.5),
    ("upsampler_256", "guidance_rescale", 0.5),
    ("decoder", "dynamic_threshold", 0.1),
    ("prior", "dynamic_threshold", 0.9),
    ("decoder", "reuse", 0),
    ("decoder", "reuse", 2.0),
    ("prior", "reuse", 2),
    ("decoder", "latents", torch.ones(1, 3, 8, 8)),
    ("decoder", "latents", torch.full((1, 3, 64, 64), NAN)),
    ("prior", "negative_prompt", 3),
]
BAD += [(f"stages['{s}'].{name}", {"stages": {s: {name: value}}}) for s, name, value in BAD_STAGES]


@pytest.mark.parametrize(("argument", "given"), BAD)
def test_bad_arguments_are_named_before_anything_runs(pipe, monkeypatch, argument, given):
    def run(*_):
        raise AssertionError("a network ran")

    monkeypatch.setattr(type(pipe), "_conditions", run)
    with pytest.raises(ValueError, match=f"^{re.escape(argument)}: ") as error:
        pipe(**{"prompt": "a red apple", **given})
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_sizes_that_a_smaller_model_lacks(make_pipe):
    small = make_pipe(upsampler_1024=None)
    for size in (512, 1024):
        with pytest.raises(ValueError, match="size: this model draws 64, 128, 256 pixels"):
            small("a", size=size)


def test_seeds():
    assert image_seeds(None, 7, 3) == [7, 8, 9]
    assert image_seeds(None, (5, 1), 2) == [5, 1]
    drawn = image_seeds(None, None, 2)
    assert len(set(drawn)) == 2 and all(0 <= seed < 2**63 for seed in drawn)


def test_one_value_serves_all_subjects(pipe):
    given = {"prompt": ["a", "b"], "negative_prompt": "c", "num_images_per_prompt": 2}

    def check(**given):
        return check_order(pipe.components, pipe.config, {**defaults(pipe), **given})

    order = check(**given, seeds=4)
    assert order.captions == ["a", "b"]
    assert order.negatives == {"prior": ["c", "c"], "decoder": ["c", "c"]}
    assert order.seeds == [4, 5, 6, 7] and order.subjects == [0, 0, 1, 1]
    order = check(prompt="a", image_embeds=torch.ones(3, 32))
    assert order.captions == ["a"] * 3 and order.embeddings.shape == (3, 32)
    order = check(image=WHITE, prompt=["a", "b"])
    assert len(order.pictures) == 2 and order.pictures[0].shape == (1, 3, 8, 8)


def defaults(pipe):
    """The default arguments of a call."""
    import inspect

    parameters = inspect.signature(type(pipe).__call__).parameters
    return {name: p.default for name, p in parameters.items() if name != "self"}


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("default_steps", {"default_steps": {"priors": 3}}),
        ("default_steps", {"default_steps": {"prior": 0}}),
        ("default_guidance", {"default_guidance": {"decoder": NAN}}),
        ("default_guidance", {"default_guidance": {"upsampler_256": 3}}),
        ("default_guidance_interval", {"default_guidance_interval": (900, 0)}),
        ("default_guidance_interval", {"default_guidance_interval": 900}),
        ("default_candidates", {"default_candidates": 0}),
        ("dtype", {"dtype": torch.int8}),
        ("dtype", {"dtype": "fast"}),
        ("sampler", {"samplers": {"decoder": "eulr"}}),
        ("samplers: .*did you mean decoder", {"samplers": {"decodr": "ddim"}}),
        ("samplers: give names by stage", {"samplers": "ddim"}),
        ("upsampler_1024", {"upsampler_256": None}),
    ],
)
def test_parts_that_make_no_pipeline(make_pipe, argument, changed):
    with pytest.raises(ValueError, match=f"^{argument}"):
        make_pipe(**changed)


def test_networks_that_do_not_fit(make_pipe, pipe):
    from unclip import Decoder, Prior, Upsampler

    small = {"num_layers": 1, "num_heads": 1, "head_dim": 8}
    with pytest.raises(ValueError, match="prior: its embedding_dim is 16, but clip's is 32"):
        make_pipe(prior=Prior(16, 16, **small))
    with pytest.raises(ValueError, match="prior: its context is 9"):
        make_pipe(prior=Prior(32, 9, **small))
    upsampler = Upsampler(128, channels=(8,), num_blocks=1, norm_groups=8)
    with pytest.raises(ValueError, match="upsampler_256: it draws 128 pixels"):
        make_pipe(upsampler_256=upsampler)
    narrow = {"channels": (32,), "num_blocks": 1, "attention_levels": (False,), "stem": 4}
    decoder = Decoder(32, 16, text_states_dim=48, head_dim=16, context_dim=32, **narrow)
    with pytest.raises(ValueError, match="decoder: its width of text states is 48"):
        make_pipe(decoder=decoder)


def test_a_scheduler_for_another_prediction_is_refused(own_pipe):
    own_pipe.decoder_scheduler = own_pipe.prior_scheduler
    with pytest.raises(ValueError, match="^decoder_scheduler: its prediction_type is 'sample'"):
        own_pipe("a")


@pytest.mark.parametrize(
    ("stage", "asked", "words"),
    [
        (
            "decoder",
            {},
            "noise schedule is not the 'cosine' one .* make it by DDPMScheduler.from_c",
        ),
        ("decoder", {"trained_betas": [0.1] * 7}, "noise schedule is not the 'cosine' one"),
        ("upsampler_1024", {"beta_schedule": "squaredcos_cap_v2"}, "noise .* the 'linear' one"),
        ("upsampler_1024", {"variance_type": "learned_range"}, "variance_type 'learned_range' nee"),
    ],
)
def test_a_scheduler_of_another_noise_or_variance_is_refused(own_pipe, stage, asked, words):
    prediction = "epsilon" if stage == "decoder" else "sample"
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, **asked)
    with pytest.raises(ValueError, match=f"^sampler: its {words}"):
        own_pipe.use_sampler(stage, scheduler)
    parts = {**own_pipe.components, f"{stage}_scheduler": scheduler}
    with pytest.raises(ValueError, match=f"^{stage}_scheduler: its {words}"):
        type(own_pipe)(**parts)


@pytest.mark.parametrize("stage", ["decoder", "upsampler_1024"])
def test_a_scheduler_may_be_rescaled_to_end_without_signal(own_pipe, stage):
    own = own_pipe.components[f"{stage}_scheduler"]
    scheduler = diffusers.DDIMScheduler.from_config(own.config, rescale_betas_zero_snr=True)
    own_pipe.use_sampler(stage, scheduler)
    assert own_pipe.components[f"{stage}_scheduler"] is scheduler


def test_what_was_given_is_told_briefly():
    assert arguments.short("x" * 999) == "'" + "x" * 56 + "..."
    assert arguments.short(torch.zeros(2, 3)) == "a tensor [2, 3] of torch.float32"
