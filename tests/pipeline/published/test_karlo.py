"""Karlo in diffusers' layout: every stage agrees with diffusers' own pipelines."""

import diffusers.schedulers.scheduling_unclip as scheduling
import pytest
import torch
from PIL import Image

from unclip import UnCLIPPipeline
from unclip.diffusion.noise import child_generators, randn_per_sample

STAGES = {"prior": (32,), "decoder": (3, 8, 8), "upsampler_256": (3, 32, 32)}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def ours(karlo):
    return read(karlo.text_folder)


@pytest.fixture(scope="module")
def ours_of_pictures(karlo):
    return read(karlo.variations_folder)


def read(folder):
    """Our pipeline, its weights laid out in memory as the library's, so that sums round alike."""
    pipe = UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for network in (pipe.decoder, pipe.upsampler_256):
        network.to(memory_format=torch.contiguous_format)
    return pipe


@pytest.fixture
def same_noise(monkeypatch):
    """Make the noise of all steps repeat itself: call it before each of two pipelines."""
    generator = torch.Generator()

    def noise(shape, dtype=None, **_):
        return torch.randn(shape, generator=generator).to(dtype)

    monkeypatch.setattr(scheduling, "randn_tensor", noise)
    return lambda: generator.manual_seed(5)


def recorded(pipeline, monkeypatch):
    """What the stages of a diffusers pipeline end with: z_img and the small picture."""
    seen = {}
    project, step = pipeline.text_proj.forward, pipeline.decoder_scheduler.step

    def text_proj(**given):
        seen["z_img"] = given["image_embeddings"]
        return project(**given)

    def decoder_step(*args, **kwargs):
        output = step(*args, **kwargs)
        seen["small"] = output.prev_sample.clamp(-1, 1)
        return output

    monkeypatch.setattr(pipeline.text_proj, "forward", text_proj)
    monkeypatch.setattr(pipeline.decoder_scheduler, "step", decoder_step)
    return seen


def noise_of(stage, seeds):
    return randn_per_sample(STAGES[stage], child_generators(seeds, stage))


def furthest(a, b):
    return (torch.as_tensor(a).float() - torch.as_tensor(b).float()).abs().max().item()


@pytest.mark.parametrize(
    ("prompts", "scales", "steps"),
    [
        (["a red apple"], (4.0, 8.0), (25, 4, 7)),
        (["a dog", "two cats and a very long caption that is cut"], (1.5, 3.0), (5, 6, 3)),
        (["", "!"], (1.0, 1.0), (2, 2, 2)),
        (["a dog"], (7.0, 1.0), (3, 3, 7)),
    ],
)
def test_text_to_image_agrees_stage_by_stage(
    karlo, ours, prompts, scales, steps, same_noise, monkeypatch
):
    seeds = [3 + number for number in range(len(prompts))]
    seen = recorded(karlo.text, monkeypatch)
    same_noise()
    reference = karlo.text(
        prompts,
        prior_num_inference_steps=steps[0],
        decoder_num_inference_steps=steps[1],
        super_res_num_inference_steps=steps[2],
        prior_latents=noise_of("prior", seeds),
        decoder_latents=noise_of("decoder", seeds),
        super_res_latents=noise_of("upsampler_256", seeds),
        prior_guidance_scale=scales[0],
        decoder_guidance_scale=scales[1],
        output_type="np",
    ).images
    same_noise()
    drawn = ours(
        prompts,
        prior_num_inference_steps=steps[0],
        decoder_num_inference_steps=steps[1],
        upsampler_256_num_inference_steps=steps[2],
        prior_guidance_scale=scales[0],
        guidance_scale=scales[1],
        num_prior_candidates=1,
        seeds=seeds,
        output_type="np",
    )
    assert furthest(seen["z_img"], drawn.image_embeds) < TOLERANCE
    small = (seen["small"] / 2 + 0.5).permute(0, 2, 3, 1)
    assert furthest(small, drawn.low_res[8]) < TOLERANCE
    assert furthest(reference, drawn.images) < TOLERANCE
    assert reference.std() > 0.05  # not a picture of nothing


def test_the_caption_shows(ours):
    """The comparison above would see a caption that is lost on the way."""
    settings = {"seeds": 0, "output_type": "pt", "num_prior_candidates": 1}
    settings |= {f"{stage}_num_inference_steps": 3 for stage in STAGES}
    one, other = (ours(prompt, **settings) for prompt in ("a red apple", "two dogs"))
    assert furthest(one.image_embeds, other.image_embeds) > 0.1
    assert furthest(one.low_res[8], other.low_res[8]) > 0.01


@pytest.mark.parametrize(("scale", "steps"), [(8.0, (5, 7)), (1.0, (3, 2)), (2.5, (2, 4))])
def test_variations_agree_stage_by_stage(
    karlo, ours_of_pictures, scale, steps, same_noise, monkeypatch
):
    pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    seen = recorded(karlo.variations, monkeypatch)
    same_noise()
    reference = karlo.variations(
        picture,
        decoder_num_inference_steps=steps[0],
        super_res_num_inference_steps=steps[1],
        decoder_latents=noise_of("decoder", [9]),
        super_res_latents=noise_of("upsampler_256", [9]),
        decoder_guidance_scale=scale,
        output_type="np",
    ).images
    same_noise()
    drawn = ours_of_pictures(
        image=picture,
        decoder_num_inference_steps=steps[0],
        upsampler_256_num_inference_steps=steps[1],
        guidance_scale=scale,
        seeds=9,
        output_type="np",
    )
    assert furthest(seen["z_img"], drawn.image_embeds) < TOLERANCE
    small = (seen["small"] / 2 + 0.5).permute(0, 2, 3, 1)
    assert furthest(small, drawn.low_res[8]) < TOLERANCE
    assert furthest(reference, drawn.images) < TOLERANCE


def test_the_published_defaults(ours, ours_of_pictures):
    assert ours.config.default_steps["upsampler_256"] == 7
    assert ours.config.default_guidance == {"prior": 4.0, "decoder": 8.0}
    assert not ours.config.normalize and ours_of_pictures.prior is None
    assert ours.upsampler_256.config.separate_last_step
    with pytest.raises(ValueError, match="image: .* captions only"):
        ours(image=Image.new("RGB", (16, 16)))
