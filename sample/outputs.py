"""Where pictures are written: their names, and whether they can be written at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

DEFAULT_STEM = "unclip"
OTHER_PICTURES = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl"}
PICTURES = {".png", *OTHER_PICTURES}  # names that are no captions


class OutputError(Exception):
    """The pictures cannot be written where they should."""


def plan_outputs(
    output: str | None,
    num_images: int,
    overwrite: bool = False,
    mine: Sequence[int] | None = None,
) -> list[Path]:
    """The file of each picture, none of which exists unless it may be replaced.

    output: FILE.png for one picture, and for several the stem of FILE-0000.png, FILE-0001.png, ...;
    another name is a folder, for 0000.png, 0001.png, ...; None takes the first free of
    unclip.png, unclip-2.png, ... here. mine: the pictures that this process writes, where others
    write the rest at the same time; unless given, all.

    Raises:
        OutputError: when a file exists, or nothing can be written there.
    """
    if output is None:
        return first_free(num_images)
    path = Path(output)
    if not output or path.suffix.lower() in OTHER_PICTURES:
        raise OutputError(f"--output: give FILE.png or a folder, not {output!r}")
    paths = name_all(path, num_images)
    for target in paths if mine is None else [paths[index] for index in mine]:
        if target.is_dir():
            raise OutputError(f"--output: {target} is a folder")
        if os.path.lexists(target) and not overwrite:
            raise OutputError(f"--output: {target} exists; name another or add --overwrite")
    check_writable(paths[0].parent)
    return paths


def name_all(path: Path, num_images: int) -> list[Path]:
    """The names of num_images pictures that a file name or a folder stands for."""
    num_digits = max(4, len(str(num_images - 1)))
    numbers = [f"{index:0{num_digits}d}" for index in range(num_images)]
    if path.suffix.lower() != ".png":
        return [path / f"{number}.png" for number in numbers]
    if num_images == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in numbers]


def first_free(num_images: int) -> list[Path]:
    """Names in the current folder, none of which is taken."""
    number, stem = 1, DEFAULT_STEM
    while any(map(os.path.lexists, paths := name_all(Path(f"{stem}.png"), num_images))):
        number += 1
        stem = f"{DEFAULT_STEM}-{number}"
    check_writable(Path("."))
    return paths


def check_writable(folder: Path, option: str = "--output") -> None:
    """Refuse a folder in which no file can be made; it need not exist yet."""
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        if not existing.is_dir():
            raise NotADirectoryError(0, f"{existing} is no folder")
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{option}: cannot write in {folder} ({reason})") from None
