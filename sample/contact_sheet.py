"""Many pictures on one, each with a line below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

GAP = 12
TEXT_SIZE = 13
INK, PAPER = (60, 60, 60), (255, 255, 255)


def contact_sheet(
    pictures: Sequence[Image.Image], labels: Sequence[str], cell: int = 176, columns: int = 5
) -> Image.Image:
    """Pictures in rows, fitted into squares of `cell` pixels, each over its label.

    A label that is too long loses its end. The same number of labels as of pictures, at least one.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not pictures or len(pictures) != len(labels):
        raise ValueError(f"labels: {len(labels)} for {len(pictures)} pictures; give one for each")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    step, line = cell + GAP, TEXT_SIZE + 8
    sheet = Image.new("RGB", (columns * step + GAP, rows * (step + line) + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = GAP + number % columns * step, GAP + number // columns * (step + line)
        small = fit(picture, cell)
        sheet.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
        pen.text((left, top + cell + 4), shorten(label, cell, font.getlength), INK, font)
    return sheet


def fit(picture: Image.Image, side: int) -> Image.Image:
    """A picture scaled, up or down, so that its longer side is `side` pixels."""
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    return picture.resize(size, reducing_gap=3.0)


def shorten(text: str, width: float, measure) -> str:
    """Text that is at most `width` wide as measure(text) tells, with "..." for what is lost."""
    if measure(text) <= width:
        return text
    while text and measure(text + "...") > width:
        text = text[:-1]
    return text + "..."
