"""Operations on latents: inversion and back, ways between subjects, text diffs, mixtures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from unclip import PrincipalComponents
from unclip.pipeline import stages
from unclip.pipeline.arguments import check_pictures
from unclip.pipeline.directions import text_difference

SMALL = {"size": 64, "output_type": "pt"}
STEPS = 6


@pytest.fixture(scope="module")
def smooth(make_pipe):
    """A tiny pipeline whose decoder is smooth, as a trained one is, and sampled by DDIM."""
    pipe = make_pipe(
        decoder_config={"stem": 8, "prediction": "v", "learned_variance": False},
        default_steps={"prior": 2, "decoder": STEPS},
        default_guidance=1.0,
    )
    with torch.no_grad():
        pipe.decoder.unet.conv_out.weight.mul_(0.3)
    pipe.use_sampler("decoder", "ddim")
    pipe.decoder_scheduler.register_to_config(clip_sample=False)
    return pipe


def picture(seed, side=64):
    """Soft blobs of colour, a Pillow image."""
    generator = torch.Generator().manual_seed(seed)
    blobs = F.interpolate(torch.rand(1, 3, 4, 4, generator=generator), (side, side), mode="bicubic")
    levels = (blobs[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def tensor(image):
    """A Pillow image as [1, 3, S, S] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def angle(a, b):
    return F.cosine_similarity(a.double(), b.double(), dim=-1).clamp(-1, 1).acos()


def close(a, b, atol=2e-3):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


RED, BLUE, GREY = picture(1), picture(2), picture(3)


# Inversion and back


@pytest.mark.parametrize("prompt", ["", "a red apple"])
def test_a_picture_comes_back_from_its_latents(smooth, prompt):
    latents = smooth.invert([RED, BLUE], prompt=prompt, num_refinements=6)
    assert latents.x_T.shape == (2, 3, 64, 64)
    assert torch.equal(latents.z_img, smooth.encode_images(check_pictures([RED, BLUE])))
    again = smooth.decode(*latents, prompt=prompt, seeds=1, **SMALL)
    close(again.images, torch.cat([tensor(RED), tensor(BLUE)]), atol=1e-4)
    other = smooth.decode(*latents, prompt=prompt or "a red apple", seeds=1, **SMALL)
    assert torch.equal(other.images, again.images) == bool(prompt)


def test_refinements_and_steps_bring_the_picture_nearer(smooth):
    def error(**settings):
        found = smooth.reconstruct(RED, seeds=0, **SMALL, **settings).images
        return float((found - tensor(RED)).abs().mean())

    errors = [error(num_refinements=number) for number in (0, 1, 3)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert error(num_refinements=0, decoder_num_inference_steps=24) < errors[0] / 2


def test_guidance_is_inverted_too(smooth):
    settings = {"guidance_scale": 2.0, "prompt": "a pear", "negative_prompt": "a plum"}
    settings |= {"guidance_interval": (100, 900), "guidance_rescale": 0.5}
    settings |= {"image_guidance_scale": 0.0}
    again = smooth.reconstruct(RED, num_refinements=8, seeds=0, **settings, **SMALL)
    close(again.images, tensor(RED), atol=1e-3)
    assert again.settings["guidance"] == {"decoder": 2.0}
    assert again.settings["guidance_interval"] == {"decoder": (100, 900)}
    assert again.settings["image_guidance_scale"] == {"decoder": 0.0}
    everywhere = smooth.decode(again.image_embeds, again.x_T, seeds=0, **settings, **SMALL)
    assert torch.equal(everywhere.images, again.images)
    settings["guidance_interval"] = None
    everywhere = smooth.decode(again.image_embeds, again.x_T, seeds=0, **settings, **SMALL)
    assert not torch.equal(everywhere.images, again.images)


def test_a_large_picture_is_inverted_at_the_decoders_size(smooth):
    latents = smooth.invert(picture(1, side=200))
    assert latents.x_T.shape == (1, 3, 64, 64)
    expected = smooth.encode_images(check_pictures(picture(1, side=200)))
    assert torch.equal(latents.z_img, expected)


def test_the_output_holds_what_it_takes_to_draw_it_again(pipe):
    first = pipe.vary(RED, num_images=2, eta=0.7, seeds=5, size=128, output_type="pt")
    assert first.seeds == [5, 6] and list(first.low_res) == [64]
    again = pipe.decode(
        first.image_embeds, first.x_T, eta=0.7, seeds=first.seeds, size=128, output_type="pt"
    )
    assert torch.equal(first.images, again.images) and first.settings == again.settings
    assert first.settings["sampler"] == {"decoder": "ddim", "upsampler_256": "ddim"}
    assert first.settings["clip_x_0"] is False and first.settings["eta"] == 0.7


def test_pictures_are_inverted_and_imagined_a_few_at_a_time(smooth):
    """max_batch_size bounds the prior and the inversion as well as what is drawn of them."""
    batches = {"decoder": [], "prior": []}
    hooks = [
        smooth.components[stage].register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(len(inputs[0]))
        )
        for stage, seen in batches.items()
    ]
    few = smooth.invert([RED, BLUE, GREY], num_refinements=0, max_batch_size=2)
    assert batches["decoder"] == [2] * STEPS + [1] * STEPS
    settings = {"num_images": 3, "num_prior_candidates": 1, "seeds": 3, **SMALL}
    imagined = smooth.ablate("a pear", max_batch_size=2, **settings)
    assert batches["prior"] == [2, 2, 1, 1]
    for hook in hooks:
        hook.remove()
    every = smooth.invert([RED, BLUE, GREY], num_refinements=0)
    close(few.x_T, every.x_T, atol=1e-4)
    close(imagined.image_embeds, smooth.ablate("a pear", **settings).image_embeds, atol=1e-5)


