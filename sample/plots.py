"""X/Y plots: the same picture under every pair of values of two options, on one sheet."""

from __future__ import annotations

import argparse
import secrets
from typing import Any

from unclip_sample.prompts import OWN, option
from unclip_sample.request import RequestError
from unclip_sample.words import nearest

MAX_CELLS = 400
TEXTS = ("prompt", "negative_prompt", "prior_negative_prompt")


def add_words(group: argparse._ArgumentGroup) -> None:
    """Options of plots."""
    axis = "OPTION=VALUE,..."
    group.add_argument("--x", metavar=axis, help="columns of a plot; prompt alone: every --prompt")
    group.add_argument("--y", metavar=axis, help="rows of a plot")
    group.add_argument(
        "--cell", type=int, default=256, metavar="N", help="pixels of a plot's cells"
    )


def wanted(args: argparse.Namespace) -> bool:
    """Whether a plot is asked for."""
    return args.x is not None or args.y is not None


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
    parts = [part.strip() for part in values.split("|" if name in TEXTS else ",")]
    if not all(parts):
        raise RequestError(f"{word}: give {name}=VALUE,VALUE,... (texts are parted by |)")
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
    if len(columns) * len(rows) > MAX_CELLS:
        raise RequestError(f"--x: {len(columns) * len(rows)} cells; {MAX_CELLS} are the most")
    whole = {**vars(args), "prompt": args.prompt[0] if args.prompt else None}
    if args.seed is None:  # of all cells, so that they differ by what the axes say alone
        whole["seed"] = secrets.randbits(32)
    pairs = [{**row, **column} for row in rows for column in columns]
    cells = [argparse.Namespace(**{**whole, **pair}) for pair in pairs]
    if any(not cell.prompt for cell in cells) and args.image is None:
        raise RequestError("--prompt is missing: say what to draw")
    return [argparse.Namespace(**{**vars(cell), "prompt": cell.prompt or ""}) for cell in cells], (
        len(columns)
    )


def label(args: argparse.Namespace, cell: argparse.Namespace) -> str:
    """What a cell varies, in few words."""
    names = [axis.partition("=")[0].replace("-", "_") for axis in (args.x, args.y) if axis]
    return ", ".join(
        str(value) if name in TEXTS else f"{name.replace('_', ' ')} {value}"
        for name in names
        for value in [getattr(cell, name)]
    )
