"""Where captions and real pictures come from: a folder of drawings, or any captioned pictures.

A data source gives examples by group. Drawings have two: "heldout", pairs of concept and style that
no network was trained on though the concept was seen in the other styles, and "seen", pairs that
may have been trained on. Captioned pictures have one, "pairs".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from unclip.pictures import PictureError, open_picture, to_rgb
from unclip_train.data.captions import noun_phrase
from unclip_train.data.compose import over, read_picture
from unclip_train.data.drawings import (
    EMOJI_STYLES,
    Drawing,
    evaluation_drawings,
    files_present,
    load_drawings,
)
from unclip_train.data.sources.opening import kind_of, open_source
from unclip_train.data.sources.records import BadSample, Source
from unclip_train.data.vocabulary import BACKGROUNDS


@dataclass(frozen=True)
class Example:
    """A caption and the real picture that belongs to it; drawings also say what they show.

    pixels() gives the picture, [S, S, 3] uint8.
    """

    id: str
    caption: str
    pixels: Callable[[], np.ndarray] = field(compare=False, repr=False)
    drawing: Drawing | None = field(default=None, compare=False, repr=False)

    @property
    def style(self) -> str:
        """The style of a drawing, "" of another picture."""
        return "" if self.drawing is None else self.drawing.style

    @property
    def category(self) -> str:
        """The category of a drawing, "" of another picture."""
        return "" if self.drawing is None else self.drawing.category


@dataclass(frozen=True)
class DataSource:
    """Examples by group, all of one size.

    `training` is what a model may have been trained on, styles included that are not asked for;
    of drawings, those of EMOJI_STYLES.
    `styles` are those of drawings, empty for other pictures.
    """

    name: str
    fingerprint: str
    size: int
    groups: dict[str, list[Example]]
    training: list[Example]
    styles: tuple[str, ...] = ()

    @property
    def everything(self) -> list[Example]:
        """The examples of all groups."""
        return [example for group in self.groups.values() for example in group]


def styled_caption(drawing: Drawing, subject: str | None = None) -> str:
    """The caption that the evaluation asks for: "a red apple, noto style"."""
    return f"{subject or noun_phrase(drawing.name)}, {drawing.style} style"


def caption_without_style(example: Example) -> str:
    """The caption of an example that leaves the style open; of other pictures their own."""
    return example.caption if example.drawing is None else noun_phrase(example.drawing.name)


def example_of(drawing: Drawing, size: int) -> Example:
    """A drawing on white with its caption."""

    def pixels() -> np.ndarray:
        return over(read_picture(drawing.path(size), size), BACKGROUNDS["white"])

    return Example(drawing.id, styled_caption(drawing), pixels, drawing)


def open_drawings(folder: Path, size: int, styles: Iterable[str] | None = None) -> DataSource:
    """The drawings that `unclip-data emoji` renders, of concepts that all families draw.

    Only EMOJI_STYLES count, so that further artists in the folder change no figure.

    styles: of EMOJI_STYLES; all of them unless given.

    Raises:
        ValueError: for a style that does not exist, or a size that was not rendered.
    """
    wanted = EMOJI_STYLES if styles is None else tuple(styles)
    for style in wanted:
        if style not in EMOJI_STYLES:
            raise ValueError(f"--styles: {style!r} is unknown; use {', '.join(EMOJI_STYLES)}")
    listed = [d for d in load_drawings(folder) if d.style in EMOJI_STYLES]
    evaluated = {drawing.id for drawing in evaluation_drawings(listed)}
    present = files_present(folder, size)
    drawings = [d for d in listed if d.shared and d.style in wanted and d.id in present]
    heldout = [example_of(d, size) for d in drawings if d.id in evaluated]
    seen = [example_of(d, size) for d in drawings if not d.held_out]
    if not seen:
        raise ValueError(
            f"--data: {folder} holds no drawing of {size} pixels; render them with "
            f"`unclip-data emoji --output {folder} --sizes {size}`"
        )
    groups = {"heldout": heldout, "seen": seen} if heldout else {"seen": seen}
    training = [
        example_of(d, size) for d in listed if d.shared and not d.held_out and d.id in present
    ]
    used = tuple(style for style in EMOJI_STYLES if any(d.style == style for d in drawings))
    mark = fingerprint_of(f"{d.id}|{d.name}|{d.held_out}" for d in drawings)
    return DataSource(folder.name, mark, size, groups, training, used)


def open_captioned(address: str, size: int) -> DataSource:
    """Any source of captioned pictures that training reads; see open_source.

    Of each picture the first caption is asked for, and the central square is seen, brought to
    size x size pixels. Pictures without a caption are passed over.

    Raises:
        FileNotFoundError, ValueError: when nothing can be read there.
    """
    source = open_source(address)
    examples = []
    for index in range(len(source)):
        try:
            caption = source.captions(index)[0]
        except BadSample:
            continue
        pixels = partial(read_square, source, index, size)
        examples.append(Example(source.name(index), caption, pixels))
    if len({example.caption for example in examples}) < 2:
        raise ValueError(f"--data: {address} holds fewer than two captions to tell apart")
    name = Path(address).name or address
    return DataSource(name, source.fingerprint, size, {"pairs": examples}, examples)


def read_square(source: Source, index: int, size: int) -> np.ndarray:
    """The central square of a source's picture, [size, size, 3] uint8.

    Raises:
        ValueError: when it is missing or no picture.
    """
    try:
        picture = to_rgb(open_picture(source.picture(index)))
    except (BadSample, PictureError) as error:
        raise ValueError(f"--data: cannot use {source.name(index)} ({error})") from None
    return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC))


def open_data(address: str, size: int, styles: Iterable[str] | None = None) -> DataSource:
    """A folder of drawings as `unclip-data emoji` writes it, else a source of captioned pictures.

    Raises:
        FileNotFoundError, ValueError: beginning with the option at fault.
    """
    try:
        if kind_of(address) == "drawings":
            return open_drawings(Path(address), size, styles)
        if styles:
            raise ValueError(f"--styles: {address} holds no drawings; leave it out")
        return open_captioned(address, size)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace("data.source:", "--data:", 1)) from None


def fingerprint_of(lines: Iterable[str]) -> str:
    """16 hexadecimal digits that tell a list of lines from others."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]
