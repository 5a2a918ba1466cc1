"""Captions are English and true."""

from dataclasses import replace

import numpy as np
import pytest

from unclip_train.data.captions import (
    all_captions,
    article,
    counted_phrase,
    loose_subject,
    make_caption,
    noun_phrase,
    on_background,
    plural_of,
    styled,
)

from .conftest import list_set, make_drawing


@pytest.mark.parametrize(
    "phrase",
    """a red apple|an owl|a unicorn|an umbrella|a one-piece swimsuit|an hourglass done|an x-ray
    |a t-shirt|an sos button|a euro banknote|a 1st place medal|an ok hand|a cloud with rain
    |an eye in speech bubble|a face with rolling eyes|a bus|a cactus|a compass|a rhinoceros
    |a man lifting weights|the flag of japan|the statue of liberty|grapes|scissors|musical notes
    |people holding hands|men with bunny ears|aries|eight o'clock|two-thirty|keycap 5|no smoking
    |mount fuji|popcorn|bread|thumbs up with dark skin tone|skis|a uv lamp""".replace(
        "\n    ", ""
    ).split("|"),
)
def test_article(phrase):
    first, _, rest = phrase.partition(" ")
    name = rest if first in ("a", "an", "the") else phrase
    assert noun_phrase(name) == phrase


def test_adjective_stands_between_article_and_name():
    assert noun_phrase("owl", "small") == "a small owl"
    assert noun_phrase("house", "orange") == "an orange house"
    assert noun_phrase("grapes", "small") == "small grapes"
    assert noun_phrase("flag of japan", "small") == "a small flag of japan"


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("red apple", "red apples"),
        ("box", "boxes"),
        ("watch", "watches"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("mouse", "mice"),
        ("maple leaf", "maple leaves"),
        ("police woman", "police women"),
        ("tropical fish", "tropical fish"),
        ("ring", "rings"),
        ("grapes", None),
        ("cloud with rain", None),
        ("man getting haircut", None),
        ("t-rex", None),
        ("flag of japan", None),
    ],
)
def test_plural(name, plural):
    assert plural_of(name) == plural


def test_counts():
    assert counted_phrase("red apple", 2) == "two red apples"
    assert counted_phrase("house", 3, "red") == "three red houses"
    assert counted_phrase("grapes", 3) == "three copies of grapes"
    assert counted_phrase("cloud with rain", 2) == "two copies of a cloud with rain"


def test_background_takes_its_article():
    assert on_background("a dog face", "light blue") == "a dog face on a light blue background"
    assert on_background("a dog face", "orange") == "a dog face on an orange background"
    assert article("orange") == "an"


def test_a_quarter_names_no_style():
    rng = np.random.default_rng(0)
    captions = [styled("a red apple", "noto", rng) for _ in range(4000)]
    shares = {caption: captions.count(caption) / 4000 for caption in set(captions)}
    assert shares.keys() == {"a red apple", "a red apple, noto style", "noto emoji of a red apple"}
    assert abs(shares["a red apple"] - 0.25) < 0.03


def test_caption_forms_of_one_drawing():
    drawing, rng = make_drawing("flat", "dog-face"), np.random.default_rng(0)
    captions = {make_caption(drawing, rng, background="light blue") for _ in range(500)}
    assert captions == {
        f"{subject} on a light blue background".join(style)
        for subject in ("a dog face", "thing")  # no plural and no colour stands for the name
        for style in (("", ""), ("", ", flat style"), ("flat emoji of ", ""))
    }


def test_icons_name_their_colour():
    rng = np.random.default_rng(0)
    captions = {make_caption(make_drawing("icon", "house"), rng, tint="red") for _ in range(100)}
    assert captions == {
        "a red house icon",
        "a red house",
        "a red house, icon style",
        "icon of a red house",
    }


def test_all_captions_are_many_distinct_and_of_training_drawings():
    drawings = list_set()
    captions = all_captions(drawings)
    assert captions == all_captions(drawings)
    assert len(captions) == len(set(captions)) > 4 * len(drawings)
    assert "twemoji emoji of an abacus" in captions
    assert not any("abacus" in caption and "noto" in caption for caption in captions)
    assert {"thing", "red"} <= set(captions)
    assert all(caption.isascii() and caption == caption.strip() for caption in captions)


def test_loose_captions_are_true_and_of_every_form():
    drawing = replace(make_drawing("noto", "dog-face"), keywords=("puppy", "pet", "dogs"))
    rng = np.random.default_rng(0)
    told = {loose_subject(drawing, rng) for _ in range(400)}
    assert told == {
        *("a puppy", "puppy", "a pet", "pet", "puppy pet", "pet puppy"),
        *("dog face", "face dog", "dog faces"),
    }  # "dogs" is the plural of one thing and stays out


def test_loose_share_is_the_share_of_loose_captions():
    drawing = replace(make_drawing("noto", "dog-face"), keywords=())
    strict = {"a dog face", "a dog face, noto style", "noto emoji of a dog face"}
    rng = np.random.default_rng(0)
    captions = [make_caption(drawing, rng, loose_share=0.25) for _ in range(4000)]
    loose = 0.25 * 5 / 6  # without keywords one form in six is the name with its article
    assert np.mean([caption not in strict for caption in captions]) == pytest.approx(
        loose, abs=0.02
    )
    rng = np.random.default_rng(0)
    assert {make_caption(drawing, rng) for _ in range(400)} == strict
