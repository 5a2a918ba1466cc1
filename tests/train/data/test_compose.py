"""A scene's picture shows what its caption says."""

import re

import numpy as np
import pytest
from PIL import Image

from unclip_train.data.compose import (
    MIN_CONTRAST,
    PLAIN,
    Scene,
    caption_scene,
    choose_background,
    mean_colour,
    over,
    paint,
    random_scene,
    read_picture,
    tint_picture,
)
from unclip_train.data.vocabulary import BACKGROUNDS, PLACE_WORDS

from .conftest import disc, make_drawing

SIZE = 64
APPLE, ROCKET = make_drawing("noto", "red-apple"), make_drawing("noto", "rocket")
RED, BLUE = (200, 0, 0), (0, 0, 200)
PICTURES = [disc(RED, SIZE), disc(BLUE, SIZE)]


def scenes(kind: str, count: int = 60) -> list[tuple[Scene, np.random.Generator]]:
    found, number = [], 0
    while len(found) < count:
        rng = np.random.default_rng(number)
        scene = random_scene(rng, 0.2)
        if scene.kind == kind:
            found.append((scene, rng))
        number += 1
    return found


def center(image: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """(x, y) of the middle of the pixels of a colour, as fractions of the side."""
    y, x = np.nonzero((image == colour).all(axis=-1))
    return (x.min() + x.max() + 1) / 2 / SIZE, (y.min() + y.max() + 1) / 2 / SIZE


def count_blobs(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many connected regions of a colour there are."""
    left = {tuple(place) for place in np.argwhere((image == colour).all(axis=-1))}
    blobs = 0
    while left:
        blobs, edge = blobs + 1, [left.pop()]
        while edge:
            y, x = edge.pop()
            for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if place in left:
                    left.remove(place)
                    edge.append(place)
    return blobs


def test_share_of_plain_scenes():
    rng = np.random.default_rng(0)
    kinds = [random_scene(rng, 0.5).kind for _ in range(4000)]
    assert abs(kinds.count("plain") / 4000 - 0.5) < 0.03
    assert all(abs(kinds.count(kind) / 2000 - 0.25) < 0.13 for kind in ("placed", "pair", "copies"))
    assert {random_scene(rng, 1.0) for _ in range(50)} == {PLAIN}
    assert PLAIN not in [random_scene(rng, 0.0) for _ in range(50)]


def test_share_of_pairs_among_composed_scenes():
    rng = np.random.default_rng(0)
    kinds = [random_scene(rng, 0.5, pair_share=0.8).kind for _ in range(4000)]
    assert abs(kinds.count("plain") / 4000 - 0.5) < 0.03
    assert abs(kinds.count("pair") / 2000 - 0.8) < 0.06
    assert kinds.count("colour") > kinds.count("placed") > 0 < kinds.count("copies")
    assert {random_scene(rng, 0.0, pair_share=1.0).kind for _ in range(50)} == {"pair"}
    assert "pair" not in {random_scene(rng, 0.0, pair_share=0.0).kind for _ in range(50)}


def test_share_of_pairs_beside_each_other():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, 0.0, pair_share=1.0, beside_share=0.8) for _ in range(2000)]
    assert abs(sum(s.arrangement == "beside" for s in scenes) / 2000 - 0.8) < 0.04
    for share, arrangement in ((1.0, "beside"), (0.0, "above")):
        told = {random_scene(rng, 0.0, 1.0, share).arrangement for _ in range(50)}
        assert told == {arrangement}


def test_boxes_stay_inside():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        for left, top, side in random_scene(rng, 0.0).boxes:
            assert left >= 0 and top >= 0 and 0.25 < side <= 1
            assert left + side <= 1 + 1e-9 and top + side <= 1 + 1e-9


def test_without_jitter_captions_tell_all_of_a_layout():
    rng = np.random.default_rng(0)
    still = [random_scene(rng, 0.0, jitter=0.0) for _ in range(400)]
    layouts = {(s.kind, s.arrangement, len(s.boxes)): set() for s in still}
    for scene in still:
        layouts[scene.kind, scene.arrangement, len(scene.boxes)].add(scene.boxes)
    assert len(layouts) == 16 and all(len(boxes) == 1 for boxes in layouts.values())
    beside = next(s.boxes for s in still if s.kind == "pair" and s.arrangement == "beside")
    assert np.allclose(beside, [(0.015, 0.265, 0.47), (0.515, 0.265, 0.47)])


def test_told_background_is_painted():
    told = 0
    for scene, rng in scenes("colour"):
        scene = choose_background(scene, [mean_colour(PICTURES[0])], rng)
        image = paint(scene, PICTURES[:1], SIZE)
        caption = caption_scene(scene, [APPLE], rng)
        match = re.search(r" on an? (.+?) background", caption)
        if match:
            told += 1
            assert tuple(image[0, 0]) == BACKGROUNDS[match.group(1)] == tuple(image[-1, -1])
    assert told > 40


def test_background_stands_out():
    for number in range(100):
        rng = np.random.default_rng(number)
        means = [np.array(BACKGROUNDS["red"], float), np.array(BACKGROUNDS["blue"], float)]
        scene = choose_background(Scene("colour", ((0.0, 0.0, 0.9),)), means, rng)
        colour = np.array(BACKGROUNDS[scene.background], float)
        assert min(np.linalg.norm(colour - mean) for mean in means) >= MIN_CONTRAST


def test_told_place_is_where_it_stands():
    for scene, rng in scenes("placed"):
        x, y = center(paint(scene, PICTURES[:1], SIZE), RED)
        caption = caption_scene(scene, [APPLE], rng)
        words = next(words for words in PLACE_WORDS if words in caption)
        for where, found in zip(PLACE_WORDS[words], (x, y), strict=True):
            assert (found < 0.4, 0.35 < found < 0.65, found > 0.6)[int(2 * where)]


def test_told_order_of_a_pair_is_painted():
    apple, rocket = "a red apple", "a rocket"
    for scene, rng in scenes("pair", 120):
        image = paint(scene, PICTURES, SIZE)
        (x_1, y_1), (x_2, y_2) = center(image, RED), center(image, BLUE)
        caption = caption_scene(scene, [APPLE, ROCKET], rng)
        assert apple in caption and rocket in caption
        if re.search(f"{apple} (above|over|on top|at the top)|{rocket} (below|under)", caption):
            assert y_1 < y_2 - 0.3
        elif re.search(f"{apple} (to the left|on the left)|{rocket} to the right", caption):
            assert x_1 < x_2 - 0.3
        elif re.search("next to|beside|with|side by side", caption):
            assert abs(x_1 - x_2) > 0.3 and abs(y_1 - y_2) < 0.1
        else:
            assert f"{apple} and {rocket}" in caption


def test_told_number_is_painted():
    for scene, rng in scenes("copies"):
        blobs = count_blobs(paint(scene, PICTURES[:1], SIZE), RED)
        caption = caption_scene(scene, [APPLE], rng)
        told = 2 if "two red apples" in caption else 3 if "three red apples" in caption else None
        assert blobs == told


def test_over_is_the_exact_blend():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    alpha = rgba[..., 3:] / 255
    exact = alpha * rgba[..., :3] + (1 - alpha) * np.array(BACKGROUNDS["pink"])
    assert np.abs(over(rgba, BACKGROUNDS["pink"]) - exact).max() <= 0.51


def test_plain_picture_is_itself_on_white():
    image = paint(PLAIN, PICTURES[:1], SIZE)
    assert (image == over(PICTURES[0], (255, 255, 255))).all()
    assert tuple(image[0, 0]) == (255, 255, 255)


def test_tint_keeps_the_shape():
    tinted = tint_picture(PICTURES[0], (1, 2, 3))
    assert (tinted[..., 3] == PICTURES[0][..., 3]).all()
    assert (tinted[..., :3] == (1, 2, 3)).all()
    assert tuple(PICTURES[0][32, 32, :3]) == RED


def test_mean_colour_ignores_what_is_transparent():
    assert np.allclose(mean_colour(PICTURES[0]), RED)
    assert np.allclose(mean_colour(np.zeros((8, 8, 4), np.uint8)), 0)


def test_read_picture_names_the_fault(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(FileNotFoundError, match="a.png is missing"):
        read_picture(path, 64)
    Image.fromarray(PICTURES[0]).save(path)
    with pytest.raises(ValueError, match="64x64, not 32x32"):
        read_picture(path, 32)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(ValueError, match="a.png is broken"):
        read_picture(path, 64)
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="a.png is broken"):
        read_picture(path, 64)
