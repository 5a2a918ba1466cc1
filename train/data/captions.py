"""True English captions from a drawing's name, its keywords and its style."""

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

from .drawings import Drawing
from .vocabulary import BACKGROUNDS, PLACE_WORDS, TINTS

UNSTYLED_SHARE = 0.25
KEYWORD_SHARE = 0.08

NUMBER_WORDS = {2: "two", 3: "three"}

_AFTER_HEAD = re.compile(
    r" (?:with|without|of|in|on|at|and|or|behind|over|under|for|from|showing|holding|facing"
    r"|curving|pointing|tilted|not|done|but|to|off|viewed|increasing|decreasing|up|down) "
)
_LETTER_SAID_WITH_VOWEL = frozenset("aefhilmnorsx")
_AN_DESPITE_CONSONANT = ("hour", "honest", "heir", "x-ray", "8", "11", "18", "sos ", "ng ", "mx ")
_A_DESPITE_VOWEL = tuple("uni|use|usb|utensil|ufo|ukul|uv |one|once|euro|ewe".split("|"))
_THE = re.compile(
    r"^(?:flag of|letter|statue of liberty|star of david|milky way|kaaba|sign of the horns)\b"
)
_BARE = frozenset(
    """aquarius aries cancer capricorn gemini leo libra ophiuchus pisces sagittarius scorpio taurus
    virgo badminton bowling camping construction cooking copyright customs divide dna fire
    fog foggy ice infinity information lacrosse locked minus multiply oden om plus
    prohibited radioactive registered salt star-struck tennis unlocked
    warning wireless wood yin zzz""".split()
)
_BARE_NAMES = frozenset(
    name.strip()
    for name in """
    baggage claim; breast-feeding; canned food; currency exchange; dashing away; field hockey;
    high voltage; horse racing; ice hockey; left luggage; mount fuji; mrs. claus; mx claus;
    no entry; non-potable water; palms up together; part alternation mark; passport control;
    performing arts; ping pong; potable water; pouring liquid; rolling on the floor laughing;
    santa claus; soap; thumbs down; thumbs up; tokyo tower; vibration mode; yin yang""".split(";")
)
_BARE_ENDINGS = frozenset(
    """bacon bread broccoli butter clothes garlic luggage milk money popcorn poo rice sake
    spaghetti sushi tea traffic water wood yarn people men women o'clock thirty fries""".split()
)
_SINGULAR_ENDINGS = ("ss", "us", "is", "'s")
_SINGULAR = frozenset("atlas canvas christmas gas lens plus chess news rhinoceros".split())
_ACTORS = ("man", "woman", "person", "face", "head")
_COLOURS = frozenset(
    "white black gray grey red orange yellow green blue light purple pink brown".split()
)
_PLURALS = {
    "bison": "bison",
    "blowfish": "blowfish",
    "buffalo": "buffalo",
    "child": "children",
    "deer": "deer",
    "die": "dice",
    "elf": "elves",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "jellyfish": "jellyfish",
    "knife": "knives",
    "leaf": "leaves",
    "man": "men",
    "merman": "mermen",
    "merperson": "merpeople",
    "moose": "moose",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "potato": "potatoes",
    "sheep": "sheep",
    "snowman": "snowmen",
    "squid": "squid",
    "superhero": "superheroes",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}


def head_of(name: str) -> str:
    """The part of a name that decides its number: "cloud" of "cloud with rain"."""
    head = _AFTER_HEAD.split(f"{name} ", maxsplit=1)[0].strip()
    words = head.split(" ")
    if words[0] in _ACTORS and len(words) > 1 and words[1].endswith("ing"):
        return words[0]
    return head


def is_plural(name: str) -> bool:
    """Whether the name speaks of several things, or of one that English counts as several."""
    last = head_of(name).split(" ")[-1]
    if last != "skis" and (last in _SINGULAR or last.endswith(_SINGULAR_ENDINGS)):
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
    if is_plural(name) or name in _BARE or head_of(name) in _BARE_NAMES or name in _BARE_NAMES:
        return True
    if name.startswith(("no ", "keycap ", "input ", "face in ")) and name != "face in clouds":
        return True
    last = re.split(r"[ -]", head_of(name))[-1]
    return last in _BARE_ENDINGS


