"""Settings of single stages, best of n, embeddings and noise handed over, samplers kept."""

import os

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from unclip import StageSettings, UnCLIPPipeline
from unclip.models.layers import ResidualBlock

CAPTION = "a red apple"


def draw(pipe, prompt=CAPTION, **arguments):
    """Pictures [B, 3, S, S] in [0, 1], of 64 pixels unless another size is asked for."""
    return pipe(prompt, output_type="pt", **{"size": 64, "seeds": 7, **arguments}).images


def test_outside_of_its_interval_guidance_costs_nothing(own_pipe):
    batches = []
    own_pipe.decoder.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    own_pipe.prior.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    interval = {"guidance_scale": 2.0, "guidance_interval": (400, 600)}
    x = draw(own_pipe, stages={"prior": interval, "decoder": interval})
    assert batches == [2, 4, 2, 1, 2, 1]  # of the steps at 999, 500 and 0
    unguided = {"guidance_scale": 2.0, "guidance_interval": (100, 200)}
    never = draw(own_pipe, stages={"prior": unguided, "decoder": unguided})
    assert torch.equal(never, draw(own_pipe, guidance_scale=1, prior_guidance_scale=1))
    assert not torch.equal(x, never)


def test_settings_as_a_dict_or_whole_and_before_others(pipe):
    chosen = StageSettings(steps=2, guidance_scale=3.0, scheduler="unipc", guidance_rescale=0.7)
    fields = {"steps": 2, "guidance_scale": 3.0, "scheduler": "unipc", "guidance_rescale": 0.7}
    whole = draw(pipe, stages={"decoder": chosen}, guidance_scale=1)
    assert torch.equal(whole, draw(pipe, stages={"decoder": fields}))
    noted = pipe(CAPTION, seeds=7, size=64, stages={"decoder": chosen}).settings
    assert noted["steps"]["decoder"] == 2 and noted["sampler"]["decoder"] == "unipc"
    assert noted["guidance_rescale"] == {"decoder": 0.7}
    assert pipe.sampler("decoder") == "ddpm"


def test_a_scheduler_may_be_an_object(pipe):
    like = pipe.decoder_scheduler.config
    scheduler = UniPCMultistepScheduler.from_config(like, timestep_spacing="trailing")
    x = draw(pipe, stages={"decoder": {"scheduler": scheduler}})
    named = draw(pipe, stages={"decoder": {"scheduler": "unipc"}})
    torch.testing.assert_close(x, named, atol=1e-3, rtol=0)


def test_each_guided_stage_has_its_own_negative(pipe):
    other = {"negative_prompt": "a dog"}
    scales = {"guidance_scale": 3.0, "prior_guidance_scale": 3.0}
    pictures = [
        draw(pipe, **scales),
        draw(pipe, **scales, stages={"prior": other}),
        draw(pipe, **scales, stages={"decoder": other}),
        draw(pipe, **scales, negative_prompt="a dog"),
    ]
    assert len({x.numpy().tobytes() for x in pictures}) == 4
    both = draw(pipe, **scales, stages={"prior": other, "decoder": other})
    assert torch.equal(both, pictures[3])


def test_the_best_of_many_are_those_of_highest_score(pipe):
    every = pipe([CAPTION, "a dog"], seeds=3, size=64, num_images_per_prompt=4, output_type="pt")
    best = pipe(
        [CAPTION, "a dog"],
        seeds=3,
        size=64,
        num_images_per_prompt=2,
        best_of=4,
        output_type="pt",
    )
    z_img = pipe.encode_images(list((every.images * 2 - 1).split(1)))
    scores = (z_img * every.text_embeds.z_txt).sum(dim=1).reshape(2, 4)
    expected = [
        3 + 4 * n + int(i) for n in range(2) for i in scores[n].argsort(descending=True)[:2]
    ]
    assert best.seeds == expected and len(best.images) == 4
    torch.testing.assert_close(best.scores, scores.sort(descending=True).values[:, :2].flatten())
    again = draw(pipe, "a dog", seeds=best.seeds[2])
    torch.testing.assert_close(best.images[2:3], again, atol=1e-3, rtol=0)


def test_without_words_the_best_are_nearest_to_what_leads(pipe):
    generator = torch.Generator().manual_seed(4)
    image, settings = torch.rand(2, 3, 64, 64, generator=generator), {"size": 64, "seeds": 3}
    settings |= {"num_images_per_prompt": 2, "best_of": 4, "output_type": "pt"}
    z_img = pipe.encode_images((image * 2 - 1).split(1))
    for leading in ({"image": image}, {"image_embeds": z_img}):
        best = pipe(**leading, **settings)
        found = pipe.encode_images((best.images * 2 - 1).split(1))
        nearness = torch.cosine_similarity(found, best.image_embeds)
        torch.testing.assert_close(best.scores, nearness)
    mixed = pipe(["", CAPTION], image=image, **settings)  # each by what it has
    found = pipe.encode_images((mixed.images * 2 - 1).split(1))
    wanted = torch.cat([z_img[:1], pipe.encode(CAPTION).z_txt]).repeat_interleave(2, dim=0)
    torch.testing.assert_close(mixed.scores, torch.cosine_similarity(found, wanted))


