"""Attributes: the colour around a drawing, and which thing stands on which side."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from unclip.metrics.attributes import background_colour, cielab, halves, sides_agree
from unclip_train.data.compose import Scene, paint
from unclip_train.data.vocabulary import BACKGROUNDS


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture))


def on(colour, draw=lambda pen: None, size=64) -> torch.Tensor:
    """A picture of one colour with something drawn on it."""
    picture = Image.new("RGB", (size, size), colour)
    draw(ImageDraw.Draw(picture))
    return pixels(picture)


def test_cielab_of_known_colours():
    """Published values of the primaries; near black L* = 903.3 Y, with Y = value / 12.92."""
    rgb = [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255), (119, 119, 119), (1, 1, 1)]
    lab = [(100, 0, 0), (0, 0, 0), (53.2408, 80.0925, 67.2032), (32.2970, 79.1875, -107.8602)]
    lab += [(50.0344, 0, 0), (0.2742, 0, 0)]
    found = cielab(torch.tensor(rgb, dtype=torch.uint8))
    torch.testing.assert_close(found, torch.tensor(lab).double(), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_the_twelve_backgrounds_are_named_whatever_stands_on_them(name):
    rng = np.random.default_rng(0)
    for index, other in enumerate(BACKGROUNDS):
        if other == name:
            continue
        disc = np.zeros((64, 64, 4), dtype=np.uint8)
        rows, columns = np.mgrid[:64, :64]
        disc[(rows - 32) ** 2 + (columns - 32) ** 2 < 31**2] = (*BACKGROUNDS[other], 255)
        side = rng.uniform(0.75, 1.0)
        left, top = rng.uniform(0, 1 - side, 2)
        boxes = [((left, top, side),), ((0.02, 0.3, 0.46), (0.52, 0.3, 0.46))][index % 2]
        picture = paint(Scene("copies", boxes, "", name), [disc], 64)
        assert background_colour(torch.tensor(picture), BACKGROUNDS) == name, other


def test_noise_blur_and_a_shade_off_do_not_matter():
    rng = np.random.default_rng(1)
    for name, colour in BACKGROUNDS.items():
        clean = on(colour, lambda pen: pen.ellipse((14, 14, 50, 50), (90, 10, 60)))
        noisy = np.clip(clean.numpy() + rng.normal(0, 3, clean.shape) + 5, 0, 255)
        soft = Image.fromarray(noisy.astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
        assert background_colour(pixels(soft), BACKGROUNDS) == name


def test_the_outline_and_glow_of_a_drawing_do_not_count():
    """A drawing with a broad soft glow: most pixels are neither thing nor background."""

    def glow(pen):
        for radius in range(28, 8, -1):
            level = 255 - 8 * (28 - radius)
            pen.ellipse((32 - radius, 32 - radius, 32 + radius, 32 + radius), (level, level, 80))

    assert background_colour(on(BACKGROUNDS["blue"], glow), BACKGROUNDS) == "blue"


def test_no_border_no_colour():
    full = on("white", lambda pen: pen.rectangle((0, 0, 63, 31), "black"))
    stripes = torch.tensor([(220, 30, 30), (30, 160, 60), (40, 80, 220), (250, 220, 50)])
    striped = stripes.to(torch.uint8)[torch.arange(64) % 4].expand(64, 64, 3)
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    assert background_colour(striped, BACKGROUNDS) is None
    assert background_colour(noise, BACKGROUNDS) is None
    assert background_colour(full, BACKGROUNDS) in {"white", "black", None}
    frame = on("red", lambda pen: [pen.point((x, y), "white") for x in range(64) for y in (0, 63)])
    assert background_colour(frame, BACKGROUNDS) in {"red", None}


def test_a_picture_of_nothing_but_background_has_its_colour():
    assert background_colour(on(BACKGROUNDS["pink"]), BACKGROUNDS) == "pink"
    large = on(BACKGROUNDS["brown"], lambda pen: pen.ellipse((9, 9, 990, 990), "blue"), 1000)
    assert background_colour(large, BACKGROUNDS) == "brown"


def test_halves_keep_each_side_and_pad_with_the_background():
    x = torch.full((2, 3, 8, 8), 0.25)
    x[:, :, 2:6, 1:3], x[:, :, 2:6, 5:7] = 1.0, -1.0
    left, right = halves(x, beside=True)
    assert left.shape == right.shape == x.shape
    assert torch.equal(left[..., 2:6], x[..., :4]) and torch.equal(right[..., 2:6], x[..., 4:])
    assert (left[..., :2] == 0.25).all() and (right[..., 6:] == 0.25).all()
    upper, lower = halves(x.transpose(2, 3), beside=False)
    assert torch.equal(upper, left.transpose(2, 3)) and torch.equal(lower, right.transpose(2, 3))


def test_sides_agree_in_order_and_not_when_swapped():
    apple, pear = torch.randn(2, 30, 16)
    left, right = apple + 0.3 * torch.randn(30, 16), pear + 0.3 * torch.randn(30, 16)
    assert sides_agree(left, right, apple, pear).all()
    assert not sides_agree(right, left, apple, pear).any()
    assert not sides_agree(left, left, apple, pear).any()


def test_what_does_not_fit_is_refused():
    z = torch.randn(4, 8)
    for mistake, message in (
        (lambda: background_colour(torch.zeros(3, 64, 64), BACKGROUNDS), r"picture: give \[H, W"),
        (lambda: background_colour(on("red", size=4), BACKGROUNDS), "picture: give 8 pixels"),
        (lambda: background_colour(on("red"), {}), "palette: give at least one"),
        (lambda: halves(torch.zeros(2, 3, 8, 6), beside=True), "x: give square pictures"),
        (lambda: sides_agree(z, z, z[:3], z), "z_txt_first: 3 rows beside 4 of z_first"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            mistake()
