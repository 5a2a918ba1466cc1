"""Training pictures by position: every sample is a pure function of (seed, position).

S is the side of a picture, C that of a crop, in pixels.
"""

import operator
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset

from unclip_train.config import CHOICES

from .compose import (
    BESIDE_SHARE,
    PLAIN,
    SCENE_SHARES,
    caption_scene,
    choose_background,
    mean_colour,
    over,
    paint,
    random_scene,
    read_picture,
    tint_picture,
)
from .drawings import (
    STYLES,
    Drawing,
    base_concept,
    files_present,
    is_measured,
    load_drawings,
)
from .vocabulary import BACKGROUNDS, TINTS

BALANCES = ("concept", "drawing", "pair")
DEGRADATIONS = CHOICES["degradation"]
EAGER_BYTES = 512 * 2**20
CACHE_BYTES = 4 * 2**30
_EPOCH_STREAM, _SAMPLE_STREAM, _PHASE_STREAM = 0, 1, 2


def stream(seed: int, kind: int, number: int) -> np.random.Generator:
    """A generator that depends on nothing but the three numbers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, kind, number))))


def training_drawings(
    folder: str | os.PathLike,
    size: int,
    shared_only: bool = False,
    styles: Iterable[str] | None = None,
    held_out: bool = False,
) -> list[Drawing]:
    """The folder's drawings that may be trained on and are rendered at this size.

    held_out: those of EMOJI_STYLES that may not, looked at only to see what was learned.

    Raises:
        ValueError: when a style is unknown, or nothing is left.
    """
    wanted = set(STYLES if styles is None else styles)
    for style in sorted(wanted - set(STYLES)):
        raise ValueError(f"styles: {style!r} is unknown; use {', '.join(STYLES)}")
    present = files_present(folder, size)
    drawings = [
        drawing
        for drawing in load_drawings(folder)
        if (is_measured(drawing) if held_out else not drawing.held_out)
        and drawing.style in wanted
        and (drawing.shared or not shared_only)
        and drawing.id in present
    ]
    if not drawings:
        purpose = "held out" if held_out else "to train on"
        raise ValueError(
            f"folder {str(folder)!r} holds no drawing {purpose} at {size} pixels; "
            f"render some with `unclip-data emoji --output {folder} --sizes {size}`"
        )
    return drawings


class ConceptOrder:
    """Which drawing stands at a position: concepts permuted in each epoch, styles in turn.

    Position p is concept pi_e(p mod N) of epoch e = p div N, N the number of concepts; in epoch e
    a concept shows file (phase + e) mod F of its F files, styles alternating, so that after F
    epochs each file was seen once. With balance "pair" it stands there twice in a row, with two
    files that follow each other.
    """

    def __init__(self, drawings: Sequence[Drawing], seed: int, balance: str = "concept"):
        if balance not in BALANCES:
            raise ValueError(f"balance must be one of {', '.join(BALANCES)}, not {balance!r}")
        self.num_in_a_row = 2 if balance == "pair" else 1
        groups: dict[tuple[bool, str], dict[str, list[int]]] = defaultdict(dict)
        for index, drawing in enumerate(drawings):
            name = drawing.id if balance == "drawing" else base_concept(drawing)
            key = (drawing.style == "icon", name)
            groups[key].setdefault(drawing.style, []).append(index)
        self.seed = seed
        self.files = [self._interleave(groups[key]) for key in sorted(groups)]
        self.phases = stream(seed, _PHASE_STREAM, 0).integers(2**31, size=len(self.files))
        self.of_style: dict[str, list[list[int]]] = defaultdict(list)
        for key in sorted(groups):
            for style, files in groups[key].items():
                self.of_style[style].append(files)
        self._epoch = (-1, np.empty(0, dtype=np.int64))

    @staticmethod
    def _interleave(of_style: dict[str, list[int]]) -> list[int]:
        ranked = [
            (rank / len(files), style, index)
            for style, files in of_style.items()
            for rank, index in enumerate(files)
        ]
        return [index for _, _, index in sorted(ranked)]

    def __len__(self) -> int:
        return len(self.files) * self.num_in_a_row

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, len(self))
        place, number = divmod(place, self.num_in_a_row)
        if self._epoch[0] != epoch:
            order = stream(self.seed, _EPOCH_STREAM, epoch).permutation(len(self.files))
            self._epoch = (epoch, order)
        concept = int(self._epoch[1][place])
        files = self.files[concept]
        first = int(self.phases[concept]) + epoch * self.num_in_a_row
        return files[(first + number) % len(files)]

    def other(self, style: str, unlike: int, rng: np.random.Generator) -> int:
        """Another concept's file in the same style; `unlike` itself where there is none."""
        groups = self.of_style[style]
        for _ in range(4):
            files = groups[int(rng.integers(len(groups)))]
            if unlike not in files:
                return files[int(rng.integers(len(files)))]
        return unlike


