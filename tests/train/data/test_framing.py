"""Squares and parts of pictures: right as if all were decoded, with less decoded."""

import io

import numpy as np
import pytest
from PIL import Image

from unclip.pictures import to_rgb
from unclip_train.data.framing import open_reduced, read_part, read_square, scaled_size
from unclip_train.data.sources.records import BadSample


def scene(width: int, height: int) -> Image.Image:
    """Smooth shapes and some fine texture, as a photograph has."""
    y, x = np.mgrid[:height, :width] / min(width, height)
    rng = np.random.default_rng(0)
    base = np.stack([np.sin(7 * x), np.cos(5 * y), np.sin(3 * x * y)], -1) * 80 + 128
    grain = rng.normal(0, 6, (height // 4 + 1, width // 4 + 1, 1)).repeat(4, 0).repeat(4, 1)
    return Image.fromarray((base + grain[:height, :width]).clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, **options) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=95, **options)
        return file.getvalue()


@pytest.mark.parametrize(("side", "share"), [(64, 64), (128, 16), (256, 4), (600, 1)])
def test_a_jpeg_is_decoded_no_larger_than_needed(side, share):
    """Pixels decoded of 1,024 x 768: a 64th for 64 pixels, all for 600."""
    content = jpeg(scene(1024, 768))
    picture = open_reduced(content, side)
    picture.load()
    assert 1024 * 768 / (picture.size[0] * picture.size[1]) == share
    assert min(picture.size) >= side
    whole = Image.open(io.BytesIO(content)).convert("RGB").crop((128, 0, 896, 768))
    wanted = np.asarray(whole.resize((side, side), Image.Resampling.BICUBIC), float)
    assert np.abs(read_square(content, side) - wanted).mean() < 1.5


def test_a_part_is_that_of_the_whole():
    """Scaling the part alone gives what scaling everything and cutting gives."""
    picture = scene(300, 200)
    scaled = scaled_size(picture, 90)
    assert scaled == (135, 90)
    whole = np.asarray(picture.resize(scaled, Image.Resampling.BICUBIC), int)
    for box in ((0, 0, 32, 32), (40, 20, 72, 52), (103, 58, 135, 90), (0, 0, 135, 90)):
        part = read_part(picture, scaled, box).astype(int)
        assert np.abs(part - whole[box[1] : box[3], box[0] : box[2]]).max() <= 1


def test_transparency_of_a_part():
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert (read_part(picture, (32, 32), (8, 8, 24, 24)) == 255).all()


def test_squares_are_antialiased():
    """Stripes of one pixel become gray; picking pixels would make them black or white."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[::2] = 255
    with io.BytesIO() as file:
        Image.fromarray(stripes).save(file, "PNG")
        square = read_square(file.getvalue(), 32)
    assert np.abs(square.astype(int) - 128).max() <= 6


def test_framings():
    picture = Image.new("RGB", (90, 30), "red")
    picture.paste("blue", (30, 0, 60, 30))
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        content = file.getvalue()
    assert (read_square(content, 30) == (0, 0, 255)).all()
    padded = read_square(content, 30, "pad")
    assert (padded[:9] == 255).all() and (padded[15, 15] == (0, 0, 255)).all()
    rng = np.random.default_rng(0)
    places = {read_square(content, 30, "random", rng)[0].tobytes() for _ in range(20)}
    assert len(places) > 5


def test_orientation_comes_before_the_square():
    picture = Image.new("RGB", (400, 200), "red")
    picture.paste("blue", (0, 0, 100, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = jpeg(picture, exif=exif)
    turned = to_rgb(Image.open(io.BytesIO(content)))
    assert turned.size == (200, 400) and turned.getpixel((100, 20))[2] > 200  # blue on top
    pixels = read_square(content, 40, "pad")
    assert pixels[2, 20, 2] > 200 and pixels[37, 20, 0] > 200 and (pixels[20, 2] == 255).all()


def test_too_small_is_told_by_the_stored_size():
    content = jpeg(scene(640, 480))
    assert read_square(content, 32, min_side=480).shape == (32, 32, 3)
    with pytest.raises(BadSample, match="below data.min_side"):
        read_square(content, 32, min_side=481)
