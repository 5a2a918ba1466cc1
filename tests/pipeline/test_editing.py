"""Inpainting, outpainting, image-to-image and upscaling: what stays, what changes, what seams do.

The pipeline here draws 16, 64 and 256 pixels a side, so that 1024 is four times its last size.
"""

import copy

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from unclip import Decoder, Upsampler
from unclip.diffusion.editing import resampling_segments
from unclip.diffusion.tiles import tile_starts
from unclip.pipeline import stages
from unclip.pipeline.editing import fitting_size
from unclip.pipeline.edits import check_masks
from unclip.pipeline.enlarging import plan_passes

CAPTION = "a red apple"
SIDES = {"upsampler_256": 64, "upsampler_1024": 256}


@pytest.fixture(scope="module")
def small(make_pipe):
    """A tiny pipeline of 16, 64 and 256 pixels a side."""
    common = {"num_blocks": 1, "dropout": 0.0, "prediction": "x_0", "norm_groups": 8}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        decoder = Decoder(
            32,
            16,
            size=16,
            channels=(32, 32),
            num_blocks=1,
            attention_levels=(False, True),
            head_dim=16,
            context_dim=32,
            z_img_scale=6.0,
        )
        upsamplers = {
            "upsampler_256": Upsampler(64, stem=4, channels=(16, 16), **common),
            "upsampler_1024": Upsampler(
                256, stem=8, channels=(16, 16), schedule="linear", **common
            ),
        }
        for network in upsamplers.values():
            torch.nn.init.normal_(network.unet.conv_out.weight, std=0.05)
    steps = {"prior": 2, "decoder": 9, "upsampler_256": 2, "upsampler_1024": 2}
    return make_pipe(
        decoder=decoder, **upsamplers, default_steps=steps, default_guidance={"decoder": 1.0}
    )


def noise_picture(side, seed=0, height=None):
    """A Pillow image of random pixels."""
    shape = (height or side, side, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def hole(side, box=(0.3, 0.25, 0.7, 0.8)):
    """A Pillow mask, white within a box that lies across no pixel of a smaller size evenly."""
    mask = Image.new("L", (side, side))
    mask.paste(255, tuple(round(side * edge) for edge in box))
    return mask


def levels(picture):
    return np.asarray(picture).astype(int)


# --- inpainting ---


@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_known_pixels_are_bit_equal_at_every_size(small, size):
    picture, mask = noise_picture(size), hole(size)
    known = levels(mask) == 0
    output = small.inpaint(picture, mask, CAPTION, size=size, seeds=3)
    drawn = levels(output.images[0])
    assert drawn.shape == (size, size, 3)
    assert (drawn[known] == levels(picture)[known]).all()
    assert np.abs(drawn[~known] - levels(picture)[~known]).mean() > 10
    assert output.settings["edit"]["kind"] == "inpaint"


def test_known_pixels_are_equal_in_arrays_and_tensors(small):
    picture, mask = noise_picture(64), hole(64)
    expected = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)
    known = torch.from_numpy(levels(mask) == 0)
    settings = {"size": 64, "seeds": 3}
    array = small.inpaint(picture, mask, CAPTION, output_type="np", **settings).images[0]
    tensor = small.inpaint(picture, mask, CAPTION, output_type="pt", **settings).images[0]
    assert np.abs(array - expected.numpy())[known.numpy()].max() < 1e-6
    assert torch.equal(tensor.permute(1, 2, 0), torch.from_numpy(array))
    again = small.inpaint(
        expected.permute(2, 0, 1), known.logical_not(), CAPTION, output_type="pt", **settings
    ).images[0]
    torch.testing.assert_close(again, tensor, atol=1e-4, rtol=0)


