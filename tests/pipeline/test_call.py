"""Calls of the pipeline: seeds, sizes, guidance, candidates, callbacks, precision, faults."""

import copy
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from unclip.pipeline.output import finished
from unclip.pipeline.stages import decoder_predictor

CAPTION = "a red apple"


def draw(pipe, prompt=CAPTION, **arguments):
    """Pictures [B, 3, S, S] in [0, 1], of 64 pixels unless another size is asked for."""
    return pipe(prompt, output_type="pt", **{"size": 64, "seeds": 7, **arguments}).images


def same_picture(a, b):
    """Whether two pictures are equal to one level in 99.9 % of their values."""
    return ((a - b).abs() <= 1 / 255).float().mean() >= 0.999 and (a - b).abs().mean() < 1e-3


# Seeds


def test_the_same_call_twice_is_the_same_picture(pipe):
    for size in (64, 256):
        assert torch.equal(draw(pipe, size=size), draw(pipe, size=size))


def test_another_seed_prompt_or_negative_is_another_picture(pipe):
    first = draw(pipe)
    assert not same_picture(first, draw(pipe, seeds=8))
    assert not same_picture(first, draw(pipe, "two green pears"))
    assert not same_picture(first, draw(pipe, negative_prompt="two green pears"))


def test_a_picture_does_not_depend_on_its_batch(pipe):
    batch = draw(pipe, num_images_per_prompt=3, size=256)
    for index in range(3):
        assert same_picture(batch[index], draw(pipe, seeds=7 + index, size=256)[0])
    mixed = draw(pipe, ["a blue dog", CAPTION], seeds=[1, 8], size=256)
    assert same_picture(mixed[1], batch[1])


def test_a_stage_draws_the_same_noise_whatever_other_stages_did(pipe):
    first = pipe(CAPTION, seeds=7, size=64, output_type="pt")
    again = draw(pipe, image_embeds=first.image_embeds, prior_num_inference_steps=9)
    assert torch.equal(again, first.images)
    a, b = (draw(pipe, prior_num_inference_steps=n, guidance_scale=0) for n in (2, 5))
    assert torch.equal(a, b)  # at scale 0 the decoder does not see the embedding


def test_generators_give_a_seed_for_each_picture(pipe):
    def generator(seed):
        return torch.Generator().manual_seed(seed)

    twice = [pipe(CAPTION, size=64, generator=generator(3), output_type="np") for _ in range(2)]
    assert np.array_equal(twice[0].images, twice[1].images)
    assert np.array_equal(draw(pipe, seeds=twice[0].seeds).permute(0, 2, 3, 1), twice[0].images)
    advancing = generator(3)
    seeds = [pipe(CAPTION, size=64, generator=advancing).seeds[0] for _ in range(2)]
    assert seeds[0] == twice[0].seeds[0] != seeds[1]
    both = pipe([CAPTION] * 2, size=64, generator=[generator(3), generator(4)])
    assert both.seeds == [seeds[0], *pipe(CAPTION, size=64, generator=generator(4)).seeds]
    assert pipe([CAPTION] * 2, size=64, generator=generator(3)).seeds == seeds


def test_without_a_seed_pictures_differ_and_the_process_generator_is_left_alone(pipe):
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b = (pipe(CAPTION, size=64, output_type="pt") for _ in range(2))
    assert a.seeds != b.seeds and not torch.equal(a.images, b.images)
    assert torch.equal(draw(pipe, seeds=a.seeds), a.images)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


# Sizes and forms


@pytest.mark.parametrize(
    ("size", "stages"),
    [
        (64, ["prior", "decoder"]),
        (128, ["prior", "decoder", "upsampler_256"]),
        (256, ["prior", "decoder", "upsampler_256"]),
        (512, ["prior", "decoder", "upsampler_256", "upsampler_1024"]),
        (None, ["prior", "decoder", "upsampler_256", "upsampler_1024"]),
    ],
)
def test_a_size_stops_after_its_stage(pipe, size, stages):
    run = []
    output = pipe(
        CAPTION,
        seeds=7,
        size=size,
        callback_on_step_end=lambda _, step, t, values: run.append(values["stage"]),
    )
    assert list(dict.fromkeys(run)) == stages == output.settings["stages"]
    assert output.images[0].size == (size or 1024,) * 2 and output.images[0].mode == "RGB"
    assert list(output.low_res) == [64, 256][: len(stages) - 2]
    assert len(run) == sum(output.settings["steps"].values())


