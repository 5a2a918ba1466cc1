"""True English captions from a drawing's name, its keywords and its style."""

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

from .drawings import Drawing

UNSTYLED_SHARE = 0.25
KEYWORD_SHARE = 0.08

NUMBER_WORDS = {2: "two", 3: "three"}

_AFTER_HEAD = re.compile(
    r" (?:with|without|of|in|on|at|and|or|behind|over|under|for|from|showing|holding|facing"
    r"|curving|pointing|tilted|not|done|but|to|off|viewed|increasing|decreasing|up|down) "
)
_LETTER_SAID_WITH_VOWEL = frozenset("aefhilmnorsx")
_AN_DESPITE_CONSONANT = ("hour", "honest", "heir", "x-ray", "8", "11", "18", "sos ", "ng ", "mx ")
_A_DESPITE_VOWEL = ("uni", "use", "usb", "utensil", "ufo", "ukul", "one", "euro", "ewe", "once")
_THE = re.compile(
    r"^(?:flag of|letter|statue of liberty|star of david|milky way|kaaba|sign of the horns)\b"
)
_BARE = frozenset(
    """aquarius aries cancer capricorn gemini leo libra ophiuchus pisces sagittarius scorpio taurus
    virgo badminton bowling camping construction cooking copyright cricket customs divide dna fire
    fog foggy ice infinity information lacrosse litter locked minus moai multiply oden om plus
    prohibited radioactive registered restroom salt selfie softball star-struck tennis unlocked
    volleyball warning wireless wood yin zzz""".split()
)
_BARE_NAMES = frozenset(
    """mount fuji|tokyo tower|ping pong|santa claus|mrs. claus|mx claus|no entry|passport control
    |baggage claim|left luggage|currency exchange|dashing away|rolling on the floor laughing
    |thumbs up|thumbs down|palms up together|not found|yin yang|high voltage|currency exchange
    |field hockey|ice hockey|vibration mode|performing arts|potable water|non-potable water
    |horse racing|breast-feeding|part alternation mark""".replace("\n", "").split("|")
)
_BARE_ENDINGS = frozenset(
    """bacon bread broccoli butter clothes garlic luggage milk money popcorn poo rice sake salad
    spaghetti sushi tea traffic water wood yarn people men women o'clock thirty fries""".split()
)
_SINGULAR_ENDINGS = ("ss", "us", "is", "'s")
_SINGULAR = frozenset("atlas canvas christmas gas lens plus chess news".split())
_PLURALS = {
    "bison": "bison",
    "child": "children",
    "deer": "deer",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "potato": "potatoes",
    "sheep": "sheep",
    "squid": "squid",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}


def head_of(name: str) -> str:
    """The part of a name that decides its number: "cloud" of "cloud with rain"."""
    return _AFTER_HEAD.split(f"{name} ", maxsplit=1)[0].strip()


def is_plural(name: str) -> bool:
    """Whether the name speaks of several things, or of one that English counts as several."""
    last = head_of(name).split(" ")[-1]
    if last in _SINGULAR or last.endswith(_SINGULAR_ENDINGS):
        return False
    return last.endswith("s") or last in ("people", "men", "women", "children", "feet", "teeth")


def article(phrase: str) -> str:
    """ "a" or "an", by the sound that the phrase begins with."""
    if phrase.startswith(_A_DESPITE_VOWEL):
        return "a"
    first = phrase.split(" ")[0].strip("\"'!")
    if len(first) == 1 and first.isalpha():
        return "an" if first in _LETTER_SAID_WITH_VOWEL else "a"
    if phrase.startswith(_AN_DESPITE_CONSONANT) or phrase[0] in "aeiou":
        return "an"
    return "a"


def takes_no_article(name: str) -> bool:
    """Whether a name stands alone: plurals, signs of the zodiac, stuffs, hours and the like."""
    if is_plural(name) or name in _BARE or name in _BARE_NAMES:
        return True
    if name.startswith(("no ", "keycap ", "input ", "face in ")) and name != "face in clouds":
        return True
    last = re.split(r"[ -]", head_of(name))[-1]
    return last in _BARE_ENDINGS


