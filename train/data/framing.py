"""From a picture's file to the pixels that a stage asks for, decoding no more than it needs.

A JPEG is decoded at 1/2, 1/4 or 1/8 where that is still large enough; turning, transparency and
colours are worked out for the part that is kept, and scaling reads that part alone.
"""

import math

import numpy as np
from PIL import Image

from unclip.pictures import MAX_PIXELS, decode, flatten, open_picture, upright

from .sources.records import BELOW_MIN_SIDE, BadSample

FRAMINGS = ("centre", "random", "pad")
BICUBIC = Image.Resampling.BICUBIC
REACH = 2  # of the bicubic kernel, in pixels of the smaller picture
Box = tuple[int, int, int, int]  # left, top, right, bottom


def open_reduced(
    content: bytes, side: int, max_pixels: int = MAX_PIXELS, min_side: int = 0
) -> Image.Image:
    """An opened picture that will be decoded no larger than its shorter side >= side asks for.

    Only JPEG can be decoded small: at an eighth, a quarter or half of its width.

    Raises:
        PictureError: see open_picture.
        BadSample: when the shorter side, as it is stored, is below min_side.
    """
    picture = open_picture(content, max_pixels)
    shorter = min(picture.size)
    if shorter < min_side:
        raise BadSample(BELOW_MIN_SIDE, f"{picture.size[0]} x {picture.size[1]}")
    if picture.format in ("JPEG", "MPO") and shorter >= 2 * side:
        scale = side / shorter  # draft keeps both sides at or above the size asked for
        picture.draft(None, tuple(math.ceil(length * scale) for length in picture.size))
    return picture


def read_square(
    content: bytes,
    size: int,
    framing: str = "centre",
    rng: np.random.Generator | None = None,
    max_pixels: int = MAX_PIXELS,
    min_side: int = 0,
) -> np.ndarray:
    """A picture as a square [S, S, 3] uint8, scaled with antialiasing.

    framing: "centre" and "random" cut the largest square, in the middle or anywhere; "pad" keeps
    everything, on white. min_side: a picture with a shorter side below it is refused.

    Raises:
        PictureError, BadSample: when the picture cannot be used.
    """
    picture = open_reduced(content, size, max_pixels, min_side)
    picture = upright(decode(picture))
    if framing == "pad":
        return np.asarray(_padded(flatten(picture), size))
    side = min(picture.size)
    room = np.array(picture.size) - side
    left, top = (rng.integers(room + 1) if framing == "random" else room // 2).tolist()
    part = flatten(picture.crop((left, top, left + side, top + side)))
    return np.asarray(part.resize((size, size), BICUBIC))


def _padded(picture: Image.Image, size: int) -> Image.Image:
    scale = size / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    square = Image.new("RGB", (size, size), "white")
    square.paste(
        picture.resize((width, height), BICUBIC), ((size - width) // 2, (size - height) // 2)
    )
    return square


def scaled_size(picture: Image.Image, size: int) -> tuple[int, int]:
    """Width and height once the shorter side is scaled down to size; never enlarged."""
    scale = min(1.0, size / min(picture.size))
    return tuple(round(length * scale) for length in picture.size)


def read_part(picture: Image.Image, scaled: tuple[int, int], box: Box) -> np.ndarray:
    """The pixels [H, W, 3] that a box has in the scaled picture, without scaling the rest.

    Args:
        picture: decoded and upright.
        scaled: width and height of the whole, scaled.
        box: left, top, right, bottom within the scaled picture.
    """
    scales = [length / small for length, small in zip(picture.size, scaled, strict=True)] * 2
    source = [end * scale for end, scale in zip(box, scales, strict=True)]  # of float pixels
    reach = [REACH * max(1.0, scale) + 1 for scale in scales[:2]]
    left, top = (max(0, math.floor(source[i] - reach[i])) for i in (0, 1))
    right, bottom = (min(picture.size[i], math.ceil(source[i + 2] + reach[i])) for i in (0, 1))
    part = flatten(picture.crop((left, top, right, bottom)))
    inside = (source[0] - left, source[1] - top, source[2] - left, source[3] - top)
    size = (box[2] - box[0], box[3] - box[1])
    return np.asarray(part.resize(size, BICUBIC, box=inside))
