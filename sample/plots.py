"""X/Y plots: the same picture under every pair of values of two options, on one sheet."""

from __future__ import annotations

import argparse
import secrets
from typing import Any

from unclip_sample.prompts import OWN, option
from unclip_sample.request import MAX_PIXELS, RequestError, first_given, read_record
from unclip_sample.words import nearest, whole

MAX_CELLS = 400
CELL = 256
TEXTS = ("prompt", "negative_prompt", "prior_negative_prompt")
HOLD_COMMAS = (*TEXTS, "guidance_interval")


def add_words(group: argparse._ArgumentGroup) -> None:
    """Options of plots."""
    axis = "OPTION=VALUE,..."
    group.add_argument("--x", metavar=axis, help="columns of a plot; prompt alone: every --prompt")
    group.add_argument("--y", metavar=axis, help="rows of a plot")
    group.add_argument("--cell", type=cell, metavar="N", help="pixels of a plot's cells; 256")


def cell(text: str) -> int:
    """Pixels a side of a plot's cells."""
    return whole(text, 16, 1024)


def wanted(args: argparse.Namespace) -> bool:
    """Whether a plot is asked for.

    Raises:
        RequestError: when there is but the size of its cells.
    """
    asked = args.x is not None or args.y is not None
    if args.cell is not None and not asked:
        raise RequestError("--cell: give it with --x or --y")
    return asked


def read_axis(word: str, text: str | None, args: argparse.Namespace, parser: Any) -> list[dict]:
    """The options that each place on an axis sets; one empty place where there is no axis."""
    if text is None:
        return [{}]
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if name not in OWN or name in ("num_images", "best_of"):
        near = nearest(name, list(OWN))
        hint = f" (did you mean {near}?)" if near else ""
        raise RequestError(f"{word}: {name!r} is no option that a plot can vary{hint}")
    if name == "prompt" and not equals:
        if not args.prompt:
            raise RequestError(f"{word}: prompt needs --prompt, once for each place")
        return [{"prompt": prompt} for prompt in args.prompt]
    parts = [part.strip() for part in values.split("|" if name in HOLD_COMMAS else ",")]
    if not all(parts):
        raise RequestError(
            f"{word}: give {name}=VALUE,VALUE,... (texts and intervals are parted by |)"
        )
    try:
        return [{name: option(name, part, parser)} for part in parts]
    except ValueError as error:
        raise RequestError(f"{word}: {error}") from None


def read_cells(args: argparse.Namespace, parser: Any) -> tuple[list[argparse.Namespace], int]:
    """The options of every cell, row after row, and the number of columns.

    Raises:
        RequestError: for axes that cannot be.
    """
    columns = read_axis("--x", args.x, args, parser)
    rows = read_axis("--y", args.y, args, parser)
    if set(columns[0]) & set(rows[0]):
        raise RequestError("--y: vary another option than --x does")
    if args.num_images != 1 or args.prompts or args.best_of:
        raise RequestError("--x: a plot has one picture a cell; leave out --num-images and files")
    common = common_options(args, len(columns) * len(rows))
    pairs = [{**row, **column} for row in rows for column in columns]
    cells = [argparse.Namespace(**{**common, **pair}) for pair in pairs]
    return cells, len(columns)


def common_options(args: argparse.Namespace, num_cells: int) -> dict[str, Any]:
    """The options of all cells, but for what the axes say.

    Raises:
        RequestError: for too many cells or too large ones, or when nothing says what to draw.
    """
    side = first_given(args.cell, CELL)
    if num_cells > MAX_CELLS:
        raise RequestError(f"--x: {num_cells} cells; {MAX_CELLS} are the most")
    if num_cells * side**2 > MAX_PIXELS:
        raise RequestError(f"--cell: {num_cells} cells of {side} pixels are too many")
    source = read_record(args.source) if args.source else {}
    has_picture = args.image is not None or source.get("z_img") is not None
    prompt = args.prompt[0].strip() if args.prompt else source.get("prompt") or ""
    varied = {(axis or "").partition("=")[0].strip() for axis in (args.x, args.y)}
    if not (prompt or has_picture or "prompt" in varied):
        raise RequestError("--prompt is missing: say what to draw")
    # One seed, so that the cells differ by what the axes say alone.
    seed = first_given(args.seed, source.get("seed"), secrets.randbits(32))
    return {**vars(args), "prompt": prompt, "seed": seed, "cell": side}


def label(args: argparse.Namespace, cell: argparse.Namespace) -> str:
    """What a cell varies, in few words."""
    names = [axis.partition("=")[0].replace("-", "_") for axis in (args.x, args.y) if axis]
    return ", ".join(
        str(value) if name in TEXTS else f"{name.replace('_', ' ')} {shown(value)}"
        for name in names
        for value in [getattr(cell, name)]
    )


def shown(value: Any) -> str:
    """A value in few words; two of them as the command line has them."""
    return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)