class Pictures:
    """The drawings' RGBA pictures, [S,S,4] uint8, kept in memory up to a bound.

    All are read at once where they fit into 512 MiB (64 pixels do), so that forked loader
    processes share them; else each is kept when first read, until cache_bytes are full.
    """

    def __init__(self, drawings: Sequence[Drawing], size: int, cache: bool, cache_bytes: int):
        self.drawings, self.size = drawings, size
        self.kept: dict[int, np.ndarray] = {}
        self.room = cache_bytes // (4 * size * size) if cache else 0
        self.all: np.ndarray | None = None
        if cache and 4 * size * size * len(drawings) <= min(EAGER_BYTES, cache_bytes):
            self.all = np.empty((len(drawings), size, size, 4), dtype=np.uint8)
            for index, drawing in enumerate(drawings):
                self.all[index] = read_picture(drawing.path(size), size)

    def __getitem__(self, index: int) -> np.ndarray:
        if self.all is not None:
            return self.all[index]
        picture = self.kept.get(index)
        if picture is None:
            picture = read_picture(self.drawings[index].path(self.size), self.size)
            if len(self.kept) < self.room:
                self.kept[index] = picture
        return picture


def checked_position(position: int) -> int:
    """A position as an int, 0 or more."""
    position = operator.index(position)
    if position < 0:
        raise ValueError(f"position must be 0 or more, not {position}")
    return position


def _check_numbers(seed: int, **shares: float) -> None:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, not {seed}")
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} must be between 0 and 1, not {share}")