def test_half_a_size_is_the_mean_of_its_pixels(pipe):
    whole, half = draw(pipe, size=256), draw(pipe, size=128)
    assert torch.allclose(torch.nn.functional.avg_pool2d(whole, 2), half, atol=1e-6)


def test_forms_of_output_agree(pipe):
    arguments = {"seeds": 7, "size": 256}
    pt = pipe(CAPTION, output_type="pt", **arguments)
    array = pipe(CAPTION, output_type="np", **arguments)
    pil = pipe(CAPTION, **arguments)
    assert pt.images.shape == (1, 3, 256, 256) and array.images.shape == (1, 256, 256, 3)
    assert np.array_equal(pt.images.permute(0, 2, 3, 1).numpy(), array.images)
    assert np.abs(np.asarray(pil.images[0]) / 255 - array.images[0]).max() <= 0.5 / 255 + 1e-6
    assert pil.low_res[64][0].size == (64, 64) and pt.low_res[64].shape == (1, 3, 64, 64)
    plain = pipe(CAPTION, return_dict=False, **arguments)
    assert isinstance(plain, tuple) and plain[0][0].tobytes() == pil.images[0].tobytes()


def test_finished_pictures_are_clamped_and_rounded():
    x = torch.tensor([-9.0, -1, 0, 0.5, 9]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert finished(x, "pt")[0, 0, 0].tolist() == [0, 0, 0.5, 0.75, 1]
    assert np.asarray(finished(x, "pil")[0])[0, :, 0].tolist() == [0, 0, 128, 191, 255]


# Guidance, steps, samplers


def test_guidance_of_one_and_zero_run_one_branch(own_pipe):
    batches = []
    own_pipe.decoder.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    own_pipe.prior.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    common = {"prior_num_inference_steps": 1, "decoder_num_inference_steps": 1}
    for scale, expected in ((0, [2, 1]), (1, [2, 1]), (2, [4, 2])):
        batches.clear()
        draw(own_pipe, guidance_scale=scale, prior_guidance_scale=scale, **common)
        assert batches == expected
    ignored = [
        draw(own_pipe, prompt, guidance_scale=0, prior_guidance_scale=0)
        for prompt in (CAPTION, "two green pears")
    ]
    assert torch.equal(*ignored)


def test_guidance_between_one_and_the_next_is_continuous(pipe):
    near, exact = draw(pipe, guidance_scale=1.0001), draw(pipe, guidance_scale=1)
    assert (near - exact).abs().mean() < 1e-2
    assert not same_picture(exact, draw(pipe, guidance_scale=4))


def test_the_unconditional_branch_is_the_empty_text_without_an_embedding(pipe):
    text = pipe.encode(["two green pears"])
    null = pipe.decoder.null_z_img(1)
    a = pipe.sample_decoder(null, pipe.encode([""]), [7], guidance_scale=1)
    b = pipe.sample_decoder(torch.ones_like(null), text, [7], guidance_scale=0)
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("caption", "image", "weights"),
    [
        (2.0, None, (2, 0, -1)),  # one scale for both
        (2.0, 2.0, (2, 0, -1)),
        (2.5, 1.0, (2.5, -1.5, 0)),  # the caption alone
        (3.0, 2.0, (3, -1, -1)),
        (0.0, 1.0, (0, 1, 0)),
        (1.0, 2.0, (1, 1, -1)),
    ],
)
def test_z_img_and_caption_have_scales_of_their_own(own_pipe, caption, image, weights):
    decoder, rows = own_pipe.decoder, []
    decoder.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    text, empty = own_pipe.encode([CAPTION]), own_pipe.encode([""])
    z_img, null = own_pipe.encode_images([torch.rand(1, 3, 64, 64)]), decoder.null_z_img(1)
    stage = own_pipe._stage("decoder", None, None, image_guidance=image)
    predict = decoder_predictor(stage, z_img, text, empty, caption)
    x_t, t = torch.randn(1, 3, 64, 64), torch.tensor([500])
    with torch.no_grad():
        output = predict(x_t, t)
        parts = [decoder(x_t, t, *told) for told in ((z_img, text), (z_img, empty), (null, empty))]
    assert rows == [sum(w != 0 for w in weights), 1, 1, 1]
    expected = sum(w * part for w, part in zip(weights, parts, strict=True))[:, :3]
    assert torch.allclose(output[:, :3], expected, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_without_a_caption_z_img_has_the_one_scale(pipe, make_pipe, scale):
    picture = {"image": Image.new("RGB", (64, 64), "red")}
    own = {"stages": {"decoder": {"image_guidance_scale": scale}}}
    model = make_pipe(default_guidance={"decoder": 3.0, "image": scale})
    led = draw(pipe, "", guidance_scale=scale, **picture)
    assert torch.equal(draw(pipe, "", **own, **picture), led)
    assert torch.equal(draw(model, "", **picture), led)
    assert torch.equal(draw(model, "", guidance_scale=2.0, **picture), draw(pipe, "", **picture))
    assert torch.equal(draw(model, guidance_scale=2.0), draw(pipe, **own))
    record = model("", size=64, **picture).settings
    assert record["guidance"] == {"decoder": scale} and "image_guidance_scale" not in record
    assert model(CAPTION, size=64).settings["image_guidance_scale"] == {"decoder": scale}


def test_a_caption_beside_others_without_is_drawn_as_alone(make_pipe):
    model = make_pipe(default_guidance={"decoder": 3.0, "image": 1.0})
    picture = {"image": Image.new("RGB", (64, 64), "red")}
    both = draw(model, [CAPTION, ""], seeds=[7, 8], **picture)
    assert same_picture(both[:1], draw(model, **picture))
    assert same_picture(both[1:], draw(model, "", seeds=8, **picture))
    led = draw(model, "", negative_prompt="a pear", **picture)
    assert not same_picture(led, draw(model, "", **picture))


def test_candidates_that_no_call_names_are_the_models(pipe, make_pipe, tmp_path):
    model = make_pipe(default_candidates=1)
    assert torch.equal(draw(model), draw(pipe, num_prior_candidates=1))
    assert not same_picture(draw(model), draw(pipe))
    assert torch.equal(draw(model, num_prior_candidates=2), draw(pipe))
    drawn = model(CAPTION, size=64)
    assert drawn.settings["num_prior_candidates"] == 1
    text, seeds = pipe.encode([CAPTION]), [7]
    z_img = pipe.sample_prior(text, seeds, num_candidates=1)
    assert torch.equal(model.sample_prior(text, seeds), z_img)
    assert len(model.initial_noise("prior", seeds)) == 1
    mixed = {"seeds": 7, "size": 64}
    one = pipe.mix([CAPTION], num_prior_candidates=1, **mixed).image_embeds
    assert torch.equal(model.mix([CAPTION], **mixed).image_embeds, one)
    with pytest.raises(ValueError, match="^num_candidates"):
        model.sample_prior(text, seeds, num_candidates=0)
    model.save_pretrained(tmp_path / "model")
    assert type(model).from_pretrained(tmp_path / "model").config.default_candidates == 1


def test_an_interval_that_no_call_names_is_the_models(pipe, make_pipe, tmp_path):
    model = make_pipe(default_guidance_interval=(400, 600))
    asked = {"stages": {"decoder": {"guidance_interval": (400, 600)}}}
    always = {"stages": {"decoder": {"guidance_interval": (0, 1000)}}}
    assert torch.equal(draw(model), draw(pipe, **asked))
    assert torch.equal(draw(model, **always), draw(pipe))
    assert not same_picture(draw(model), draw(pipe))
    drawn = model(CAPTION, size=64, seeds=7)
    assert drawn.settings["guidance_interval"] == {"decoder": [400, 600]}
    led = {"seeds": 7, "size": 64, "guidance_scale": 2.0, "output_type": "pt"}
    mixed = pipe.mix([CAPTION], guidance_interval=(400, 600), **led).images
    assert torch.equal(model.mix([CAPTION], **led).images, mixed)
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert loaded.config.default_guidance_interval == [400, 600]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_one_step_a_stage_works_with_every_sampler(own_pipe, sampler):
    steps = {f"{stage}_num_inference_steps": 1 for stage in own_pipe.config.default_steps}
    for stage in own_pipe.config.default_steps:
        own_pipe.use_sampler(stage, sampler)
        assert own_pipe.sampler(stage) == sampler
    x = draw(own_pipe, size=256, **steps)
    assert x.shape == (1, 3, 256, 256) and x.std() > 0


def test_named_and_listed_steps(pipe):
    times = []
    draw(
        pipe,
        decoder_num_inference_steps=[999, 500, 20],
        prior_num_inference_steps="ddim5",
        callback_on_step_end=lambda _, step, t, values: times.append((values["stage"], step, t)),
    )
    assert times[:5] == [("prior", i, t) for i, t in enumerate((800, 600, 400, 200, 0))]
    assert times[5:] == [("decoder", 0, 999), ("decoder", 1, 500), ("decoder", 2, 20)]


def test_schedulers_are_not_changed(pipe):
    def state(scheduler):
        return {k: str(v) for k, v in vars(scheduler).items()}

    schedulers = {n: s for n, s in pipe.components.items() if n.endswith("scheduler")}
    before = {name: state(scheduler) for name, scheduler in schedulers.items()}
    draw(pipe, size=256)
    assert before == {name: state(scheduler) for name, scheduler in schedulers.items()}


# Candidates, variations


def test_of_the_candidates_the_one_nearest_the_caption_is_kept(pipe):
    text = pipe.encode([CAPTION, "two green pears"])
    two = pipe.sample_prior(text, [7, 8], num_candidates=2)
    five = pipe.sample_prior(text, [7, 8], num_candidates=5)
    one = pipe.sample_prior(text, [7, 8], num_candidates=1)
    products = [(z * text.z_txt).sum(-1) for z in (one, two, five)]
    assert (products[0] <= products[1] + 1e-6).all() and (products[1] <= products[2] + 1e-6).all()
    assert (products[0] < products[2]).any()
    assert one.shape == two.shape == (2, text.z_txt.shape[-1])


def test_prior_works_in_float32_whatever_the_pipeline(own_pipe):
    text = own_pipe.encode([CAPTION])
    exact = own_pipe.sample_prior(text, [7])
    own_pipe.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        again = own_pipe.sample_prior(text, [7])
    assert exact.dtype == again.dtype == torch.float32 and torch.equal(exact, again)


def test_variations_of_a_picture(pipe):
    picture = draw(pipe, size=256)
    output = pipe(image=picture, seeds=3, num_images_per_prompt=2, size=64, output_type="pt")
    z_img = pipe.encode_images([picture * 2 - 1])
    assert torch.allclose(output.image_embeds, z_img.expand(2, -1))
    assert "prior" not in output.settings["stages"]
    again = draw(pipe, None, image_embeds=z_img, seeds=4)
    assert same_picture(again[0], output.images[1])
    assert not same_picture(draw(pipe, image_embeds=z_img, seeds=4), again)  # with a caption


def test_pictures_of_all_kinds_are_understood(pipe):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    whole = Image.fromarray(pixels)
    middle = whole.crop((10, 0, 50, 40))
    clear = middle.convert("RGBA")
    deep = Image.fromarray(np.asarray(middle.convert("L")).astype(np.int32) * 257, "I")
    tensor = torch.tensor(np.asarray(middle)).permute(2, 0, 1) / 255

    def embed(image):
        return pipe(image=image, seeds=0, size=64).image_embeds

    for same in (whole, clear, tensor, [middle], tensor[None]):
        assert torch.allclose(embed(same), embed(middle), atol=1e-5)
    assert torch.allclose(embed(deep), embed(middle.convert("L")), atol=1e-5)
    clear.putalpha(0)
    white = Image.new("RGB", (40, 40), "white")
    assert torch.allclose(embed(clear), embed(white), atol=1e-5)


# Callbacks


def test_what_a_callback_returns_is_used_and_what_it_raises_ends_the_call(pipe):
    def blank(pipeline, step, t, values):
        assert pipeline is pipe and isinstance(t, int)
        return {"x_t": torch.zeros_like(values["x_t"])}

    assert torch.equal(draw(pipe, callback_on_step_end=blank), torch.full((1, 3, 64, 64), 0.5))

    seen = []

    def stop(pipeline, step, t, values):
        seen.append(values["stage"])
        if values["stage"] == "decoder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, callback_on_step_end=stop)
    assert seen == ["prior"] * 3 + ["decoder"]
    assert torch.equal(draw(pipe), draw(pipe, callback_on_step_end=lambda *_: None))


@pytest.mark.parametrize("name", ["x_t", "latents"])
@pytest.mark.parametrize("wrong", [3, torch.zeros(3, 64, 64)])
def test_what_cannot_take_the_place_of_x_t_is_named(pipe, name, wrong):
    def on_step(pipeline, step, t, values):
        return {name: wrong} if values["stage"] == "decoder" else None

    words = r"^callback_on_step_end: it returned .* in place of x_t; give a tensor \[1, 3, 64, 64\]"
    with pytest.raises(ValueError, match=words):
        draw(pipe, callback_on_step_end=on_step)


def test_progress_shows_on_a_terminal_alone(own_pipe, capfd):
    own_pipe._progress_bar_config = {}
    draw(own_pipe)
    assert capfd.readouterr().err == ""
    own_pipe.set_progress_bar_config(disable=False)
    draw(own_pipe)
    said = capfd.readouterr().err
    assert "prior: 100%" in said and "decoder: 100%" in said and "upsampler" not in said


def test_threads_share_a_pipeline(pipe):
    jobs = [("a red apple", 3, 2), ("a dog", 4, 3), ("two green pears", 5, 1), ("", 6, 4)]
    alone = [draw(pipe, p, seeds=s, decoder_num_inference_steps=n) for p, s, n in jobs]
    drawn = {}

    def work(index):
        for turn in range(2):
            p, s, n = jobs[(index + turn) % 4]
            drawn[index, turn] = draw(pipe, p, seeds=s, decoder_num_inference_steps=n)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 8
    for (index, turn), x in drawn.items():
        assert same_picture(x, alone[(index + turn) % 4])


HOOKED = {
    "none": lambda pipe: None,
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
    "group": lambda pipe: pipe.enable_group_offload("cpu"),
    "casting": lambda pipe: pipe.decoder.enable_layerwise_casting(torch.float32, torch.float32),
}


@pytest.mark.parametrize("kind", HOOKED)
def test_calls_of_threads_take_turns_where_hooks_are_set(own_pipe, kind):
    alone = [draw(own_pipe, seeds=seed) for seed in range(2)]
    HOOKED[kind](own_pipe)
    begun = [threading.Event(), threading.Event()]
    met, drawn = [], {}

    def work(seed):
        def on_step(*_):
            begun[seed].set()
            if seed == 0 and not met:  # the other call is let in, or waits for this one's end
                met.append(begun[1].wait(60 if kind == "none" else 0.3))

        drawn[seed] = draw(own_pipe, seeds=seed, callback_on_step_end=on_step)

    first = threading.Thread(target=work, args=(0,))
    first.start()
    assert begun[0].wait(60)
    work(1)
    first.join()
    assert met == [kind == "none"]
    for seed in range(2):
        assert same_picture(drawn[seed], alone[seed])


def test_whatever_draws_waits_for_its_turn(pipe, monkeypatch):
    class Waiting(Exception):
        pass

    def wait(_):
        raise Waiting

    monkeypatch.setattr(type(pipe), "_own_turn", wait)
    latents = "invert decode reconstruct vary interpolate text_diff mix project ablate"
    for name in ["__call__", "outpaint", "image_to_image", "upscale", *latents.split()]:
        with pytest.raises(Waiting):
            getattr(pipe, name)(Image.new("RGB", (64, 64)))


def test_a_copy_of_a_pipeline_has_a_turn_of_its_own(own_pipe):
    with own_pipe._own_turn():
        twin = copy.deepcopy(own_pipe)
    assert torch.equal(draw(twin), draw(own_pipe))
    assert twin._turn.lock is not own_pipe._turn.lock


# Captions that do not fit


def test_the_end_of_a_long_caption_is_counted(pipe, caplog):
    room = pipe.clip.config.text_config.max_position_embeddings - 2
    with caplog.at_level("WARNING"):
        pipe.encode(["a" * room])
    assert caplog.messages == []
    with caplog.at_level("WARNING"):
        cut = pipe.encode(["a" * (room + 5)])
    assert len(caplog.messages) == 1 and " 5 tokens too many" in caplog.messages[0]
    assert bool(cut.text_mask.all())
    caplog.clear()
    pipe.encode(["secret " * 200_000])
    assert len(caplog.messages) == 1 and "more than" in caplog.messages[0]
    assert len(caplog.messages[0]) < 200 and "secret" not in caplog.messages[0]


# Precision and faults


def test_bf16_is_finite_and_near(own_pipe):
    exact = draw(own_pipe, size=256)
    assert own_pipe.to(torch.bfloat16) is own_pipe
    assert {own_pipe.decoder.dtype, own_pipe.upsampler_256.dtype} == {torch.bfloat16}
    assert {own_pipe.prior.dtype, own_pipe.clip.dtype} == {torch.float32}
    rough = draw(own_pipe, size=256)
    assert torch.isfinite(rough).all() and (rough - exact).abs().mean() < 0.1
    own_pipe.to("cpu", torch.float32)
    assert own_pipe.decoder.dtype == torch.float32


@pytest.mark.parametrize("args", [(torch.int8,), ("cpu", torch.float64), (1, 2, 3)])
def test_bad_moves_are_refused(pipe, args):
    with pytest.raises((ValueError, RuntimeError)):
        pipe.to(*args)


@pytest.mark.parametrize("name", ["clip", "prior", "decoder", "upsampler_256", "upsampler_1024"])
def test_a_value_that_is_not_finite_stops_the_call_with_its_stage(own_pipe, name):
    for parameter in own_pipe.components[name].parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    with pytest.raises(FloatingPointError, match=name):
        draw(own_pipe, size=None)


def test_an_infinite_step_is_named(pipe):
    def spoil(_, step, t, values):
        if values["stage"] == "decoder" and step == 1:
            return {"x_t": values["x_t"] * torch.inf}

    with pytest.raises(FloatingPointError, match="decoder.*step 2 of 3"):
        draw(pipe, callback_on_step_end=spoil)


def test_a_spoilt_statistic_of_the_prior_is_named(own_pipe):
    own_pipe.prior.transformer.clip_std.data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError, match="prior"):
        draw(own_pipe)