# Variations


def test_eta_leads_away_from_the_picture(smooth):
    drawn = [smooth.vary(RED, eta=eta, seeds=3, **SMALL).images for eta in (0.0, 0.3, 1.0)]
    assert torch.equal(drawn[0], smooth.reconstruct(RED, seeds=9, **SMALL).images)
    distances = [float((x - tensor(RED)).square().mean()) for x in drawn]
    assert distances[0] < distances[1] / 10 and distances[1] < distances[2]


def test_variations_of_several_pictures_at_once(smooth):
    drawn = smooth.vary([RED, BLUE], num_images=2, eta=0.5, seeds=3, **SMALL)
    assert drawn.images.shape == (4, 3, 64, 64) and drawn.seeds == [3, 4, 5, 6]
    assert not torch.equal(drawn.images[0], drawn.images[1])
    alone = smooth.vary(BLUE, eta=0.5, seeds=6, **SMALL)
    close(alone.images[0], drawn.images[3])
    one_by_one = smooth.vary([RED, BLUE], 2, eta=0.5, seeds=3, max_batch_size=1, **SMALL)
    close(one_by_one.images, drawn.images)


def test_variations_from_fresh_noise_are_those_of_a_call(smooth):
    varied = smooth.vary(RED, num_images=2, eta=None, seeds=3, clip_x_0=False, **SMALL)
    called = smooth(image=RED, num_images_per_prompt=2, seeds=3, **SMALL)
    assert torch.equal(varied.images, called.images)
    assert torch.equal(varied.image_embeds, called.image_embeds)


def test_one_embedding_is_decoded_many_times(smooth):
    z_img = smooth.encode_images(check_pictures(RED))
    many = smooth.decode(z_img, num_images=3, seeds=[8, 1, 4], **SMALL)
    assert torch.equal(many.image_embeds, z_img.expand(3, -1))
    close(many.images[1:2], smooth.decode(z_img, seeds=1, **SMALL).images)
    x_T = many.x_T[2]
    same = smooth.decode(z_img, x_T, num_images=2, seeds=0, clip_x_0=True, **SMALL)
    assert torch.equal(same.images[0], same.images[1])
    close(same.images[:1], many.images[2:])


def test_the_frames_of_a_way_are_drawn_a_few_at_a_time(make_pipe, monkeypatch):
    """What a way needs of memory does not grow with its frames, as in a call of the pipeline."""
    pipe, batches = make_pipe(), {"decoder": [], "upsampler_256": []}
    for stage, seen in batches.items():
        pipe.components[stage].register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(len(inputs[0]))
        )
    monkeypatch.setattr(stages, "PIXELS_AT_ONCE_ON_CPU", 3 * 256**2)
    few = {f"{stage}_num_inference_steps": 1 for stage in batches}
    settings = {"size": 256, "seeds": 1, "output_type": "pt", "guidance_scale": 1.0, **few}
    z_img = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    drawn = pipe.decode(z_img, **settings)
    assert batches == {"decoder": [5], "upsampler_256": [3, 2]}
    assert {side: len(x) for side, x in drawn.low_res.items()} == {64: 5}
    every = pipe.decode(z_img, max_batch_size=5, **settings)
    assert batches["upsampler_256"][2:] == [5]
    close(every.images, drawn.images, atol=1e-4)


