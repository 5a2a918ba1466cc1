"""The words of unclip-sample for editing pictures, and which of them go together."""

from __future__ import annotations

import argparse
import math
import re

from unclip_sample import latent_words
from unclip_sample.latent_words import given, word
from unclip_sample.request import RequestError, read_record
from unclip_sample.words import whole

EDITS = ("inpaint", "outpaint", "image_to_image", "upscale")
# Options that speak of some edits only, with those that they go with.
OWN_OPTIONS = {
    "mask": ("inpaint",),
    "canvas": ("outpaint",),
    "offset": ("outpaint",),
    "resamples": ("inpaint", "outpaint"),
    "jump": ("inpaint", "outpaint"),
    "strength": ("image_to_image",),
    "tile": ("upscale",),
    "tile_overlap": ("upscale",),
}
NOT_WITH_ANY = ("image", "prompts", "best_of", "x", "y", "cell")
# What changes nothing where the upsamplers alone draw.
NOT_WITH_UPSCALE = (
    *("prompt", "negative_prompt", "prior_negative_prompt", "guidance", "prior_guidance"),
    *("image_guidance", "guidance_interval", "guidance_rescale", "dynamic_threshold", "reuse"),
    *("steps", "prior_steps", "scheduler", "prior_scheduler", "candidates"),
)


# The words


def add_words(group: argparse._ArgumentGroup) -> None:
    """Options of editing."""
    group.add_argument("--inpaint", metavar="FILE", help="picture to paint a part of anew")
    group.add_argument(
        "--mask", metavar="FILE", help="white where to paint; the picture's transparency"
    )
    group.add_argument("--outpaint", metavar="FILE", help="picture to paint beyond the borders of")
    group.add_argument(
        "--canvas", type=pixels, metavar="N", help="pixels a side, in those of --outpaint"
    )
    group.add_argument(
        "--offset", type=place, metavar="X,Y", help="of the picture on the canvas; the middle"
    )
    group.add_argument("--resamples", type=times, metavar="N", help="runs of each stretch; 4")
    group.add_argument("--jump", type=times, metavar="N", help="steps of a stretch; 10")
    group.add_argument("--image-to-image", metavar="FILE", help="picture to draw from")
    group.add_argument(
        "--strength", type=strength, metavar="X", help="share of the steps that are run; 0.5"
    )
    group.add_argument("--upscale", metavar="FILE", help="picture to make larger, up to --size")
    group.add_argument("--tile", type=pixels, metavar="N", help="pixels of --upscale at once")
    group.add_argument("--tile-overlap", type=pixels_or_none, metavar="N", help="of neighbours")


def pixels(text: str) -> int:
    """A number of pixels."""
    return whole(text, 1, 8192)


def pixels_or_none(text: str) -> int:
    """A number of pixels, or none."""
    return whole(text, 0, 8192)


def times(text: str) -> int:
    """How often, or how far."""
    return whole(text, 1, 1000)


def place(text: str) -> tuple[int, int]:
    """Columns and rows."""
    if not re.fullmatch("[0-9]{1,4},[0-9]{1,4}", text):
        raise argparse.ArgumentTypeError(f"give columns,rows such as 16,0, not {text!r}")
    columns, rows = text.split(",")
    return int(columns), int(rows)


def strength(text: str) -> float:
    """A share of the steps."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"give a number above 0 and up to 1, not {text!r}")
    return value


# What they ask for


def wanted(args: argparse.Namespace) -> bool:
    """Whether the words ask for an edit, or for a picture that one made."""
    if any(given(args, name) for name in (*EDITS, *OWN_OPTIONS)):
        return True
    return args.source is not None and "edit" in read_record(args.source)


def edit_of(args: argparse.Namespace, record: dict) -> str:
    """The one edit that the words ask for; record is that of --from, or empty.

    Raises:
        RequestError: for none, several, or options that do not go with it.
    """
    asked = [name for name in EDITS if given(args, name)]
    if len(asked) > 1:
        raise RequestError(f"{word(asked[1])}: give it without {word(asked[0])}")
    if not asked and "edit" in record:
        raise RequestError(f"--from: {how_it_was_made(record['edit'])}")
    others = (*latent_words.OPERATIONS, *latent_words.OWN_OPTIONS, "clip_guidance", "clip_prompt")
    for option, edits in OWN_OPTIONS.items():
        if given(args, option) and (not asked or asked[0] not in edits):
            partners = " or ".join(word(name) for name in edits)
            raise RequestError(f"{word(option)}: give it with {partners}")
    [edit] = asked
    refused = (*NOT_WITH_ANY, *others, *(NOT_WITH_UPSCALE if edit == "upscale" else ()))
    for option in refused:
        if given(args, option):
            raise RequestError(f"{word(option)}: does not go with {word(edit)}")
    return edit


def how_it_was_made(edit: object) -> str:
    """Which words, with which files, would make the picture of a record again."""
    edit = edit if isinstance(edit, dict) else {}
    kind = edit.get("kind")
    if kind not in EDITS:
        return "the record's edit is damaged"
    if edit.get("picture") is None:  # a server's: what is uploaded need have no name
        words = (
            f"{word(kind)} with the picture that was uploaded, --mask with its mask if it had one"
        )
    else:
        words = f"{word(kind)} {edit['picture']}"
        words += f" --mask {edit['mask']}" if edit.get("mask") else ""
    return f"this picture was made of another, which it does not hold: add {words}"
