"""What is asked: which examples, beside which distractors, and which composed pictures.

Every choice is keyed by the seed and by what is chosen for, so that a smaller evaluation asks a
part of what a larger one asks, and a second model is asked the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from unclip_sample.evaluation.sources import DataSource, Example, styled_caption
from unclip_train.data.captions import counted_phrase, noun_phrase, on_background, plural_of
from unclip_train.data.compose import (
    Scene,
    choose_background,
    mean_colour,
    paint,
    read_picture,
)
from unclip_train.data.drawings import Drawing

NUM_CAPTIONS = 100  # that a picture is ranked among, its own included
NUM_NEAR = 20  # of the others, of the same category
COUNTS = (1, 2, 3)
# Places of composed drawings, as fractions of the side: (left, top, side).
ALONE = ((0.06, 0.06, 0.88),)
BESIDE = ((0.015, 0.265, 0.47), (0.515, 0.265, 0.47))
COPIES = {
    2: BESIDE,
    3: ((0.265, 0.015, 0.47), (0.015, 0.515, 0.47), (0.515, 0.515, 0.47)),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Composition:
    """A caption of several facts, and a real picture of which they are true, [S, S, 3] uint8."""

    caption: str
    picture: np.ndarray
    things: tuple[Drawing, ...]
    background: str = "white"
    count: int = 1


def keyed_seed(*key: object) -> int:
    """A seed in [0, 2^31) that depends on the key alone."""
    text = "|".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def keyed_rng(*key: object) -> np.random.Generator:
    """A generator that depends on the key alone."""
    return np.random.default_rng(keyed_seed(*key))


def choose(examples: Sequence[Example], count: int, *key: object) -> list[Example]:
    """`count` examples (all, where there are fewer); the first ones of any larger choice."""
    ranked = sorted(examples, key=lambda example: (keyed_seed(*key, example.id), example.id))
    return ranked[:count]


def distractors_of(
    own: str, category: str, near_first: Sequence[tuple[str, str]], *key: object
) -> list[str]:
    """NUM_CAPTIONS - 1 captions of other things, NUM_NEAR of them of the same category.

    near_first: (caption, category) of all that may be taken; those like `own` are left out. Where
    there are fewer near ones, or fewer at all, there are fewer. ValueError where there is none.
    """
    others = {caption: kind for caption, kind in near_first if caption != own}
    if not others:
        raise ValueError("--data: all captions are alike; there is nothing to tell apart")
    rng = keyed_rng(*key, own)
    near = [caption for caption, kind in others.items() if category and kind == category]
    chosen = _some(near, NUM_NEAR, rng)
    taken = set(chosen)
    rest = [caption for caption in others if caption not in taken]
    far = [caption for caption in rest if not category or others[caption] != category]
    wanted = NUM_CAPTIONS - 1 - len(chosen)
    chosen += _some(far if len(far) >= wanted else rest, wanted, rng)
    return chosen


def _some(values: list[T], count: int, rng: np.random.Generator) -> list[T]:
    index = rng.permutation(len(values))[:count]
    return [values[i] for i in index]


def rivals_of(source: DataSource, style: str) -> list[tuple[str, str]]:
    """Caption and category of everything in a style that a picture may be taken for."""
    return [(e.caption, e.category) for e in source.everything if e.style == style]


# --- composed pictures -----------------------------------------------------------------------


def on_backgrounds(source: DataSource, count: int, seed: int) -> list[Composition]:
    """One thing on a named colour other than white."""
    found = []
    for example in choose(source.groups["seen"], 4 * count, seed, "background"):
        rgba = read_rgba(example.drawing, source.size)
        rng = keyed_rng(seed, "colour", example.id)
        scene = choose_background(Scene("colour", ALONE), [mean_colour(rgba)], rng)
        if scene.background != "white":
            subject = on_background(noun_phrase(example.drawing.name), scene.background)
            caption = styled_caption(example.drawing, subject)
            picture = paint(scene, [rgba], source.size)
            found.append(Composition(caption, picture, (example.drawing,), scene.background))
    return found[:count]


def side_by_side(source: DataSource, count: int, seed: int) -> list[Composition]:
    """One thing on the left and another on the right, of one style, on white."""
    found = []
    for example in choose(source.groups["seen"], count, seed, "beside"):
        first = example.drawing
        others = [
            other
            for other in source.groups["seen"]
            if other.style == first.style and other.drawing.concept != first.concept
        ]
        if not others:
            continue
        (partner,) = choose(others, 1, seed, "partner", example.id)
        second = partner.drawing
        words = f"{noun_phrase(first.name)} on the left and {noun_phrase(second.name)} on the right"
        rgba = [read_rgba(thing, source.size) for thing in (first, second)]
        picture = paint(Scene("pair", BESIDE, "beside"), rgba, source.size)
        found.append(Composition(styled_caption(first, words), picture, (first, second)))
    return found


def counted(source: DataSource, count: int, seed: int) -> list[Composition]:
    """Two or three of one thing, on white; of names that form a plural."""
    plain = [e for e in source.groups["seen"] if plural_of(e.drawing.name) is not None]
    found = []
    for number, example in enumerate(choose(plain, count, seed, "counted")):
        copies = COUNTS[1 + number % 2]
        caption = styled_caption(example.drawing, counted_phrase(example.drawing.name, copies))
        rgba = read_rgba(example.drawing, source.size)
        picture = paint(Scene("copies", COPIES[copies]), [rgba], source.size)
        found.append(Composition(caption, picture, (example.drawing,), count=copies))
    return found


def count_captions(drawing: Drawing) -> list[str]:
    """The captions of one, two and three of a thing, in the order of COUNTS."""
    one = noun_phrase(drawing.name)
    more = [counted_phrase(drawing.name, count) for count in COUNTS[1:]]
    return [styled_caption(drawing, subject) for subject in (one, *more)]


def read_rgba(drawing: Drawing, size: int) -> np.ndarray:
    """A drawing without its background, [S, S, 4] uint8."""
    return read_picture(drawing.path(size), size)
