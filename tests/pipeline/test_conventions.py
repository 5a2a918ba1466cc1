"""What users of any pipeline of diffusers expect, and advice where it is otherwise here."""

import threading
from collections import Counter

import pytest
import torch
from PIL import Image

from unclip import Interrupted, UnCLIPPipeline

RED = Image.new("RGB", (64, 64), "red")
BLUE = Image.new("RGB", (64, 64), "blue")
MASK = torch.eye(64) > 0
SMALL = {"size": 64, "output_type": "pt"}

# A call of every method that draws, and the steps it tells of by stage; the tiny model's own are
# 3 of the prior, 3 of the decoder and 2 of the first upsampler.
CALLS = {
    "call": (
        lambda p, **s: p(["a", "b"], num_images_per_prompt=2, max_batch_size=3, **s),
        {"prior": 6, "decoder": 6},
    ),
    "decode": (lambda p, **s: p.decode(torch.ones(2, 32), **s), {"decoder": 3}),
    "reconstruct": (lambda p, **s: p.reconstruct(RED, **s), {"decoder": 3}),
    "vary": (lambda p, **s: p.vary(RED, num_images=2, max_batch_size=1, **s), {"decoder": 6}),
    "interpolate": (
        lambda p, **s: p.interpolate(["a", RED], num_frames=3, **s),
        {"prior": 3, "decoder": 3},
    ),
    "text_diff": (lambda p, **s: p.text_diff(RED, "b", num_frames=2, **s), {"decoder": 3}),
    "mix": (lambda p, **s: p.mix(["a", RED, "b"], **s), {"prior": 6, "decoder": 3}),
    "ablate": (lambda p, **s: p.ablate("a", "z_txt", **s), {"decoder": 3}),
    "inpaint": (lambda p, **s: p.inpaint(RED, MASK, num_resamples=1, **s), {"decoder": 3}),
    "image_to_image": (lambda p, **s: p.image_to_image(RED, strength=0.6, **s), {"decoder": 2}),
    "upscale": (lambda p, **s: p.upscale(RED, **(s | {"size": 256})), {"upsampler_256": 2}),
}


@pytest.mark.parametrize("name", CALLS)
def test_callbacks_are_counted_exactly_and_a_cancel_ends_it(pipe, name):
    draw, expected = CALLS[name]
    told, event = [], threading.Event()

    def note(p, step, t, values):
        assert p is pipe and values["x_t"].shape == values["latents"].shape
        told.append(values["stage"])

    asked = {"callback_on_step_end_tensor_inputs": ["x_t", "latents", "z_img", "x_low"]}
    output = draw(pipe, callback_on_step_end=note, seeds=1, return_dict=False, **asked, **SMALL)
    assert isinstance(output, tuple) and torch.isfinite(output[0]).all()
    assert Counter(told) == expected
    told.clear()

    def cancel(p, step, t, values):
        told.append(values["stage"])
        event.set()

    with pytest.raises(Interrupted):
        draw(pipe, callback_on_step_end=cancel, interrupt=event, seeds=1, **SMALL)
    assert len(told) == 1
    with pytest.raises(Interrupted):  # and one that was cancelled before draws nothing
        draw(pipe, callback_on_step_end=cancel, interrupt=event, seeds=1, **SMALL)
    assert len(told) == 1


def test_inversion_ends_at_the_step_where_it_is_cancelled(pipe):
    class AfterTwo:
        asked = 0

        def is_set(self):
            self.asked += 1
            return self.asked > 3  # once before anything runs, then before each step

    calls = []
    hook = pipe.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(Interrupted):
            pipe.invert(RED, interrupt=AfterTwo(), num_refinements=0)
    finally:
        hook.remove()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p("a", num_inference_steps=3), "num_inference_steps: .*decoder_num_inference"),
        (lambda p: p("a", guidence_scale=3), "guidence_scale: .*did you mean guidance_scale?"),
        (lambda p: p("a", latents=1), "latents: .*stages="),
        (lambda p: p("a", prompt_embeds=1), "prompt_embeds: .*text_embeds"),
        (lambda p: p("a", width=64), "width: .*give size"),
        (lambda p: p("a", colour="red"), "colour: .*docstring"),
        (lambda p: p.vary(RED, num_image=3), "num_image: "),
        (lambda p: p.mix([RED], seed=3), "seed: .*seeds"),
        (lambda p: p.inpaint(RED, MASK, guidance=3), "guidance: "),
        (lambda p: p.upscale(RED, tile=3), "tile: "),
        (lambda p: type(p).from_pretrained(device_map="auto"), "device_map: .*give device"),
        (lambda p: type(p).from_pretrained(typ=1), "typ: there is no such argument"),
        (lambda p: p.save_pretrained("x", variant="fp16"), "variant: "),
    ],
)
def test_arguments_that_there_are_not(pipe, call, words):
    with pytest.raises(TypeError, match=f"^{words}"):
        call(pipe)


def test_loading_as_the_library_spells_it(pipe, model_folder, tmp_path, monkeypatch):
    half = UnCLIPPipeline.from_pretrained(
        model_folder, torch_dtype=torch.bfloat16, revision="main", local_files_only=True
    )
    assert half.dtype == half.decoder.dtype == torch.bfloat16 and pipe.dtype == torch.float32
    assert half.prior.dtype == half.clip.dtype == torch.float32
    with pytest.raises(ValueError, match="^safe_serialization: "):
        pipe.save_pretrained(tmp_path / "x", safe_serialization=False)
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **settings: asked.update(settings, name=name) or model_folder,
    )
    UnCLIPPipeline.from_pretrained("owner/name", revision="v1", local_files_only=True)
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == (
        *("owner/name", "v1"),
        True,
    )


def test_a_pipeline_from_another_and_from_its_components(pipe):
    again = UnCLIPPipeline.from_pipe(pipe)
    assert again.decoder is pipe.decoder and again.config.default_steps == pipe.config.default_steps
    exact = pipe("a", seeds=3, **SMALL)
    assert torch.equal(again("a", seeds=3, **SMALL).images, exact.images)
    assert torch.equal(pipe("a", seeds=3, return_dict=False, **SMALL)[0], exact.images)


def test_zero_steps_are_refused_by_upscale(pipe):
    with pytest.raises(ValueError, match="^upsampler_256_num_inference_steps: "):
        pipe.upscale(RED, 256, upsampler_256_num_inference_steps=0)