class DrawingDataset(Dataset):
    """Captioned pictures of drawings, alone on white or composed, for CLIP, prior and decoder.

    dataset[position], for any position >= 0, is {"image": uint8 [3,S,S], "caption": str,
    "position": int, "id": str, "style": str, "plain": the id where the drawing stands single on
    white in its own colours, else ""}; len(dataset) is the number of positions of one epoch.
    Iterate with positions of your own: there is no last one.

    Args:
        folder: as `unclip-data emoji` writes it.
        size: S, a size that was rendered.
        seed: of order, scenes and words.
        shared_only: only concepts that all three families draw, without People & Body.
        styles: of noto, twemoji, fluent, flat, icon; None for all.
        plain_share: share of single drawings on white.
        pair_share: of the composed pictures, those of two things.
        beside_share: of these, those beside each other; the rest stand one above another.
        jitter: how far the things of composed pictures stray from their places, 0 to 1.
        loose_share: share of captions of single things that name it as a hurried user does.
        balance: "concept" shows each concept once an epoch; "drawing" shows each drawing once;
            "pair" shows each concept twice in a row, by two artists where there are two, so that a
            batch is full of pictures that differ in style alone (CLIP learns styles from that).
        held_out: show the held-out drawings, and no others.
        cache: keep pictures in memory, at most cache_bytes in each process.

    Raises:
        FileNotFoundError, ValueError: when the folder, an argument or a picture is at fault.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        size: int,
        seed: int = 0,
        shared_only: bool = False,
        styles: Iterable[str] | None = None,
        plain_share: float = 0.5,
        balance: str = "concept",
        held_out: bool = False,
        cache: bool = True,
        cache_bytes: int = CACHE_BYTES,
        loose_share: float = 0.0,
        pair_share: float = SCENE_SHARES["pair"],
        beside_share: float = BESIDE_SHARE,
        jitter: float = 1.0,
    ):
        scenes = {
            "plain_share": plain_share,
            "pair_share": pair_share,
            "beside_share": beside_share,
            "jitter": jitter,
        }
        _check_numbers(seed, loose_share=loose_share, **scenes)
        self.size, self.seed, self.scenes = size, seed, scenes
        self.loose_share = loose_share
        self.drawings = training_drawings(folder, size, shared_only, styles, held_out)
        self.order = ConceptOrder(self.drawings, seed, balance)
        self.pictures = Pictures(self.drawings, size, cache, cache_bytes)
        self.means: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict:
        position = checked_position(position)
        index = self.order[position]
        rng = stream(self.seed, _SAMPLE_STREAM, position)
        scene = random_scene(rng, **self.scenes)
        indices = [index]
        if scene.kind == "pair":
            indices.append(self.order.other(self.drawings[index].style, index, rng))
        things = [self.drawings[i] for i in indices]
        tints = self._tints(things, rng)
        if scene.kind != "plain":
            means = [self._mean(i, tint) for i, tint in zip(indices, tints, strict=True)]
            scene = choose_background(scene, means, rng)
        pictures = [self._picture(i, tint) for i, tint in zip(indices, tints, strict=True)]
        image = paint(scene, pictures, self.size)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "caption": caption_scene(scene, things, rng, tints, self.loose_share),
            "position": position,
            "id": things[0].id,
            "style": things[0].style,
            "plain": things[0].id if scene.kind == "plain" and tints[0] is None else "",
        }

    def plain_picture(self, index: int) -> torch.Tensor:
        """The picture [3,S,S] of a drawing single on white, as every plain sample shows it."""
        image = paint(PLAIN, [self.pictures[index]], self.size)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def _tints(self, things: list[Drawing], rng: np.random.Generator) -> list[str | None]:
        names = tuple(TINTS)
        return [
            names[int(rng.integers(len(names)))] if thing.style == "icon" else None
            for thing in things
        ]

    def _mean(self, index: int, tint: str | None) -> np.ndarray:
        if tint is not None:
            return np.asarray(TINTS[tint], dtype=np.float64)
        if index not in self.means:
            self.means[index] = mean_colour(self.pictures[index])
        return self.means[index]

    def _picture(self, index: int, tint: str | None) -> np.ndarray:
        picture = self.pictures[index]
        return picture if tint is None else tint_picture(picture, TINTS[tint])


class UpsamplerDataset(Dataset):
    """Crops of large pictures beside their degraded quarter-size versions, for the upsamplers.

    dataset[position], for any position >= 0, is {"image": uint8 [3,C,C], "x_low": float32
    [3,C/4,C/4] in [-1,1], "position": int}. x_low is cut from a degraded window that reaches
    beyond the crop, so that a crop's edge looks as it does inside a whole picture.

    Args:
        folder: as `unclip-data emoji` writes it.
        size: S of the pictures, 256 or 1024 (any multiple of 16 that was rendered).
        crop: C, a multiple of 4, at most S; S // 4 when None.
        degradation: one of DEGRADATIONS; see degrade().
        seed: of order, crops and degradations.
        shared_only, styles: as for DrawingDataset.
        background_share: share of crops on a random colour in place of white.
        shrink_share: share of crops taken from a picture of half the size, where they fit.
        blank_share: share of crops that may be of one colour; others are drawn again.
        held_out: show the held-out drawings, and no others.
        cache, cache_bytes: keep pictures (4 S^2 bytes each) in memory, in each process.

    Raises:
        FileNotFoundError, ValueError: when the folder, an argument or a picture is at fault.
    """

    MARGIN = 8
    REDRAWS = 8

    def __init__(
        self,
        folder: str | os.PathLike,
        size: int,
        crop: int | None = None,
        degradation: str = "blur",
        seed: int = 0,
        shared_only: bool = False,
        styles: Iterable[str] | None = None,
        background_share: float = 0.2,
        shrink_share: float = 0.25,
        blank_share: float = 0.05,
        held_out: bool = False,
        cache: bool = True,
        cache_bytes: int = CACHE_BYTES,
    ):
        crop = size // 4 if crop is None else crop
        if size < 16 or size % 16:
            raise ValueError(f"size must be a multiple of 16, not {size}")
        if not 4 <= crop <= size or crop % 4:
            raise ValueError(f"crop must be a multiple of 4 between 4 and {size}, not {crop}")
        if degradation not in DEGRADATIONS:
            known = ", ".join(DEGRADATIONS)
            raise ValueError(f"degradation {degradation!r} is unknown; use one of {known}")
        _check_numbers(
            seed,
            background_share=background_share,
            shrink_share=shrink_share,
            blank_share=blank_share,
        )
        self.size, self.crop, self.degradation, self.seed = size, crop, degradation, seed
        self.background_share, self.shrink_share = background_share, shrink_share
        self.blank_share = blank_share
        self.drawings = training_drawings(folder, size, shared_only, styles, held_out)
        self.order = ConceptOrder(self.drawings, seed)
        self.pictures = Pictures(self.drawings, size, cache, cache_bytes)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict:
        position = checked_position(position)
        rng = stream(self.seed, _SAMPLE_STREAM, position)
        index = self.order[position]
        picture = self.pictures[index]
        if self.drawings[index].style == "icon":
            picture = tint_picture(picture, list(TINTS.values())[int(rng.integers(len(TINTS)))])
        colour = self._background(rng)
        window, (top, left) = self._window(picture, colour, rng)
        x_low = degrade(window, self.degradation, rng)
        small = self.crop // 4
        x_low = x_low[:, top // 4 : top // 4 + small, left // 4 : left // 4 + small]
        image = window[top : top + self.crop, left : left + self.crop].transpose(2, 0, 1)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "x_low": x_low.contiguous(),
            "position": position,
        }

    def _background(self, rng: np.random.Generator) -> tuple[int, int, int]:
        if rng.random() >= self.background_share:
            return BACKGROUNDS["white"]
        if rng.random() < 0.5:
            return list(BACKGROUNDS.values())[int(rng.integers(len(BACKGROUNDS)))]
        return tuple(int(value) for value in rng.integers(256, size=3))

    def _window(
        self, picture: np.ndarray, colour: tuple[int, int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """A crop with its surroundings, [H,W,3] uint8, and the crop's (top, left) within it."""
        shrink = 2 if rng.random() < self.shrink_share and 2 * self.crop <= self.size else 1
        side = self.size // shrink
        may_be_blank = rng.random() < self.blank_share
        for _ in range(self.REDRAWS):
            top, left = (4 * rng.integers((side - self.crop) // 4 + 1, size=2)).tolist()
            part = _part(picture, shrink * top, shrink * left, shrink * self.crop)
            if may_be_blank or not _is_blank(part):
                break
        margin = 4 * self.MARGIN
        y, x = max(0, top - margin), max(0, left - margin)
        bottom = min(side, top + self.crop + margin)
        right = min(side, left + self.crop + margin)
        rgba = picture[shrink * y : shrink * bottom, shrink * x : shrink * right]
        window = over(rgba, colour)
        if shrink == 2:
            window = np.asarray(Image.fromarray(window).reduce(2))
        return window, (top - y, left - x)


def degrade(window: np.ndarray, kind: str, rng: np.random.Generator) -> torch.Tensor:
    """The quarter-size picture of a window [H,W,3], by one of DEGRADATIONS; [3,H/4,W/4] in [-1,1].

    "blur": area means over 4x4 pixels, then a Gaussian of 3 pixels and sigma 0.6 (the paper's 64
    to 256); "blur_light": a sigma of 0 to 0.6, for decoders as sharp as area means are;
    "blur_noise": the same, made uneven as what small networks draw; "bsr" and "bsr_light": the
    blind degradations of the paper's 256 to 1024.
    """
    from . import degradation

    if kind in ("bsr", "bsr_light"):
        variant = "full" if kind == "bsr" else "light"
        small = degradation.bsr_degrade(window, 4, rng, variant)
        return torch.from_numpy(small.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0)
    x = torch.from_numpy(window.transpose(2, 0, 1).astype(np.float32))
    sigma = degradation.SIGMA * (1.0 if kind == "blur" else 1.0 - rng.random())  # never 0
    x = degradation.gaussian_blur(F.avg_pool2d(x, 4) / 127.5 - 1.0, sigma=sigma)
    return degradation.make_uneven(x, rng) if kind == "blur_noise" else x


def _part(picture: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return picture[top : top + side, left : left + side]


def _is_blank(rgba: np.ndarray) -> bool:
    """Whether a crop shows nothing (alpha 0) or one flat colour."""
    pixels = rgba.view(np.uint32)
    return bool((pixels == pixels[0, 0]).all()) or not rgba[..., 3].any()