@cache
def noun_phrase(name: str) -> str:
    """A name as it stands in a sentence: "a red apple", "an owl", "grapes", "the flag of japan"."""
    if _THE.match(name):
        return f"the {name}"
    return name if takes_no_article(name) else f"{article(name)} {name}"


@cache
def plural_of(name: str) -> str | None:
    """ "red apples" for "red apple"; None where its end does not show the plural."""
    if takes_no_article(name) or _THE.match(name) or head_of(name) != name:
        return None
    before, _, last = name.rpartition(" ")
    if not last.isalpha() or last.endswith(("ing", "ed")) and last not in ("ring", "wing"):
        return None
    before = f"{before} " if before else ""
    if last in _PLURALS:
        return before + _PLURALS[last]
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{before}{last}es"
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return f"{before}{last[:-1]}ies"
    return f"{before}{last}s"


def counted_phrase(name: str, count: int) -> str:
    """ "two red apples", or "two copies of grapes" where the name forms no plural; count 2 or 3."""
    plural = plural_of(name)
    number = NUMBER_WORDS[count]
    return f"{number} {plural}" if plural else f"{number} copies of {noun_phrase(name)}"


def tinted(name: str, tint: str | None) -> str:
    """ "red house" for an icon drawn in one colour; the name itself without a tint."""
    return f"{tint} {name}" if tint else name


def on_background(subject: str, background: str) -> str:
    """ "a dog face on a light blue background"."""
    return f"{subject} on {article(background)} {background} background"


def styled(subject: str, style: str, rng: np.random.Generator) -> str:
    """The subject with its style before or after it, or (a quarter) with no style at all."""
    draw = rng.random()
    if draw < UNSTYLED_SHARE:
        return subject
    kind = "icon" if style == "icon" else f"{style} emoji"
    if draw < UNSTYLED_SHARE + (1 - UNSTYLED_SHARE) / 2:
        return f"{subject}, {style} style"
    return f"{kind} of {subject}"


def make_caption(
    drawing: Drawing,
    rng: np.random.Generator,
    background: str | None = None,
    tint: str | None = None,
) -> str:
    """A caption of one drawing: its name (seldom a keyword), its style, the background if given.

    Args:
        drawing: what the picture shows.
        rng: decides keyword, style words and their order.
        background: a colour's name to be told, or None to say nothing about it.
        tint: the colour of an icon.
    """
    if drawing.style == "icon" and background is None and rng.random() < 0.5:
        name = tinted(drawing.name, tint)
        return f"{article(name)} {name} icon"
    subject = noun_phrase(tinted(drawing.name, tint))
    if tint is None and rng.random() < KEYWORD_SHARE:
        words = [word for word in drawing.keywords if not is_plural(word)]
        subject = words[int(rng.integers(len(words)))] if words else subject
    if background is not None:
        subject = on_background(subject, background)
    return styled(subject, drawing.style, rng)


def all_captions(drawings: Iterable[Drawing]) -> list[str]:
    """Many captions over every word in use, each once and in a fixed order, to train a tokenizer.

    Held-out drawings are passed over. Backgrounds, tints, places and counts go round in turn.
    """
    from .compose import BACKGROUNDS, PLACE_WORDS, TINTS

    colours, tints, places = tuple(BACKGROUNDS), tuple(TINTS), tuple(PLACE_WORDS)
    captions: dict[str, None] = {}
    for number, drawing in enumerate(d for d in drawings if not d.held_out):
        style, colour = drawing.style, colours[number % len(colours)]
        place = places[number % len(places)]
        name = drawing.name
        if style == "icon":
            name = tinted(name, tints[number % len(tints)])
            captions[f"{article(name)} {name} icon"] = None
        subject = noun_phrase(name)
        kind = "icon" if style == "icon" else f"{style} emoji"
        texts = (
            subject,
            f"{subject}, {style} style",
            f"{kind} of {subject}",
            on_background(subject, colour),
            f"{kind} of {counted_phrase(name, 2 + number % 2)}",
            f"{noun_phrase(f'small {name}')} {place}, {style} style",
        )
        captions.update(dict.fromkeys(texts))
        captions.update(dict.fromkeys(drawing.keywords))
    return list(captions)