@cache
def noun_phrase(name: str, adjective: str = "") -> str:
    """A name as it stands in a sentence: "a red apple", "an owl", "grapes", "the flag of japan".

    adjective: put before the name, such as "small" or an icon's colour.
    """
    phrase = f"{adjective} {name}".strip()
    if takes_no_article(name):
        return phrase
    if _THE.match(phrase):
        return f"the {phrase}"
    return f"{article(phrase)} {phrase}"


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


def counted_phrase(name: str, count: int, adjective: str = "") -> str:
    """ "two red apples", or "two copies of grapes" where the name forms no plural; count 2 or 3."""
    plural, number = plural_of(name), NUMBER_WORDS[count]
    if plural is None:
        return f"{number} copies of {noun_phrase(name, adjective)}"
    return " ".join(filter(None, (number, adjective, plural)))


def keyword_fits(word: str) -> bool:
    """Whether a keyword can stand for the name: no plural of one thing, and no colour."""
    return word not in _COLOURS and not is_plural(word)


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


def loose_subject(drawing: Drawing, rng: np.random.Generator) -> str:
    """The thing as a hurried user names it, and still true.

    Of six captions two give a keyword in place of the name, one two keywords, one the name without
    its article, one the plural, and one the name's words in another order.
    """
    words = [word for word in drawing.keywords if keyword_fits(word)] or [drawing.name]
    first, second = (words[int(number)] for number in rng.integers(len(words), size=2))
    return (
        noun_phrase(first),
        first,
        f"{first} {second}" if first != second else first,
        drawing.name,
        plural_of(drawing.name) or drawing.name,
        " ".join(rng.permutation(drawing.name.split(" "))),
    )[int(rng.integers(6))]


def make_caption(
    drawing: Drawing,
    rng: np.random.Generator,
    background: str | None = None,
    tint: str | None = None,
    loose_share: float = 0.0,
) -> str:
    """A caption of one drawing: its name (seldom a keyword), its style, the background if given.

    Args:
        drawing: what the picture shows.
        rng: decides keyword, style words and their order.
        background: a colour's name to be told, or None to say nothing about it.
        tint: the colour of an icon.
        loose_share: share of captions with loose_subject in place of the name.
    """
    if drawing.style == "icon" and background is None and rng.random() < 0.5:
        name = f"{tint} {drawing.name}" if tint else drawing.name
        return f"{article(name)} {name} icon"
    subject = noun_phrase(drawing.name, tint or "")
    if tint is None and rng.random() < KEYWORD_SHARE:
        words = [word for word in drawing.keywords if keyword_fits(word)]
        subject = words[int(rng.integers(len(words)))] if words else subject
    if loose_share and tint is None and rng.random() < loose_share:
        subject = loose_subject(drawing, rng)
    if background is not None:
        subject = on_background(subject, background)
    return styled(subject, drawing.style, rng)


def all_captions(drawings: Iterable[Drawing]) -> list[str]:
    """Many captions over every word in use, each once and in a fixed order, to train a tokenizer.

    Held-out drawings are passed over. Backgrounds, tints, places and counts go round in turn.
    """
    colours, tints, places = tuple(BACKGROUNDS), tuple(TINTS), tuple(PLACE_WORDS)
    captions: dict[str, None] = {}
    for number, drawing in enumerate(d for d in drawings if not d.held_out):
        style, name = drawing.style, drawing.name
        colour, place = colours[number % len(colours)], places[number % len(places)]
        tint = tints[number % len(tints)] if style == "icon" else ""
        kind = "icon" if style == "icon" else f"{style} emoji"
        subject = noun_phrase(name, tint)
        texts = (
            subject,
            f"{subject}, {style} style",
            f"{kind} of {subject}",
            on_background(subject, colour),
            f"{kind} of {counted_phrase(name, 2 + number % 2, tint)}",
            f"{noun_phrase(name, f'small {tint}'.strip())} {place}, {style} style",
        )
        captions.update(dict.fromkeys(texts))
        captions.update(dict.fromkeys(drawing.keywords))
        if style == "icon":
            captions[f"{article(tint)} {tint} {name} icon"] = None
    return list(captions)