def test_the_small_pictures_keep_what_they_know_too(small):
    """A pixel of 16 is known where all of its 16 x 16 pixels of 256 are."""
    picture, mask = noise_picture(256), hole(256)
    x = torch.from_numpy(levels(picture)).permute(2, 0, 1).float()
    output = small.inpaint(picture, mask, CAPTION, seeds=3, output_type="pt")
    for side in (16, 64):
        cell = 256 // side
        blocks = x.reshape(3, side, cell, side, cell)
        known = torch.from_numpy(levels(mask)).reshape(side, cell, side, cell).amax((1, 3)) == 0
        assert 0.3 < known.float().mean() < 0.9
        means, low = blocks.mean((2, 4)), output.low_res[side][0] * 255
        assert (low - means).abs()[:, known].max() < 0.01
        assert (low - means).abs()[:, ~known].mean() > 5


def test_every_form_of_a_mask_says_the_same(small):
    picture, mask = noise_picture(64), hole(64)
    painted = levels(mask) > 0
    see_through = mask.point(lambda level: 255 - level)
    with_alpha = picture.convert("RGBA")
    with_alpha.putalpha(see_through)
    black = Image.new("RGBA", (64, 64), "black")
    black.putalpha(see_through)
    forms = [
        *[mask, mask.convert("1"), mask.convert("RGB"), mask.convert("RGBA"), black],
        *[torch.from_numpy(painted), torch.from_numpy(painted).float()[None], [mask]],
    ]
    expected = check_masks(mask)[0]
    assert torch.equal(expected[0, 0], torch.from_numpy(painted).float())
    for form in forms:
        assert torch.equal(check_masks(form)[0], expected), form
    own = small.inpaint(with_alpha, None, CAPTION, size=64, seeds=3).images[0]
    assert (levels(own)[~painted] == levels(picture)[~painted]).all()


def test_a_mask_of_sixteen_bits_is_scaled_not_cut():
    """300 of 65535 is black, though more than the 255 of a byte."""
    levels_16 = np.full((16, 16), 300, np.uint16)
    levels_16[:, :5], levels_16[:, 5:7] = 65535, 33000
    for form in (levels_16, levels_16.astype(np.int32)):
        mask = Image.fromarray(form)
        assert mask.mode in ("I;16", "I")
        assert check_masks(mask)[0][0, 0].sum(dim=0).tolist() == [16.0] * 7 + [0.0] * 9


def test_to_paint_all_is_to_draw(small):
    white = Image.new("L", (64, 64), "white")
    drawn = small(CAPTION, size=64, seeds=3, output_type="pt").images
    painted = small.inpaint(
        noise_picture(64), white, CAPTION, seeds=3, num_resamples=1, output_type="pt"
    )
    assert torch.equal(painted.images, drawn)


def test_what_the_mask_hides_has_no_say(small):
    mask = hole(64)
    other = Image.composite(Image.new("RGB", (64, 64), "red"), noise_picture(64), mask)
    one, two = (
        small.inpaint(picture, mask, CAPTION, seeds=3, output_type="pt").images
        for picture in (noise_picture(64), other)
    )
    assert torch.equal(one, two)


def test_a_picture_depends_on_its_seed_alone(small):
    pictures, masks = (
        [noise_picture(16, 0), noise_picture(16, 1)],
        [hole(16), hole(16, (0, 0, 1, 0.5))],
    )
    batch = small.inpaint(
        pictures, masks, CAPTION, seeds=[5, 6, 7, 8], num_images_per_prompt=2, output_type="pt"
    ).images
    alone = small.inpaint(pictures[1], masks[1], CAPTION, seeds=7, output_type="pt").images
    torch.testing.assert_close(batch[2:3], alone, atol=1e-4, rtol=0)
    assert (batch[2] - batch[3]).abs().mean() > 0.01
    again = small.inpaint(pictures[1], masks[1], CAPTION, seeds=7, output_type="pt").images
    assert torch.equal(again, alone)


def test_one_picture_is_edited_by_several_prompts(small):
    prompts = [CAPTION, "two green pears", CAPTION]
    several = small.inpaint(noise_picture(16), hole(16), prompts, seeds=4, output_type="pt").images
    alone = small.inpaint(noise_picture(16), hole(16), prompts[1], seeds=5, output_type="pt").images
    torch.testing.assert_close(several[1:2], alone, atol=1e-4, rtol=0)


