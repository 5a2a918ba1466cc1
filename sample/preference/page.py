"""The blind page: two folders of pictures, shown in pairs, order and sides drawn by a seed.

The page is one HTML file that holds the pictures and needs no network. It does not know which side
is whose: that stands in a key file, which stays with the one who asks. Pictures are written anew,
without the text that says what made them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from unclip_sample.request import RequestError

# What unCLIP's table 1 asks, each a study of its own there; of "diversity", grids are shown.
QUESTIONS = {
    "quality": "Which picture looks better?",
    "realism": "Which picture looks more real?",
    "caption": "Which picture fits the caption better?",
    "diversity": "Which grid of pictures is more varied?",
}
FORMAT = "unclip-preference-key"
VERSION = 1
MAX_PAGE_BYTES = 256 << 20


@dataclass(frozen=True)
class Key:
    """What the page does not tell: who stands where, and the names of what is compared."""

    study: str  # tells this page's votes from all others
    first: str  # names of the two
    second: str
    questions: dict[str, str]
    pairs: dict[str, bool]  # picture's name: whether the first stands on the left
    format: str = FORMAT
    version: int = VERSION


def pair_up(first: Path, second: Path) -> list[str]:
    """Names of the pictures that both folders hold, sorted.

    Raises:
        RequestError: when one is no folder, or a picture of one is missing in the other.
    """
    from unclip_sample.index import list_pictures

    for folder in (first, second):
        if not folder.is_dir():
            raise RequestError(f"FOLDER: {folder} is no folder; give one that holds pictures")
    names = [list_pictures(folder) for folder in (first, second)]
    alone = sorted(set(names[0]) ^ set(names[1]))
    if alone:
        where = second if alone[0] in names[0] else first
        more = f" (and {len(alone) - 1} more are)" if len(alone) > 1 else ""
        raise RequestError(f"FOLDER: {alone[0]} is missing in {where}{more}; give the same names")
    if not names[0]:
        raise RequestError(f"FOLDER: {first} holds no pictures")
    return names[0]


def shuffled(names: Sequence[str], seed: int, limit: int | None = None) -> dict[str, bool]:
    """Names in the order of the page, at most `limit`, and whether the first's stands on the left.

    Half of the pairs, give or take one, have it there, so that a voter's liking for a side cannot
    look like a liking for a folder.
    """

    def drawn(name: str, what: str) -> str:
        return hashlib.sha256(
            f"{seed}|{what}|{name}".encode("utf-8", "surrogateescape")
        ).hexdigest()

    order = sorted(names, key=lambda name: drawn(name, "order"))[:limit]
    by_side = sorted(order, key=lambda name: drawn(name, "side"))
    offset = int(drawn("", "offset"), 16) % 2
    on_left = {name: number % 2 == offset for number, name in enumerate(by_side)}
    return {name: on_left[name] for name in order}


def make_page(
    first: Path,
    second: Path,
    questions: Sequence[str] = ("quality", "caption"),
    captions: Mapping[str, str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    size: int = 512,
) -> tuple[str, Key]:
    """The page's HTML and its key.

    questions: names of QUESTIONS; all are asked of a pair before the next one. captions: by
    picture's name; where None, what the first's pictures say that they were drawn from. The
    question "caption" is left out for a pair without one. limit: at most so many pairs, drawn by
    the seed. size: pixels of the longer side, to which larger pictures are scaled down.

    Raises:
        RequestError: when the folders or the questions do not allow a page.
    """
    unknown = [name for name in questions if name not in QUESTIONS]
    if unknown or not questions or len(set(questions)) < len(questions):
        raise RequestError(f"--questions: give some of {', '.join(QUESTIONS)}, each once")
    sides = shuffled(pair_up(first, second), seed, limit)
    pairs, trials, num_bytes = [], [], 0
    for number, (name, first_left) in enumerate(sides.items()):
        left, right = (first, second) if first_left else (second, first)
        pair = {"left": data_uri(left / name, size), "right": data_uri(right / name, size)}
        caption = captions.get(name) if captions is not None else caption_of(first / name)
        pairs.append({**pair, **({"caption": caption} if caption else {})})
        asked = [q for q in questions if caption or q != "caption"]
        trials += [{"pair": number, "question": question} for question in asked]
        num_bytes += len(pair["left"]) + len(pair["right"])
        if num_bytes > MAX_PAGE_BYTES:
            raise RequestError(
                f"--limit: {len(sides)} pairs make a page of over {MAX_PAGE_BYTES >> 20} MiB; "
                "give a limit, or a smaller --size"
            )
    if not trials:
        raise RequestError("--questions: no pair has a caption to ask about; give --captions")
    asked = {name: QUESTIONS[name] for name in questions}
    study = study_name(pairs, asked)
    data = {"study": study, "questions": asked, "pairs": pairs, "trials": trials}
    return fill_in(data), Key(study, first.name, second.name, asked, sides)


def study_name(pairs: list[dict[str, str]], questions: dict[str, str]) -> str:
    """8 hexadecimal digits that tell this page from all others."""
    content = json.dumps([pairs, questions]).encode()
    return hashlib.sha256(content).hexdigest()[:8]


def fill_in(data: dict[str, Any]) -> str:
    """The page with its data, in which nothing can end the script that holds it."""
    template = files("unclip_sample.preference").joinpath("page.html").read_text("utf-8")
    text = json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return template.replace("/*DATA*/", text)


def data_uri(path: Path, size: int) -> str:
    """A picture's pixels as a PNG inside a URI, at most `size` a side, without any text."""
    from unclip.pictures import PictureError, open_picture, to_rgb
    from unclip_sample.contact_sheet import fit
    from unclip_sample.png import encode_png

    try:
        with open_picture(path) as picture:
            picture = to_rgb(picture)
    except (PictureError, OSError) as error:
        raise RequestError(f"FOLDER: cannot read {path} ({error})") from None
    small = fit(picture, size) if max(picture.size) > size else picture
    return "data:image/png;base64," + base64.b64encode(encode_png(small, None)).decode()


def caption_of(path: Path) -> str | None:
    """The prompt that a picture carries; None where it carries none."""
    from unclip_sample.png import read_png

    try:
        return read_png(path).get("prompt") or None
    except (OSError, ValueError):
        return None


def key_text(key: Key) -> str:
    """A key as JSON."""
    return json.dumps(asdict(key), indent=1) + "\n"


def read_captions(path: Path) -> dict[str, str]:
    """Captions by picture's name, from a JSON object.

    Raises:
        RequestError: when it is none.
    """
    try:
        captions = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RequestError(f"--captions: cannot read {path} ({error.strerror})") from None
    except (ValueError, RecursionError):
        captions = None
    if not isinstance(captions, dict) or not all(isinstance(c, str) for c in captions.values()):
        raise RequestError(f"--captions: {path} is no JSON object of captions by picture's name")
    return captions