# Ways between subjects


def test_the_ends_of_a_way_are_reconstructions(smooth):
    way = smooth.interpolate([RED, BLUE], num_frames=3, seeds=4, **SMALL)
    ends = [smooth.reconstruct(image, seeds=4, **SMALL).images for image in (RED, BLUE)]
    close(way.images[:1], ends[0])
    close(way.images[2:], ends[1])
    assert (way.images[1] - way.images[0]).abs().mean() > 0.02
    assert (way.images[1] - way.images[2]).abs().mean() > 0.02


def test_z_img_goes_at_an_even_pace_through_every_subject(smooth):
    way = smooth.interpolate(
        [RED, "a pear", BLUE], num_frames=4, num_refinements=0, seeds=4, **SMALL
    )
    z_img, seeds = way.image_embeds, way.seeds
    assert len(z_img) == 7 and seeds == [4] * 7
    for start in (0, 3):
        whole = angle(z_img[start], z_img[start + 3])
        for step in range(3):
            close(angle(z_img[start + step], z_img[start + step + 1]), whole / 3, atol=1e-4)
    z_pear = smooth("a pear", seeds=5, **SMALL).image_embeds
    close(z_img[3:4], z_pear, atol=1e-5)
    close(way.images[3:4], smooth(image_embeds=z_pear, seeds=5, **SMALL).images)


def test_fixed_noise_stays_and_needs_no_inversion(smooth, monkeypatch):
    monkeypatch.setattr("unclip.pipeline.latent_drawing.ddim_invert", None)
    way = smooth.interpolate([RED, BLUE], num_frames=3, noise="fixed", seeds=4, **SMALL)
    assert torch.equal(way.x_T, way.x_T[:1].expand(3, -1, -1, -1))
    fresh = smooth.vary(BLUE, eta=None, seeds=4, **SMALL)
    assert torch.equal(way.x_T[:1], fresh.x_T)
    close(way.images[2:], fresh.images)


# Text diffs


@pytest.mark.parametrize("base", ["a red apple", None])
def test_a_text_diff_turns_z_img_and_nothing_else(smooth, base):
    settings = {"num_frames": 4, "max_theta": 0.3, "seeds": 2, **SMALL}
    diff = smooth.text_diff(RED, "a green apple", base=base, **settings)
    close(diff.images[:1], smooth.reconstruct(RED, seeds=2, **SMALL).images)
    assert torch.equal(diff.x_T, diff.x_T[:1].expand(4, -1, -1, -1))
    z_txt = smooth.encode(["a green apple", *([] if base is None else [base])]).z_txt
    z_d = z_txt[0] - z_txt[1] if base else z_txt[0]
    z_img = diff.image_embeds
    whole = angle(z_img[0], z_d)
    for frame in range(4):
        close(z_img[frame].norm(), torch.tensor(1.0), atol=1e-5)
        close(angle(z_img[0], z_img[frame]), 0.1 * frame * whole, atol=1e-4)
        close(angle(z_img[frame], z_d), (1 - 0.1 * frame) * whole, atol=1e-4)


def test_a_text_diff_of_a_caption_begins_with_its_picture(smooth):
    settings = {"clip_x_0": False, "seeds": 3, **SMALL}
    diff = smooth.text_diff("a red apple", "a green apple", "a red apple", 2, **settings)
    z_img = smooth("a red apple", seeds=3, **SMALL).image_embeds
    close(diff.images[:1], smooth(image_embeds=z_img, seeds=3, **SMALL).images)
    assert (diff.images[1] - diff.images[0]).abs().max() > 1e-3


def test_the_difference_of_texts_is_of_length_one_and_has_a_direction():
    texts = torch.randn(2, 8) * 3
    expected = F.normalize(F.normalize(texts[:1], dim=1) - F.normalize(texts[1:], dim=1), dim=1)
    close(text_difference(texts), expected, atol=1e-6)
    with pytest.raises(ValueError, match="^base: .*same text"):
        text_difference(texts[:1].expand(2, -1))


# Mixtures and projections