def test_one_embedding_or_text_serves_several_pictures(small):
    pictures, z_img = [noise_picture(16, 0), noise_picture(16, 1)], torch.ones(1, 32)
    for leading in ({"image_embeds": z_img}, {"text_embeds": small.encode([CAPTION])}):
        drawn = small.inpaint(pictures, hole(16), seeds=4, **leading).images
        known = levels(hole(16)) == 0
        assert len(drawn) == 2
        for one, picture in zip(drawn, pictures, strict=True):
            assert (levels(one)[known] == levels(picture)[known]).all()


def test_without_words_the_picture_s_own_embedding_leads(small):
    picture, mask = noise_picture(64), hole(64)
    x = torch.from_numpy(levels(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    z_img = small.encode_images([x])
    output = small.inpaint(picture, mask, size=16, seeds=3)
    torch.testing.assert_close(output.image_embeds, z_img)
    assert "prior" not in output.settings["stages"]
    given = small.inpaint(picture, mask, size=16, seeds=3, image_embeds=-z_img)
    torch.testing.assert_close(given.image_embeds, -z_img)
    text = small.encode([CAPTION])
    encoded = small.inpaint(picture, mask, size=16, seeds=3, text_embeds=text, output_type="pt")
    written = small.inpaint(picture, mask, CAPTION, size=16, seeds=3, output_type="pt")
    assert torch.equal(encoded.images, written.images)


def test_resampling_runs_the_decoder_again_and_the_callback_hears_of_it(small):
    heard = []

    def on_step(pipe, step, t, values):
        heard.append((values["stage"], step))

    settings = {"size": 64, "seeds": 3, "callback_on_step_end": on_step}
    picture, mask = noise_picture(64), hole(64)
    small.inpaint(picture, mask, CAPTION, num_resamples=3, jump_length=2, **settings)
    walk = [step for part in resampling_segments(9, 2, 3) for step in range(*part)]
    assert len(walk) == 9 + 2 * 2 * 4
    assert [step for stage, step in heard if stage == "decoder"] == walk
    assert [step for stage, step in heard if stage == "upsampler_256"] == [0, 1]


def test_a_picture_is_drawn_within_its_own_size_unless_asked(small):
    components = small.components
    sides = [fitting_size(components, side) for side in (8, 16, 63, 64, 200, 256, 2000)]
    assert sides == [16, 16, 16, 64, 64, 256, 256]
    assert small.inpaint(noise_picture(70), hole(70), seeds=3).images[0].size == (64, 64)


def test_pictures_that_fit_different_sizes_need_one_that_is_given(small):
    pictures, masks = [noise_picture(64), noise_picture(16)], [hole(64), hole(16)]
    for order in (1, -1):
        with pytest.raises(ValueError, match="^size: the pictures fit 16, 64 pixels a side; give"):
            small.image_to_image(pictures[::order], seeds=3)
        with pytest.raises(ValueError, match="^size: the pictures fit 16, 64 pixels a side; give"):
            small.inpaint(pictures[::order], masks[::order], seeds=3)
    drawn = small.inpaint(pictures, masks, size=16, seeds=3, num_resamples=1).images
    assert [picture.size for picture in drawn] == [(16, 16)] * 2
    near = [noise_picture(64), noise_picture(70)]
    assert small.image_to_image(near, seeds=3).images[0].size == (64, 64)


# --- an inpainting decoder ---


@pytest.fixture(scope="module")
def native(small, make_pipe):
    """The same pipeline with a decoder that sees the known part, its new weights still zero."""
    decoder = Decoder.for_inpainting(small.decoder)
    rest = {name: small.components[name] for name in SIDES}
    return make_pipe(decoder=decoder, **rest, default_steps=small.config.default_steps)


def test_an_inpainting_decoder_is_told_the_known_part(small, native):
    picture, mask = noise_picture(16), hole(16)
    settings = {"seeds": 3, "output_type": "pt", "guidance_scale": 2.0}
    plain = small.inpaint(picture, mask, CAPTION, num_resamples=1, **settings)
    told = native.inpaint(picture, mask, CAPTION, **settings)
    assert told.settings["edit"]["num_resamples"] == 1
    torch.testing.assert_close(told.images, plain.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        native(CAPTION, size=16, **settings).images,
        small(CAPTION, size=16, **settings).images,
        atol=1e-4,
        rtol=0,
    )
    weight = native.decoder.unet.conv_in.weight
    with torch.no_grad():
        weight[:, 3:] += 0.2
        heeding = native.inpaint(picture, mask, CAPTION, **settings)
        weight[:, 3:] = 0
    known = torch.from_numpy(levels(mask) == 0)
    assert torch.equal(heeding.images[0][:, known], plain.images[0][:, known])
    assert (heeding.images - plain.images)[0][:, ~known].abs().mean() > 0.01


def test_an_inpainting_model_is_saved_and_read(native, tmp_path):
    native.save_pretrained(tmp_path / "model")
    again = type(native).from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    assert again.decoder.config.inpainting
    picture, mask = noise_picture(16), hole(16)
    one, two = (
        pipe.inpaint(picture, mask, CAPTION, seeds=3, output_type="pt").images
        for pipe in (native, again)
    )
    assert (one - two).abs().mean() < 1e-5


# --- outpainting ---


def test_outpainting_keeps_the_picture_where_it_was_put(small):
    picture = noise_picture(40, height=24)
    output = small.outpaint(picture, CAPTION, canvas=64, offset=(3, 31), seeds=3)
    drawn = levels(output.images[0])
    assert drawn.shape == (64, 64, 3)
    assert (drawn[31 : 31 + 24, 3 : 3 + 40] == levels(picture)).all()
    assert drawn[:31].std() > 5


def test_a_canvas_is_square_by_itself_and_larger_than_a_square(small):
    wide = levels(small.outpaint(noise_picture(64, height=30), seeds=3).images[0])
    assert (wide[17:47] == levels(noise_picture(64, height=30))).all()
    square = small.outpaint(noise_picture(44), seeds=3, size=64)
    assert square.images[0].size == (64, 64)  # of a canvas of 66


# --- image-to-image ---


def test_strength_leads_from_the_picture_to_a_drawing(small):
    picture = noise_picture(16)
    settings = {"size": 16, "seeds": 3, "decoder_num_inference_steps": 20, "output_type": "pt"}
    target = torch.from_numpy(levels(picture)).permute(2, 0, 1) / 255
    faint = small.image_to_image(picture, CAPTION, 0.02, **settings)
    assert (faint.images[0] - target).abs().mean() < 0.1
    assert faint.settings["edit"] == {"kind": "image_to_image", "strength": 0.02}
    whole = small.image_to_image(picture, CAPTION, 1.0, **settings).images
    drawn = small(CAPTION, **settings).images
    torch.testing.assert_close(whole, drawn, atol=2e-2, rtol=0)
    assert (whole[0] - target).abs().mean() > 0.2


def test_image_to_image_runs_a_share_of_the_decoder_s_steps(small):
    heard = []

    def on_step(pipe, step, t, values):
        heard.append((values["stage"], step))

    small.image_to_image(noise_picture(64), strength=0.34, seeds=3, callback_on_step_end=on_step)
    assert heard == [
        *(("decoder", step) for step in (6, 7, 8)),
        *(("upsampler_256", n) for n in (0, 1)),
    ]


# --- upscaling ---


def test_passes_begin_with_a_quarter_and_chain():
    sides = {"upsampler_256": 256, "upsampler_1024": 1024}

    def passes(size, side):
        return [(stage[-4:].strip("_"), to) for stage, to in plan_passes(size, side, sides)]

    first, last = ("256", 256), ("1024", 1024)
    assert passes(256, 64) == passes(128, 64) == passes(256, 20) == [first]
    assert passes(1024, 256) == passes(512, 300) == [last]
    assert passes(1024, 64) == passes(512, 100) == [first, last]
    assert passes(2048, 600) == [("1024", 2048)]
    assert passes(2048, 256) == [last, ("1024", 2048)]
    assert passes(4096, 64) == [first, last, ("1024", 4096)]
    assert passes(4096, 1024) == [("1024", 4096)]


def test_upscaling_is_the_upsampler_alone(small):
    picture = noise_picture(16)
    x = torch.from_numpy(levels(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    expected = (small.upsample(x.float(), [4]) + 1) / 2
    output = small.upscale(picture, 64, seeds=4, output_type="pt")
    torch.testing.assert_close(output.images, expected, atol=1e-5, rtol=0)
    assert output.settings["stages"] == ["upsampler_256"] and output.image_embeds is None
    chained = small.upscale(picture, 256, seeds=4, output_type="pt")
    assert torch.equal(chained.low_res[64], output.images)
    half = small.upscale(picture, 128, seeds=4, output_type="pt").images
    means = chained.images.reshape(1, 3, 128, 2, 128, 2).mean((3, 5))
    torch.testing.assert_close(half, means, atol=1e-5, rtol=0)


def test_pictures_are_upscaled_alike_alone_and_together(small):
    pictures = [noise_picture(64, 1), noise_picture(64, 2)]
    both = small.upscale(pictures, 256, seeds=[8, 9], output_type="pt").images
    alone = small.upscale(pictures[1], 256, seeds=9, output_type="pt").images
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)
    assert (both[1:] - small.upscale(pictures[1], 256, seeds=8, output_type="pt").images).any()


def test_a_picture_is_upscaled_by_its_own_passes_whatever_stands_beside_it(small):
    """One of 64 needs the last upsampler alone, though one of 16 beside it needs both."""
    tiny, large = noise_picture(16, 1), noise_picture(64, 2)
    both = small.upscale([large, tiny, large], 256, seeds=[8, 9, 7], output_type="pt")
    for row, picture in ((0, large), (1, tiny)):
        alone = small.upscale(picture, 256, seeds=8 + row, output_type="pt").images[0]
        torch.testing.assert_close(both.images[row], alone, atol=1e-4, rtol=0)
    given = torch.from_numpy(levels(large)).permute(2, 0, 1) / 255
    torch.testing.assert_close(both.low_res[64][0], given)
    assert both.low_res[64].shape == (3, 3, 64, 64)


def test_pictures_are_upscaled_a_few_at_a_time(small, monkeypatch):
    seen = {stage: [] for stage in SIDES}
    hooks = [
        small.components[stage].register_forward_pre_hook(
            lambda _, inputs, rows=rows: rows.append(len(inputs[0]))
        )
        for stage, rows in seen.items()
    ]
    monkeypatch.setattr(stages, "PIXELS_AT_ONCE_ON_CPU", 3 * 64**2)
    pictures = [noise_picture(16, seed) for seed in range(4)]
    settings = {f"{stage}_num_inference_steps": 1 for stage in SIDES} | {"seeds": 1}
    bounded = small.upscale(pictures, 256, output_type="pt", **settings).images
    assert seen == {"upsampler_256": [3, 1], "upsampler_1024": [1] * 4}
    asked = small.upscale(pictures, 256, max_batch_size=2, output_type="pt", **settings).images
    assert seen["upsampler_256"][2:] == seen["upsampler_1024"][4:] == [2, 2]
    torch.testing.assert_close(asked, bounded, atol=1e-4, rtol=0)
    for hook in hooks:
        hook.remove()


def smooth_picture(side):
    """A picture whose colours change slowly, so that a seam would be seen."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    colours = [np.sin(5 * rows + 3 * columns), np.cos(4 * columns), np.sin(6 * rows * columns)]
    return Image.fromarray(((np.stack(colours, -1) + 1) * 127).astype(np.uint8))


def seam_ratio(x, starts, tile_size, cell=8):
    """Mean step between neighbouring cells across the borders of tiles, over that elsewhere.

    The network works on cells of 8 pixels, whose pixels differ by their own weights: each is
    compared with the one at its place in the next cell.
    """
    borders = {*starts[1:], *(start + tile_size for start in starts[:-1])}
    cells = torch.stack([x, x.mT]).unflatten(-1, (-1, cell))
    steps = cells.diff(dim=-2).abs().mean(dim=(0, 1, 2, 3, 5))
    seam = torch.zeros(len(steps), dtype=torch.bool)
    seam[[border // cell - 1 for border in borders]] = True
    return (steps[seam].mean() / steps[~seam].mean()).item()


def test_seams_do_not_show(small, make_pipe):
    """Neighbours differ no more where tiles end than elsewhere; without overlap they do.

    The random network is made deaf to noise, whose texture would hide a seam.
    """
    upsampler = copy.deepcopy(small.upsampler_1024)
    with torch.no_grad():
        upsampler.unet.conv_in.weight[:, : 3 * 8**2] = 0
    parts = {"decoder": small.decoder, "upsampler_256": small.upsampler_256}
    pipe = make_pipe(**parts, upsampler_1024=upsampler, default_steps=small.config.default_steps)

    def ratio(size, tile_size, overlap):
        tiles = {"tile_size": tile_size, "tile_overlap": overlap}
        steps = {"upsampler_1024_num_inference_steps": 1}
        picture = smooth_picture(256)
        x = pipe.upscale(picture, size, seeds=2, output_type="pt", **tiles, **steps).images
        assert x.shape[-1] == size
        return seam_ratio(x, tile_starts(size, tile_size, overlap, 16), tile_size)

    assert ratio(512, 128, 32) < 1.1
    assert ratio(512, 128, 0) > 1.5
    assert ratio(1024, 256, 64) < 1.1


def test_tiles_share_the_noise_of_the_whole_picture(small):
    """What is left of the noise in the midst of sampling is the same for tiles of any size."""
    seen = []

    def look(pipe, step, t, values):
        seen.append(values["x_t"].clone())

    for tile_size in (128, 512):
        small.upscale(
            smooth_picture(256),
            512,
            seeds=2,
            tile_size=tile_size,
            callback_on_step_end=look,
        )
    first, _, second, _ = (x_t.flatten() for x_t in seen)  # each after one of its two steps
    assert torch.corrcoef(torch.stack([first, second]))[0, 1] > 0.95


# --- models that lack a stage ---


def test_a_model_without_its_last_stage_edits_and_upscales(small, make_pipe):
    """As Karlo, whose largest picture has 256 pixels a side, here 64."""
    parts = {"decoder": small.decoder, "upsampler_256": small.upsampler_256}
    steps = small.config.default_steps
    pipe = make_pipe(**parts, upsampler_1024=None, default_steps=steps)
    picture, mask = noise_picture(64), hole(64)
    known = levels(mask) == 0
    drawn = levels(pipe.inpaint(picture, mask, CAPTION, seeds=3).images[0])
    assert (drawn[known] == levels(picture)[known]).all()
    assert pipe.outpaint(picture, canvas=100, seeds=3).images[0].size == (64, 64)
    assert pipe.image_to_image(picture, CAPTION, seeds=3).images[0].size == (64, 64)
    assert pipe.upscale(noise_picture(16), seeds=3).images[0].size == (64, 64)
    output = pipe.upscale(picture, 256, seeds=3)
    assert output.settings["stages"] == ["upsampler_256"]
    assert output.images[0].size == (256, 256)
    bare = make_pipe(decoder=small.decoder, upsampler_256=None, upsampler_1024=None)
    assert bare.inpaint(noise_picture(16), hole(16), seeds=3).images[0].size == (16, 16)
    with pytest.raises(ValueError, match="^size: this model has no upsampler"):
        bare.upscale(noise_picture(16))


# --- faults ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": Image.new("L", (16, 16))}, "^mask: nothing"),
        ({"mask": Image.new("L", (16, 17), "white")}, "^mask: it has 16 x 17 pixels where"),
        ({"mask": None}, "^mask: give a mask, or a picture that is transparent"),
        ({"mask": "white"}, "^mask: give Pillow images"),
        ({"mask": torch.ones(1, 1, 16, 16)}, "^mask: the shape"),
        ({"mask": torch.full((16, 16), 2.0)}, "^mask: a tensor"),
        ({"mask": torch.tensor(1.0)}, "^mask: the shape"),
        ({"mask": torch.ones(0, 16, 16)}, "^mask: the shape"),
        ({"mask": [hole(16)] * 2}, "^mask: 2 are given for 1"),
        ({"image": "cat.png"}, "^image: give Pillow"),
        ({"num_resamples": 0}, "^num_resamples: give a number from 1"),
        ({"jump_length": 2.5}, "^jump_length: give a number from 1"),
        ({"size": 100}, "^size: this model draws"),
        ({"prompt": None, "text_embeds": torch.ones(1, 32)}, "^text_embeds: give what encode"),
        (
            {"prompt": ["a", "b"], "image": [noise_picture(16)] * 3},
            "^prompt: 2 are given where 1 or 3",
        ),
    ],
)
def test_what_cannot_be_inpainted_is_named(small, change, message):
    given = {"image": noise_picture(16), "mask": hole(16), "prompt": CAPTION, **change}
    with pytest.raises(ValueError, match=message):
        small.inpaint(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"canvas": 15}, "^canvas: give pixels a side from 16"),
        ({"canvas": 16}, "^canvas: the picture fills 16"),
        ({"canvas": 1e9}, "^canvas"),
        ({"canvas": 20, "offset": (5, 0)}, r"^offset: .* to \(4, 4\)"),
        ({"canvas": 20, "offset": 3}, "^offset"),
    ],
)
def test_a_canvas_that_does_not_fit_is_named(small, given, message):
    with pytest.raises(ValueError, match=message):
        small.outpaint(noise_picture(16), **given)


@pytest.mark.parametrize("strength", [0, 1.1, -1, float("nan"), "half", True])
def test_a_strength_that_cannot_be_is_named(small, strength):
    with pytest.raises(ValueError, match="^strength: give a number above 0 and up to 1"):
        small.image_to_image(noise_picture(16), CAPTION, strength)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 100}, "^size: from 64 pixels a side this model makes 128, 256, 512, 1024, not"),
        ({"size": 64}, "^size: from 64"),
        ({"tile_size": 100}, "^tile_size: give a multiple of 16"),
        ({"tile_size": 128, "tile_overlap": 128}, "^tile_overlap: give pixels from 0 to 112"),
        ({"upsampler_1024_num_inference_steps": 0.5}, "^upsampler_1024_num_inference_steps"),
        ({"seeds": [1, 2]}, "^seeds: 2 are given for 1"),
        ({"max_batch_size": 0}, "^max_batch_size: give a number from 1"),
        ({"output_type": "jpg"}, "^output_type"),
        ({"callback_on_step_end": 3}, "^callback_on_step_end"),
    ],
)
def test_what_cannot_be_upscaled_is_named(small, given, message):
    with pytest.raises(ValueError, match=message):
        small.upscale(noise_picture(64), **given)


def test_a_scheduler_that_cannot_repaint_is_named_before_anything_runs(small, make_pipe):
    parts = {name: small.components[name] for name in ("decoder", *SIDES)}
    pipe = make_pipe(**parts, default_steps=small.config.default_steps)
    pipe.decoder_scheduler = EulerDiscreteScheduler.from_config(pipe.decoder_scheduler.config)
    with pytest.raises(ValueError, match="^decoder_scheduler: EulerDiscreteScheduler cannot"):
        pipe.inpaint(noise_picture(16), hole(16), CAPTION)
    ddim = {"decoder": {"scheduler": "ddim"}}
    drawn = pipe.inpaint(noise_picture(16), hole(16), CAPTION, stages=ddim)
    assert drawn.images[0].size == (16, 16)
    assert pipe.image_to_image(noise_picture(16), CAPTION).images[0].size == (16, 16)
