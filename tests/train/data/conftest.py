"""A small set of drawings in four styles, each a shape of a colour of its own."""

import numpy as np
import pytest
from PIL import Image

from unclip_train.data.drawings import (
    EMOJI_STYLES,
    FAMILY_OF_STYLE,
    MORE_STYLES,
    PEOPLE,
    Drawing,
    save_drawings,
)
from unclip_train.data.held_out import FAMILIES, is_held_out

# abacus is held out in noto, airplane in twemoji, astonished-face in fluent and flat.
SHARED = ("abacus", "airplane", "astonished-face", "dog-face", "red-apple", "rocket")
PEOPLE_CONCEPTS = ("artist", "artist-dark-skin-tone", "artist-light-skin-tone")
SIZES = (32, 64)


def disc(colour: tuple[int, int, int], size: int) -> np.ndarray:
    """RGBA of a disc that fills 0.8 of the side."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = 255 * (x**2 + y**2 < 0.16)
    return pixels


def make_drawing(style: str, concept: str, category: str = "Objects") -> Drawing:
    family = FAMILY_OF_STYLE[style]
    shared = style != "icon" and category != PEOPLE
    return Drawing(
        id=f"{style}/{concept}",
        file_name=f"32/{style}/{concept}.png",
        concept=concept,
        name=concept.replace("-", " "),
        keywords=("thing", "things", "red"),
        style=style,
        family=family,
        category=category,
        shared=shared,
        held_out=shared and family in FAMILIES and is_held_out(concept, family),
    )


def list_set() -> list[Drawing]:
    drawings = [make_drawing(style, concept) for style in EMOJI_STYLES for concept in SHARED]
    for style in ("noto", "twemoji"):
        drawings += [make_drawing(style, concept, PEOPLE) for concept in PEOPLE_CONCEPTS]
    return drawings + [make_drawing("icon", concept) for concept in ("house", "abacus")]


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour for a drawing that no other drawing and no background has."""
    return (7 + 6 * number, 101, 3 + 5 * number)


@pytest.fixture(scope="session")
def colours() -> dict[str, tuple[int, int, int]]:
    return {drawing.id: colour_of(number) for number, drawing in enumerate(list_set())}


def write_set(folder, colours) -> None:
    for drawing in list_set():
        for size in SIZES:
            path = folder / str(size) / drawing.style / f"{drawing.concept}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(disc(colours[drawing.id], size)).save(path)
    save_drawings(folder, list_set())


@pytest.fixture(scope="session")
def set_folder(tmp_path_factory, colours):
    """32 drawings at 32 and 64 pixels; read only."""
    folder = tmp_path_factory.mktemp("set")
    write_set(folder, colours)
    return folder


def add_more_artists(folder) -> list[Drawing]:
    """Add every further artist's drawings of the shared concepts to a set; return the new ones."""
    more = [make_drawing(style, concept) for style in MORE_STYLES for concept in SHARED]
    for drawing in more:
        for size in SIZES:
            path = folder / str(size) / drawing.style / f"{drawing.concept}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(disc((200, 30, 180), size)).save(path)
    save_drawings(folder, list_set() + more)
    return more


@pytest.fixture
def own_folder(tmp_path, colours):
    """The same set, to be damaged."""
    write_set(tmp_path / "set", colours)
    return tmp_path / "set"