def test_mixtures_are_weighted_sums_at_the_length_of_an_embedding(smooth):
    def mixed(subjects, weights=None):
        output = smooth.mix(subjects, weights, seeds=5, decoder_num_inference_steps=1, **SMALL)
        return output.image_embeds[0]

    z = smooth.encode_images(check_pictures([RED, BLUE]))
    caption = smooth("a pear", seeds=5, **SMALL).image_embeds[0]
    close(mixed([RED]), z[0], atol=1e-5)
    close(mixed(["a pear", RED], [1, 0]), caption, atol=1e-5)
    close(mixed([RED, BLUE]), F.normalize(z[0] + z[1], dim=0), atol=1e-5)
    close(mixed([RED, BLUE], [6, 2]), F.normalize(3 * z[0] + z[1], dim=0), atol=1e-5)
    close(mixed([RED, BLUE], [1, -0.5]), F.normalize(z[0] - z[1] / 2, dim=0), atol=1e-5)
    with pytest.raises(ValueError, match="^weights: .*cancel"):
        mixed([RED, RED], [1, -1])


def test_several_pictures_of_a_mixture_differ_in_noise_alone(smooth):
    several = smooth.mix([RED, "a pear"], [2, 1], num_images=2, seeds=5, **SMALL)
    assert several.seeds == [5, 6] and torch.equal(*several.image_embeds)
    again = smooth.decode(several.image_embeds[1:], seeds=6, **SMALL)
    close(several.images[1:], again.images)


def test_projections_share_their_noise(smooth):
    sample = F.normalize(torch.randn(20, 32), dim=1)
    components = PrincipalComponents.fit(sample)
    drawn = smooth.project(RED, components, [0, 3, 19], seeds=1, **SMALL)
    assert torch.equal(drawn.x_T, drawn.x_T[:1].expand(3, -1, -1, -1))
    z_img = smooth.encode_images(check_pictures(RED))
    for row, count in enumerate((0, 3, 19)):
        close(drawn.image_embeds[row], components.project(z_img, count)[0], atol=1e-6)
    assert smooth.project("a pear", components, 2, seeds=1, **SMALL).images.shape[0] == 1
    with pytest.raises(ValueError, match="^num_components: .*0 to 19"):
        smooth.project(RED, components, 20)
    for wrong in ([], None, "3"):
        with pytest.raises(ValueError, match="^num_components: give a"):
            smooth.project(RED, components, wrong)


def test_components_of_embeddings_on_a_plane():
    plane = torch.linalg.qr(torch.randn(6, 2)).Q.T
    z_img = torch.randn(40, 2) * torch.tensor([5.0, 1.0]) @ plane + 3
    components = PrincipalComponents.fit(z_img)
    assert components.num_components == 6
    assert components.explained(2) > 0.999999 and 0.8 < components.explained(1) < 1
    close(components.project(z_img, 2), z_img, atol=1e-4)
    close(components.project(z_img, 0), z_img.mean(0).expand(40, -1), atol=1e-5)
    identity = components.directions @ components.directions.T
    close(identity, torch.eye(6), atol=1e-5)
    assert PrincipalComponents.fit(z_img[:3]).num_components == 2