# Without a prior, without upsamplers


def test_parts_that_may_be_absent(make_pipe):
    small = make_pipe(upsampler_256=None, upsampler_1024=None)
    assert small("a", seeds=1).images[0].size == (64, 64)
    blind = make_pipe(prior=None)
    z_img = torch.ones(1, 32) / 32**0.5
    assert blind("a", image_embeds=z_img, seeds=1, size=64).images[0].size == (64, 64)
    with pytest.raises(ValueError, match="prompt: this model has no prior"):
        blind("a")
    with pytest.raises(ValueError, match="no prior"):
        blind.use_sampler("prior", "ddim")


def test_the_stages_alone_make_the_same_picture(pipe):
    text = pipe.encode([CAPTION])
    z_img = pipe.sample_prior(text, [7])
    x = pipe.sample_decoder(z_img, text, [7], guidance_scale=2.0)
    x = pipe.upsample(x, [7])
    assert torch.equal(finished(x, "pt"), draw(pipe, size=256))
    with pytest.raises(ValueError, match="seeds"):
        pipe.upsample(x, [7, 8])


def test_components_make_another_pipeline(pipe):
    other = type(pipe)(**pipe.components, default_steps=pipe.config.default_steps)
    assert other.decoder is pipe.decoder
    assert copy.deepcopy(pipe.config.default_guidance) == {"prior": 1.0, "decoder": 2.0}
