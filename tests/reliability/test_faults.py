"""R6, R7 and R30 of docs/reliability.md: faults are found, named, and leave nothing behind."""

import gc
import os
import time

import pytest
import torch

from unclip_sample import cli

CAPTION = "a red apple"
STAGES = ("prior", "decoder", "upsampler_256", "upsampler_1024")
NAN, INF = float("nan"), float("inf")

BAD = [
    *({"prompt": value} for value in (None, [], 3, ["a", 3], "\ud800")),
    *({"guidance_scale": value} for value in (NAN, INF, -1, 1e9, "3")),
    *({"decoder_num_inference_steps": value} for value in (0, -3, 1001, 2.5, "fast28")),
    *({"size": value} for value in (0, 300, "64")),
    *({"num_images_per_prompt": value} for value in (0, 1.5)),
    *({"output_type": value} for value in ("bogus", None)),
    {"prompt": ["a", "b"], "generator": [torch.Generator()]},
    {"image_embeds": torch.ones(1, 31)},
    {"image_embeds": torch.full((1, 32), NAN)},
    {"seeds": -1},
    {"seeds": [1, 2]},
    {"best_of": 0},
    {"callback_on_step_end": 3},
    {"stages": {"decoder": {"scheduler": "eulr"}}},
]


def test_r6_bad_arguments_are_refused_at_once(pipe, monkeypatch, figure):
    def run(*_):
        raise AssertionError("a network ran")

    monkeypatch.setattr(type(pipe), "_conditions", run)
    refused, slowest = 0, 0.0
    for given in BAD:
        name = next(key for key in reversed(given))
        start = time.process_time()
        with pytest.raises((ValueError, TypeError), match=f"^{name}"):
            pipe(**{"prompt": CAPTION, **given})
        slowest = max(slowest, time.process_time() - start)
        refused += 1
    figure("R6", f"{refused}/{len(BAD)} refused by name, {slowest * 1000:.0f} ms at most")
    assert refused == len(BAD) == 30 and slowest < 0.05


def test_r6_one_step_works(pipe):
    steps = {f"{stage}_num_inference_steps": 1 for stage in STAGES}
    assert pipe(CAPTION, seeds=1, size=256, **steps).images[0].size == (256, 256)


def test_r7_values_that_are_not_finite_stop_a_call(new_pipe, figure):
    found = 0
    for name in ("clip", *STAGES, "a step"):
        own = new_pipe()
        callback = None
        if name == "a step":

            def callback(p, step, t, values):
                spoilt = values["stage"] == "decoder" and step == 1
                return {"x_t": values["x_t"] * torch.inf} if spoilt else None

        else:
            for parameter in own.components[name].parameters():
                torch.nn.init.constant_(parameter, torch.nan)
        where = "decoder.*step 2 of 3" if callback else name
        with pytest.raises(FloatingPointError, match=where):
            own(CAPTION, seeds=7, callback_on_step_end=callback)
        found += 1
    figure("R7", f"{found}/6 places named, none drawn")
    assert found == 6


def test_r7_no_file_is_written(tiny_model, tmp_path, monkeypatch, capsys):
    from unclip import Decoder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Decoder, "forward", lambda self, x, *args, **_: x.repeat(1, 2, 1, 1) * NAN)
    words = ["--model", str(tiny_model), "--prompt", CAPTION, "--output", "a.png"]
    assert cli.main(words) == 1 and os.listdir() == []
    assert "decoder" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES[1:])
def test_r30_lack_of_memory_for_latents_gives_advice(new_pipe, stage):
    own = new_pipe()

    def lack(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    own.components[stage].register_forward_pre_hook(lack)
    steps = {f"{name}_num_inference_steps": 1 for name in STAGES}
    z_img = torch.ones(2, own.decoder.config.embedding_dim)
    with pytest.raises(torch.OutOfMemoryError, match=f"^{stage}: .*give max_batch_size=1"):
        own.decode(z_img, size=1024, seeds=7, max_batch_size=2, **steps)


@pytest.mark.parametrize(
    ("network", "named", "draw"),
    [
        ("upsampler_256", "upsampler_256", lambda p, x: p.upscale(x, 256, seeds=7)),
        ("decoder", "inversion", lambda p, x: p.invert(x)),
        ("prior", "prior", lambda p, x: p.ablate(CAPTION, num_images=2, seeds=7)),
    ],
)
def test_r30_lack_of_memory_for_single_stages_gives_advice(new_pipe, network, named, draw):
    own = new_pipe()

    def lack(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    own.components[network].register_forward_pre_hook(lack)
    with pytest.raises(torch.OutOfMemoryError, match=f"^{named}: .*give max_batch_size=1"):
        draw(own, torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("stage", STAGES)
def test_r30_lack_of_memory_gives_advice_and_passes(new_pipe, stage, figure):
    own = new_pipe()
    held = []

    def lack(*_):
        big = torch.ones(1_000_000)  # of a frame that the error must not keep alive
        held.append(type(big))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    hook = own.components[stage].register_forward_pre_hook(lack)
    arguments = {"size": 1024, "seeds": 7, "num_images_per_prompt": 2, "max_batch_size": 2}
    steps = {f"{name}_num_inference_steps": 1 for name in STAGES}
    with pytest.raises(torch.OutOfMemoryError) as caught:
        own(CAPTION, **arguments, **steps)
    message = str(caught.value)
    assert message.startswith(f"{stage}: ") and "\n" not in message
    knobs = ("max_batch_size=1", "dtype=torch.bfloat16", "enable_model_cpu_offload()")
    assert all(knob in message for knob in knobs)
    assert caught.value.__context__ is None  # nor its frames' tensors
    gc.collect()
    alive = [x for x in gc.get_objects() if torch.is_tensor(x) and x.numel() == 1_000_000]
    assert held and not alive
    hook.remove()
    again = own(CAPTION, **{**arguments, "num_images_per_prompt": 1, "size": 64}, **steps)
    figure("R30", f"{stage}: {message}")
    assert len(again.images) == 1
