"""Pictures that come in and go out: uploads opened safely, drawings encoded."""

from __future__ import annotations

import io

from PIL import Image

from unclip.pictures import PictureError, decode, flatten, open_picture, upright
from unclip_sample.png import encode_png
from unclip_sample.serve.drawing import Drawn
from unclip_sample.serve.errors import invalid

MAX_PIXELS = 16_000_000
MAX_SIDE = 1024  # of the shorter side; no network looks at more
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
QUALITY = 90


def opened(content: bytes, field: str) -> Image.Image:
    """An uploaded picture, RGBA where parts of it are transparent, else RGB.

    Raises:
        ApiError: 400, for what is no picture, is damaged, or has too many pixels.
    """
    try:
        with open_picture(content, MAX_PIXELS) as source:
            picture = upright(decode(source))
            see_through = picture.has_transparency_data
            picture = picture.convert("RGBA") if see_through else flatten(picture)
    except PictureError as error:
        raise invalid(field, f"{field}: {error}", code="invalid_image") from None
    return reduced(picture)


def reduced(picture: Image.Image) -> Image.Image:
    """The picture, scaled down by means of areas where it is larger than any use of it."""
    short = min(picture.size)
    if short <= MAX_SIDE:
        return picture
    width, height = (round(side * MAX_SIDE / short) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)


def encoded(drawn: Drawn, form: str, compression: int | None, metadata: bool = True) -> bytes:
    """The file of a drawing; a PNG holds how it was made unless metadata is off.

    compression: 0 to 100, of JPEG and WebP; 100 is OpenAI's word for the best quality.
    """
    if form == "png":
        return encode_png(drawn.picture, drawn.record if metadata else None)
    with io.BytesIO() as file:
        drawn.picture.save(file, form, quality=QUALITY if compression is None else compression)
        return file.getvalue()


def preview(picture: Image.Image, form: str) -> bytes:
    """The file of a picture on its way."""
    return encoded(Drawn(picture, 0, {}), form, None, metadata=False)