def test_components_are_kept_in_a_file(tmp_path):
    components = PrincipalComponents.fit(torch.randn(10, 4))
    components.save(tmp_path / "c.safetensors")
    again = PrincipalComponents.load(tmp_path / "c.safetensors")
    z_img = torch.randn(2, 4)
    torch.testing.assert_close(again.project(z_img, 3), components.project(z_img, 3))
    (tmp_path / "bad.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match="^path: .*no principal components"):
        PrincipalComponents.load(tmp_path / "bad.safetensors")
    with pytest.raises(FileNotFoundError, match="^path: "):
        PrincipalComponents.load(tmp_path / "none.safetensors")
    for bad in (torch.randn(1, 4), torch.randn(4), torch.full((3, 4), torch.nan)):
        with pytest.raises(ValueError, match="^z_img: "):
            PrincipalComponents.fit(bad)
    for count in (-1, 5, 1.0, True):
        with pytest.raises(ValueError, match="^num_components: "):
            components.project(z_img, count)


# Ablations and CLIP guidance


def test_ablations_replace_the_embedding(smooth):
    settings = {"seeds": 3, **SMALL}
    prior = smooth.ablate("a pear", "prior", clip_x_0=False, **settings)
    close(prior.images, smooth("a pear", **settings).images, atol=1e-5)
    own = smooth.ablate("a pear", "z_txt", clip_x_0=False, **settings)
    z_txt = smooth.encode(["a pear"]).z_txt
    called = smooth("a pear", image_embeds=z_txt, **settings)
    close(own.images, called.images, atol=1e-5)
    caption = smooth.ablate("a pear", "caption", num_images=2, **settings)
    assert torch.equal(caption.image_embeds, smooth.decoder.null_z_img(2))
    assert caption.seeds == [3, 4]
    three = [output.images[0] for output in (prior, own, caption)]
    assert all(not torch.equal(a, b) for a, b in zip(three, three[1:] + three[:1], strict=True))


def test_clip_guidance_raises_clips_score(smooth, own_pipe):
    for pipe in (smooth, own_pipe):  # v or eps, without or with a learned variance
        z_txt = pipe.encode(["a pear"]).z_txt

        def score(scale, pipe=pipe, z_txt=z_txt):
            settings = {"clip_guidance_scale": scale, "guidance_scale": 1.0, "seeds": 3, **SMALL}
            drawn = pipe.ablate("a pear", "caption", **settings).images
            return float((pipe.encode_images([drawn * 2 - 1]) * z_txt).sum())

        scores = [score(scale) for scale in (0.0, 3.0, 30.0)]
        assert scores[0] < scores[1] < scores[2]


def test_clip_guidance_leads_towards_a_text_of_its_own(smooth):
    settings = {"clip_guidance_scale": 20.0, "clip_prompt": "a pear", "seeds": 3, **SMALL}
    led, free = smooth.mix([RED], **settings), smooth.mix([RED], seeds=3, **SMALL)
    z_txt = smooth.encode(["a pear"]).z_txt
    scores = [(smooth.encode_images([x.images * 2 - 1]) * z_txt).sum() for x in (led, free)]
    assert scores[0] > scores[1] and led.settings["clip_guidance"] == 20


# Faults


FAULTS = {
    "prompt": lambda pipe: pipe.reconstruct(RED, prompt=["a", "b"]),
    "image": lambda pipe: pipe.invert("apple.png"),
    "eta": lambda pipe: pipe.vary(RED, eta=1.5),
    "guidance_scale": lambda pipe: pipe.invert(RED, guidance_scale=-1),
    "image_guidance_scale": lambda pipe: pipe.invert(RED, image_guidance_scale=-1),
    "guidance_rescale": lambda pipe: pipe.invert(RED, guidance_rescale=2),
    "guidance_interval": lambda pipe: pipe.invert(RED, guidance_interval=(9, 3)),
    "num_refinements": lambda pipe: pipe.invert(RED, num_refinements=-1),
    "decoder_num_inference_steps": lambda pipe: pipe.invert(RED, decoder_num_inference_steps=0),
    "num_images": lambda pipe: pipe.vary(RED, num_images=0),
    "seeds": lambda pipe: pipe.vary(RED, num_images=2, seeds=[1]),
    "subjects": lambda pipe: pipe.interpolate([RED]),
    "num_frames": lambda pipe: pipe.interpolate([RED, BLUE], num_frames=1),
    "noise": lambda pipe: pipe.interpolate([RED, BLUE], noise="fresh"),
    "target": lambda pipe: pipe.text_diff(RED, None),
    "base": lambda pipe: pipe.text_diff(RED, "a pear", base="a pear", num_refinements=0),
    "max_theta": lambda pipe: pipe.text_diff(RED, "a pear", max_theta=2),
    "weights": lambda pipe: pipe.mix([RED, BLUE], [1]),
    "condition": lambda pipe: pipe.ablate("a pear", "posterior"),
    "clip_prompt": lambda pipe: pipe.vary(RED, clip_guidance_scale=1.0),
    "clip_guidance_scale": lambda pipe: pipe.ablate("a pear", clip_guidance_scale=np.nan),
    "x_T": lambda pipe: pipe.decode(torch.ones(32), torch.ones(3, 32, 32)),
    "image_embeds": lambda pipe: pipe.decode(torch.ones(31)),
    "output_type": lambda pipe: pipe.decode(torch.ones(32), output_type="jpg"),
    "max_batch_size": lambda pipe: pipe.decode(torch.ones(32), max_batch_size=0),
    "size": lambda pipe: pipe.decode(torch.ones(32), size=100),
}


@pytest.mark.parametrize("argument", FAULTS)
def test_faults_begin_with_the_argument(pipe, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        FAULTS[argument](pipe)


def test_settings_that_do_not_exist_are_refused(pipe):
    with pytest.raises(TypeError, match="num_stepps"):
        pipe.vary(RED, num_stepps=3)


def test_a_model_without_a_prior_has_no_captions(make_pipe):
    pipe = make_pipe(prior=None)
    with pytest.raises(ValueError, match="no prior"):
        pipe.mix(["a pear"])
    assert pipe.mix([RED], seeds=1, size=64).images[0].size == (64, 64)