def test_only_the_kept_are_finished_by_later_stages(own_pipe):
    sizes = []
    own_pipe.upsampler_256.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    output = own_pipe(CAPTION, seeds=3, size=256, best_of=5)
    assert set(sizes) == {1} and len(output.images) == 1 and len(output.image_embeds) == 1


def test_embeddings_and_noise_may_be_handed_over(pipe):
    first = pipe(CAPTION, seeds=7, size=256, output_type="pt")
    text = pipe.encode([CAPTION])
    assert torch.equal(draw(pipe, None, text_embeds=text, size=256), first.images)
    latents = {
        stage: {"latents": pipe.initial_noise(stage, [7])}
        for stage in ("prior", "decoder", "upsampler_256")
    }
    assert torch.equal(draw(pipe, size=256, stages=latents), first.images)
    other = {"decoder": {"latents": pipe.initial_noise("decoder", [8])}}
    assert not torch.equal(draw(pipe, size=256, stages=other), first.images)


def test_statistics_of_analytic_sampling_are_kept_with_the_model(own_pipe, tmp_path):
    norms = own_pipe.measure_score_norms(("", CAPTION) * 4, num_timesteps=8)
    assert len(norms) == 8 and all(norm > 0 for norm in norms)
    x = draw(own_pipe, stages={"prior": {"scheduler": "analytic"}})
    own_pipe.use_sampler("prior", "analytic")
    own_pipe.use_sampler("decoder", "euler")
    own_pipe.save_pretrained(tmp_path / "model")
    loaded = UnCLIPPipeline.from_pretrained(tmp_path / "model")
    assert (loaded.sampler("prior"), loaded.sampler("decoder")) == ("analytic", "euler")
    assert torch.equal(draw(loaded, stages={"decoder": {"scheduler": "ddpm"}}), x)


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"captions": []}, "captions"),
        ({"captions": ["a", 3]}, "captions"),
        ({"num_timesteps": 1}, "num_timesteps"),
        ({"num_timesteps": 2.5}, "num_timesteps"),
        ({"captions": ["a"], "z_img": torch.zeros(2, 32)}, "z_img"),
    ],
)
def test_statistics_of_nothing_are_refused(pipe, given, argument):
    with pytest.raises(ValueError, match=f"^{argument}: give "):
        pipe.measure_score_norms(**given)


def test_a_text_alone_is_one_caption(pipe, own_pipe):
    assert torch.equal(pipe.encode(CAPTION).z_txt, pipe.encode([CAPTION]).z_txt)
    one, listed = (
        own_pipe.measure_score_norms(given, num_timesteps=2) for given in (CAPTION, [CAPTION])
    )
    assert one == listed
    for nothing in ([], None, [None]):
        with pytest.raises(ValueError, match="^captions: give "):
            pipe.encode(nothing)


def test_special_tokens_in_a_caption_are_text(pipe):
    plain, marked = pipe.encode(["a b", "a <|endoftext|> b"]).text_mask.sum(dim=1)
    assert marked > plain + 5
    assert not torch.equal(*pipe.encode(["<|endoftext|> b", "<|endoftext|> c"]).z_txt)


@pytest.mark.parametrize("wrong", [{"priors": {}}, {"decoder": {"step": 3}}])
def test_misspelt_settings_come_with_advice(pipe, wrong):
    with pytest.raises(ValueError, match="did you mean"):
        pipe(CAPTION, stages=wrong)


def test_layers_are_compiled_in_place(own_pipe, monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **settings: compiled.append(settings) or f)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    exact = draw(own_pipe)
    own_pipe.compile_networks(mode="reduce-overhead")
    layers = [
        module
        for stage in ("decoder", "upsampler_256", "upsampler_1024")
        for module in own_pipe.components[stage].modules()
        if isinstance(module, ResidualBlock)
    ]
    assert compiled == [{"dynamic": False, "mode": "reduce-overhead"}] * len(layers)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "unclip" / "compiled")
    assert torch.equal(draw(own_pipe), exact)


def test_a_decoder_may_keep_its_deep_levels(pipe):
    exact = draw(pipe)
    output = pipe(CAPTION, size=64, seeds=7, output_type="pt", stages={"decoder": {"reuse": 3}})
    assert output.settings["reuse"] == {"decoder": 3}
    assert not torch.equal(output.images, exact)
    assert (output.images - exact).abs().mean() < 0.2
    assert torch.equal(draw(pipe, stages={"decoder": {"reuse": 1}}), exact)


def test_a_decoder_that_attends_at_once_has_no_deep_levels_to_keep(make_pipe):
    pipe = make_pipe({"attention_levels": (True, True), "context_dim": 32})
    with pytest.raises(ValueError, match="reuse.*attends"):
        draw(pipe, stages={"decoder": {"reuse": 2}})
