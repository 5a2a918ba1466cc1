"""Several pictures as one: a sheet of them, or a GIF or WebP that goes there and back."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unclip_sample.outputs import OutputError, check_writable
from unclip_sample.writing import write_whole

ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
MAX_COLUMNS = 10  # of a sheet that is one row
MILLISECONDS = 150  # that a frame is seen; the first and the last for longer
MILLISECONDS_AT_ENDS = 600


def is_animation(output: str | None) -> bool:
    """Whether the name of an output asks for moving pictures."""
    return output is not None and Path(output).suffix.lower() in ANIMATIONS


def plan_animation(output: str, overwrite: bool) -> Path:
    """The file of an animation, which does not exist unless it may be replaced.

    Raises:
        OutputError: when it exists, or nothing can be written there.
    """
    path = Path(output)
    if path.is_dir():
        raise OutputError(f"--output: {path} is a folder")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"--output: {path} exists; name another or add --overwrite")
    check_writable(path.parent)
    return path


def save_animation(pictures: Sequence[Any], path: Path, overwrite: bool) -> None:
    """Write pictures as a GIF or a WebP, as the name says, there and back without end."""
    order = [*pictures, *pictures[-2:0:-1]]
    shown = [MILLISECONDS] * len(order)
    shown[0] = shown[len(pictures) - 1] = MILLISECONDS_AT_ENDS
    settings = {"save_all": True, "append_images": order[1:], "duration": shown, "loop": 0}
    with io.BytesIO() as file:
        order[0].save(file, ANIMATIONS[path.suffix.lower()], **settings)
        write_whole(path, file.getvalue(), overwrite)


def sheet(pictures: Sequence[Any], num_columns: int | None = None) -> Any:
    """Pictures of one size, row by row: a single row unless they are many."""
    from PIL import Image

    many = len(pictures) > MAX_COLUMNS
    columns = num_columns or (math.isqrt(len(pictures) - 1) + 1 if many else len(pictures))
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % columns * width, number // columns * height))
    return whole
