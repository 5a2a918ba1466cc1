"""Pictures from anywhere come in one form, and hostile ones are refused before they are decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unclip.pictures import (
    BROKEN,
    NOT_A_PICTURE,
    TOO_MANY_PIXELS,
    PictureError,
    open_picture,
    to_rgb,
)


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, form, **options)
        return file.getvalue()


def pixel(content: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, int, int]:
    return to_rgb(open_picture(content)).getpixel(at)


def png_of(width: int, height: int, depth: int = 1) -> bytes:
    """A gray PNG of zeros: few bytes, many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    row = bytes(1 + -(-width * depth // 8))
    rows = zlib.compress(row * min(height, 64), 9)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_transparency_lies_over_white():
    hidden = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert pixel(encoded(hidden)) == (255, 255, 255)
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert all(abs(value - 127) <= 1 for value in pixel(encoded(half)))
    assert pixel(encoded(Image.new("LA", (4, 4), (0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0, 0, 0, 0])
    assert pixel(encoded(palette)) == (200, 0, 0)
    assert pixel(encoded(palette, transparency=0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_cut():
    gray = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert all(abs(value - 128) <= 1 for value in pixel(encoded(gray)))
    assert pixel(encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)))) == (255, 255, 255)


def test_cmyk_is_converted():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = pixel(encoded(cyan, "JPEG", quality=95))
    assert red < 20 and green > 200 and blue > 200


def test_orientation_is_followed():
    left_red = Image.new("RGB", (8, 4), "blue")
    left_red.paste("red", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    turned = to_rgb(open_picture(encoded(left_red, "PNG", exif=exif)))
    assert turned.size == (4, 8)
    assert turned.getpixel((0, 0)) == (255, 0, 0) and turned.getpixel((0, 7)) == (0, 0, 255)


def test_a_moving_picture_shows_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixel(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", NOT_A_PICTURE),
        (b"<!DOCTYPE html><html>404</html>", NOT_A_PICTURE),
        (png_of(13000, 13000), TOO_MANY_PIXELS),  # 169 million: below Pillow's own limit
        (png_of(30000, 30000), TOO_MANY_PIXELS),
        (encoded(Image.new("RGB", (64, 64), "red"))[:60], BROKEN),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], BROKEN),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_used_is_named(content, reason):
    with pytest.raises(PictureError) as error:
        to_rgb(open_picture(content))
    assert error.value.reason == reason


def test_the_limit_is_the_callers():
    content = encoded(Image.new("RGB", (20, 10)))
    assert open_picture(content, max_pixels=200).size == (20, 10)
    with pytest.raises(PictureError, match="20 x 10"):
        open_picture(content, max_pixels=199)


def test_formats_that_run_programs_are_not_opened():
    with pytest.raises(PictureError, match=NOT_A_PICTURE):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
