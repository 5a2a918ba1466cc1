"""Karlo, whose largest picture has 256 pixels a side (here 32), is edited as our own models are."""

import numpy as np
import pytest
from PIL import Image

from unclip import UnCLIPPipeline

STEPS = {"decoder_num_inference_steps": 4, "prior_num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(karlo):
    pipe = UnCLIPPipeline.from_pretrained(karlo.text_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(side):
    levels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_karlo_keeps_known_pixels(pipe, size):
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size, size // 2))
    settings = {"num_resamples": 2, "jump_length": 1, "seeds": 3, "size": size, **STEPS}
    drawn = np.asarray(pipe.inpaint(picture(size), mask, "a dog", **settings).images[0])
    assert (drawn[size // 2 :] == np.asarray(picture(size))[size // 2 :]).all()
    assert (drawn[: size // 2] != np.asarray(picture(size))[: size // 2]).any()


def test_karlo_draws_from_pictures_and_upscales(pipe):
    drawn = pipe.image_to_image(picture(32), "a dog", 0.5, seeds=3, **STEPS)
    assert drawn.images[0].size == (32, 32)
    for size in (32, 64):
        output = pipe.upscale(picture(8), size, seeds=3)
        assert output.images[0].size == (size, size)
    with pytest.raises(ValueError, match="^image: "):  # it reads no pictures
        pipe.inpaint(picture(8), Image.new("L", (8, 8), "white"))
