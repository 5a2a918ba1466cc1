"""Pictures from anywhere, opened safely and brought to one form: upright, on white, 8 bits.

Opening reads a header and checks it; nothing is decoded before the number of pixels is known.
"""

import io
import os
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000  # 192 MB once decoded

NOT_A_PICTURE = "not a picture"
TOO_MANY_PIXELS = "too many pixels"
BROKEN = "broken picture"


class PictureError(ValueError):
    """A picture that cannot be used; `reason` is one of the three above."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def open_picture(
    source: bytes | str | os.PathLike | BinaryIO, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read the header of a picture; its pixels are decoded when they are first asked for.

    Args:
        source: the file's content, its path, or an open file.
        max_pixels: width times height that may be decoded. Pillow's own bound lies at 179 million.

    Raises:
        PictureError: when it is of none of FORMATS, or too large.
        OSError: when a path cannot be read.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        picture = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(TOO_MANY_PIXELS, str(error)) from None
    except (Image.UnidentifiedImageError, FileNotFoundError, PermissionError) as error:
        if isinstance(error, Image.UnidentifiedImageError):
            raise PictureError(NOT_A_PICTURE, f"none of {', '.join(FORMATS)}") from None
        raise
    except Exception as error:  # a parser that met a header it did not expect
        raise PictureError(BROKEN, one_line(error)) from None
    width, height = picture.size
    if width * height > max_pixels:
        detail = f"{width} x {height} where {max_pixels:,} pixels are allowed"
        raise PictureError(TOO_MANY_PIXELS, detail)
    return picture


def decode(picture: Image.Image) -> Image.Image:
    """Decode the pixels of an opened picture (the first frame, where it moves).

    Raises:
        PictureError: when they are cut short or damaged.
    """
    try:
        picture.load()
    except Exception as error:
        raise PictureError(BROKEN, one_line(error)) from None
    return picture


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as it is where that cannot be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        return picture


def in_8_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16 bits a pixel scaled down to 8, which Pillow would cut; others as they are."""
    if not picture.mode.startswith("I"):
        return picture
    levels = (np.asarray(picture) / 257).round().clip(0, 255)
    return Image.fromarray(levels.astype(np.uint8))


def flatten(picture: Image.Image) -> Image.Image:
    """8 bits a channel, RGB: 16 bits are scaled down, transparency lies over white."""
    picture = in_8_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def to_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture, decoded, upright, over white, 8 bits a channel.

    Raises:
        PictureError: when its pixels are cut short or damaged.
    """
    return flatten(upright(decode(picture)))


def one_line(error: Exception) -> str:
    """What went wrong, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
