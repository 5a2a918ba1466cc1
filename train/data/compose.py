"""Pictures composed of drawings: where each stands, on what colour, and a caption that is true.

A scene is drawn at random first, as fractions of the picture's side; it is then painted at any
size and put into words. S is the picture's side in pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .captions import counted_phrase, make_caption, noun_phrase, on_background, styled
from .drawings import Drawing
from .vocabulary import BACKGROUNDS, PLACE_WORDS

SCENE_SHARES = {"colour": 0.35, "placed": 0.2, "pair": 0.25, "copies": 0.2}  # of the composed
BESIDE_SHARE = 0.5  # of things in twos; the rest stand one above another
MIN_CONTRAST = 90.0
NAMED_BACKGROUND_SHARE = {"white": 0.1, "colour": 0.85}
WHITE_SHARE = 0.7

Box = tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """What stands where: boxes are (left, top, side) as fractions of the picture's side.

    `kind` is plain, colour, placed, pair or copies; `arrangement` puts the places into words
    (for a pair: "beside" or "above", the first box left or top). Box i shows thing i of a pair,
    else the only thing.
    """

    kind: str
    boxes: tuple[Box, ...]
    arrangement: str = ""
    background: str = "white"


PLAIN = Scene("plain", ((0.0, 0.0, 1.0),))


def random_scene(
    rng: np.random.Generator,
    plain_share: float,
    pair_share: float = SCENE_SHARES["pair"],
    beside_share: float = BESIDE_SHARE,
    jitter: float = 1.0,
) -> Scene:
    """A scene on white: plain with probability plain_share, else composed.

    pair_share: of the composed; the other kinds keep their shares of what is left.
    beside_share: of the pairs; the rest stand one above another.
    jitter: how far sizes and places, of which captions say nothing, stray from the middle one: 1
        as far as there is room, 0 not at all.
    """
    draw = rng.random()
    if draw < plain_share:
        return PLAIN
    draw = (draw - plain_share) / (1.0 - plain_share)
    others = (1.0 - pair_share) / (1.0 - SCENE_SHARES["pair"])
    shares = {kind: others * share for kind, share in SCENE_SHARES.items()} | {"pair": pair_share}
    kinds, ends = tuple(shares), np.cumsum(list(shares.values()))
    kind = kinds[min(int(np.searchsorted(ends, draw, side="right")), len(kinds) - 1)]
    if kind == "placed":
        return _placed(rng, jitter)
    if kind == "pair":
        return _pair(rng, jitter, beside_share)
    if kind == "copies":
        return _copies(rng, jitter)
    side = _strayed(rng, 0.75, 1.0, jitter)
    left, top = (_strayed(rng, 0.0, 1.0 - side, jitter) for _ in range(2))
    return Scene("colour", ((left, top, side),))


def _strayed(rng: np.random.Generator, low: float, high: float, jitter: float) -> float:
    """A number of the range that is left when jitter shrinks low .. high towards its middle."""
    shrink = (1.0 - jitter) * (high - low) / 2
    return rng.uniform(low + shrink, high - shrink)


def _placed(rng: np.random.Generator, jitter: float) -> Scene:
    words = tuple(PLACE_WORDS)[int(rng.integers(len(PLACE_WORDS)))]
    side = _strayed(rng, 0.38, 0.5, jitter)
    slack = 1.0 - side
    left, top = (
        min(max(slack * where + _strayed(rng, -0.04, 0.04, jitter), 0.0), slack)
        for where in PLACE_WORDS[words]
    )
    return Scene("placed", ((left, top, side),), words)


def _pair(rng: np.random.Generator, jitter: float, beside_share: float) -> Scene:
    side = _strayed(rng, 0.44, 0.5, jitter)
    near, far = (0.5 - side) / 2, 0.5 + (0.5 - side) / 2
    across = _strayed(rng, 0.2, 0.8 - side, jitter)
    if rng.random() < beside_share:
        return Scene("pair", ((near, across, side), (far, across, side)), "beside")
    return Scene("pair", ((across, near, side), (across, far, side)), "above")


def _copies(rng: np.random.Generator, jitter: float) -> Scene:
    draw = int(rng.integers(4))
    if draw < 2:
        pair = _pair(rng, jitter, BESIDE_SHARE)
        words = {"beside": "side by side", "above": "one above another"}
        return Scene("copies", pair.boxes, words[pair.arrangement])
    if draw == 2:
        side = _strayed(rng, 0.3, 1 / 3, jitter)
        top = _strayed(rng, 0.2, 0.8 - side, jitter)
        boxes = tuple((i / 3 + (1 / 3 - side) / 2, top, side) for i in range(3))
        return Scene("copies", boxes, "in a row")
    side = _strayed(rng, 0.44, 0.5, jitter)
    near, far = (0.5 - side) / 2, 0.5 + (0.5 - side) / 2
    boxes = ((0.5 - side / 2, near, side), (near, far, side), (far, far, side))
    return Scene("copies", boxes, "")


def choose_background(
    scene: Scene, mean_colours: list[np.ndarray], rng: np.random.Generator
) -> Scene:
    """The scene on a named colour that none of its things melts into.

    mean_colours: of each thing, [3] in 0..255. A thing whose mean colour is within MIN_CONTRAST
    (Euclidean) of a background is not put on it; white is kept in WHITE_SHARE of the scenes, and
    always in a plain one.
    """
    if scene.kind == "plain" or (scene.kind != "colour" and rng.random() < WHITE_SHARE):
        return scene
    names = tuple(BACKGROUNDS)
    for index in rng.permutation(len(names)):
        colour = np.asarray(BACKGROUNDS[names[index]], dtype=np.float64)
        gaps = [np.linalg.norm(colour - mean) for mean in mean_colours]
        if min(gaps) >= MIN_CONTRAST:
            return Scene(scene.kind, scene.boxes, scene.arrangement, names[index])
    return scene


def caption_scene(
    scene: Scene,
    things: list[Drawing],
    rng: np.random.Generator,
    tints: list[str | None] | None = None,
    loose_share: float = 0.0,
) -> str:
    """A caption that is true of the scene; background and style go unsaid now and then.

    things: one drawing, two for a pair, all of one style. tints: the colours of icons.
    loose_share: of captions of a single thing, as in make_caption.
    """
    tints = tints or [None] * len(things)
    kind = "white" if scene.background == "white" else "colour"
    told = rng.random() < NAMED_BACKGROUND_SHARE[kind]
    background = scene.background if told else None
    if scene.kind in ("plain", "colour"):
        return make_caption(things[0], rng, background, tints[0], loose_share)
    name, tint = things[0].name, tints[0] or ""
    if scene.kind == "placed":
        size = "small " if rng.random() < 0.5 else ""
        subject = f"{noun_phrase(name, (size + tint).strip())} {scene.arrangement}"
    elif scene.kind == "copies":
        subject = counted_phrase(name, len(scene.boxes), tint)
        if rng.random() < 0.5:
            subject = f"{subject} {scene.arrangement}".strip()
    else:
        phrases = [
            noun_phrase(thing.name, tint or "") for thing, tint in zip(things, tints, strict=True)
        ]
        subject = _pair_words(scene.arrangement, *phrases, rng)
    if background is not None:
        subject = on_background(subject, background)
    return styled(subject, things[0].style, rng)


def _pair_words(arrangement: str, first: str, second: str, rng: np.random.Generator) -> str:
    if arrangement == "beside":
        forms = (
            f"{first} and {second} side by side",
            f"{first} next to {second}",
            f"{second} next to {first}",
            f"{first} beside {second}",
            f"{second} beside {first}",
            f"{first} with {second}",
            f"{first} to the left of {second}",
            f"{second} to the right of {first}",
            f"{first} on the left and {second} on the right",
            f"{first} and {second}",
        )
    else:
        forms = (
            f"{first} above {second}",
            f"{second} below {first}",
            f"{second} under {first}",
            f"{first} on top of {second}",
            f"{first} at the top and {second} at the bottom",
            f"{first} over {second}",
            f"{first} and {second}",
        )
    return forms[int(rng.integers(len(forms)))]


def read_picture(path: Path, size: int) -> np.ndarray:
    """A drawing's PNG as RGBA, [size,size,4] uint8.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a whole picture, or not size x size pixels.
    """
    try:
        with Image.open(path) as picture:
            if picture.size != (size, size):
                width, height = picture.size
                raise ValueError(f"picture {path} is {width}x{height}, not {size}x{size} pixels")
            return np.asarray(picture.convert("RGBA"))
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {path} is missing; render it again") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"picture {path} is broken ({error}); delete it and render again"
        ) from None


def mean_colour(rgba: np.ndarray) -> np.ndarray:
    """Mean colour weighted by alpha, [3] in 0..255, from about 32 x 32 samples of [S,S,4]."""
    step = max(1, rgba.shape[0] // 32)
    sample = rgba[::step, ::step].reshape(-1, 4).astype(np.float64)
    return sample[:, 3] @ sample[:, :3] / max(sample[:, 3].sum(), 1.0)


def tint_picture(rgba: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The same shape in one colour: RGB replaced, alpha kept; [S,S,4] uint8."""
    out = rgba.copy()
    out[..., :3] = colour
    return out


def over(rgba: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Composite [H,W,4] on a colour: round((a rgb + (255 - a) colour) / 255), [H,W,3] uint8."""
    height, width, _ = rgba.shape
    canvas = Image.new("RGB", (width, height), tuple(colour))
    picture = Image.fromarray(rgba)
    canvas.paste(picture, (0, 0), picture)
    return np.asarray(canvas)


def paint(scene: Scene, pictures: list[np.ndarray], size: int) -> np.ndarray:
    """The scene as [size,size,3] uint8; pictures: RGBA [S,S,4] of each thing, any S."""
    canvas = Image.new("RGB", (size, size), BACKGROUNDS[scene.background])
    for number, (left, top, side) in enumerate(scene.boxes):
        picture = Image.fromarray(pictures[number] if scene.kind == "pair" else pictures[0])
        pixels = max(1, round(side * size))
        if picture.width != pixels:
            picture = picture.resize((pixels, pixels), Image.Resampling.BICUBIC)
        x, y = (min(round(start * size), size - pixels) for start in (left, top))
        canvas.paste(picture, (x, y), picture)
    return np.asarray(canvas)
