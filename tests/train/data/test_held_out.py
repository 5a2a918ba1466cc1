"""The rule that holds drawings out."""

from hashlib import sha256
from pathlib import Path

import pytest

from unclip_train.data.held_out import FAMILIES, is_held_out

# Concepts that noto 1.2.9, twemoji 1.2.5 and fluent 1.2.7 / 1.2.6 all draw, People & Body left out.
SHARED_CONCEPTS = Path(__file__).with_name("shared_concepts.txt").read_text().split()


@pytest.mark.parametrize(
    "pair", ["abacus|noto", "airplane|twemoji", "astonished-face|fluent", "bagel|noto"]
)
def test_named_pairs_are_held_out(pair):
    assert is_held_out(*pair.split("|"))


@pytest.mark.parametrize("pair", ["red-apple|noto", "dog-face|twemoji", "rocket|fluent"])
def test_named_pairs_are_trained_on(pair):
    assert not is_held_out(*pair.split("|"))


def test_184_of_3726_pairs_are_held_out():
    pairs = [(concept, family) for concept in SHARED_CONCEPTS for family in FAMILIES]
    assert len(pairs) == 3726
    assert sum(is_held_out(*pair) for pair in pairs) == 184


def test_rule_is_the_published_hash():
    for concept in SHARED_CONCEPTS[:200]:
        digest = int(sha256(f"{concept}|noto".encode()).hexdigest(), 16)
        assert is_held_out(concept, "noto") == (digest % 20 == 0)


def test_icons_are_never_held_out():
    assert not any(is_held_out(concept, "mdi") for concept in SHARED_CONCEPTS)


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="family 'flat' is unknown"):
        is_held_out("abacus", "flat")
