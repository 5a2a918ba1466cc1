"""Measure how often the background of a composed picture is named rightly from its pixels.

    python docs/measure_background.py --data data/emoji

Composed scenes are what training composes: one drawing, a small one, two, or copies, on one of the
twelve colours. The second row is the same with noise of 8 levels, as a drawn picture may have. The
third is of drawings alone, as large as the picture, on white: here "none" is a fair answer.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch

from unclip.metrics.attributes import background_colour
from unclip_train.data.compose import (
    PLAIN,
    choose_background,
    mean_colour,
    paint,
    random_scene,
    read_picture,
)
from unclip_train.data.drawings import Drawing, load_drawings
from unclip_train.data.vocabulary import BACKGROUNDS


def scenes(
    drawings: list[Drawing], num: int, plain: bool, noise: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Names of backgrounds and pictures [64, 64, 3] uint8."""
    rng = np.random.default_rng(0)
    for _ in range(num):
        drawing = drawings[rng.integers(len(drawings))]
        picture = read_picture(drawing.path(64), 64)
        scene = PLAIN if plain else random_scene(rng, 0.0)
        scene = choose_background(scene, [mean_colour(picture)], rng)
        pixels = paint(scene, [picture, picture], 64)
        noisy = pixels + rng.normal(0, noise, pixels.shape)
        yield scene.background, noisy.round().clip(0, 255).astype(np.uint8)


def main() -> None:
    """Print the counts as JSON, a line a kind of pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--num", type=int, default=1000, help="pictures of each kind")
    args = parser.parse_args()
    drawings = load_drawings(args.data)
    kinds = {"composed": (False, 0.0), "with noise": (False, 8.0), "alone on white": (True, 0.0)}
    for kind, (plain, noise) in kinds.items():
        counts: Counter[str] = Counter()
        for name, pixels in scenes(drawings, args.num, plain, noise):
            found = background_colour(torch.from_numpy(pixels), BACKGROUNDS)
            counts["right" if found == name else "none" if found is None else "wrong"] += 1
        print(json.dumps({"pictures": kind, "number": args.num, **counts}))


if __name__ == "__main__":
    main()
