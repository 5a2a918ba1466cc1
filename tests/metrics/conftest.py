"""Small real pictures, simple features of them, and the degradations that metrics must notice."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter

SIZE = 32
COLOURS = {"red": (215, 40, 40), "green": (50, 165, 75), "blue": (40, 90, 220)}


def draw_shape(number: int) -> Image.Image:
    """A disc, a box or a cross in one of three colours, its place and size drawn by number."""
    rng = np.random.default_rng(number)
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    pen = ImageDraw.Draw(picture)
    side = rng.uniform(12, 22)
    left, top = rng.uniform(2, SIZE - side - 2, 2)
    box = (left, top, left + side, top + side)
    fill = list(COLOURS.values())[number % 3]
    if number // 3 % 3 == 0:
        pen.ellipse(box, fill)
    elif number // 3 % 3 == 1:
        pen.rectangle(box, fill)
    else:
        pen.line((left, top, left + side, top + side), fill, 5)
        pen.line((left, top + side, left + side, top), fill, 5)
    return picture


def features_of(pictures: list[Image.Image]) -> torch.Tensor:
    """Colours and edges of pictures on a 2 x 2 grid, [N, 20]: an extractor without weights."""
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).float() / 255
    x = pixels.permute(0, 3, 1, 2)
    across, down = x.diff(dim=3)[..., :-1, :].abs(), x.diff(dim=2)[..., :-1].abs()
    edges = (across + down).mean(dim=1, keepdim=True)
    colours = F.adaptive_avg_pool2d(x, 2).flatten(1)
    strongest = F.adaptive_max_pool2d(edges, 2).flatten(1)
    return torch.cat([colours, strongest, F.adaptive_avg_pool2d(edges, 2).flatten(1)], dim=1)


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def noised(picture: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 40, (SIZE, SIZE, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


DEGRADATIONS = {"blur": blurred, "noise": noised}


@pytest.fixture(scope="session")
def real():
    """Features [180, 20] of pictures 0..179."""
    return features_of([draw_shape(number) for number in range(180)])


@pytest.fixture(scope="session")
def others():
    """Features [180, 20] of 180 further pictures of the same kind."""
    return features_of([draw_shape(number) for number in range(180, 360)])


@pytest.fixture(scope="session", params=DEGRADATIONS)
def degraded(request):
    """The pictures of `others`, blurred or noisy: features [180, 20]."""
    return features_of([DEGRADATIONS[request.param](draw_shape(n)) for n in range(180, 360)])
