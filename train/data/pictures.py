"""Users' pictures by position: every sample is a pure function of (seed, position).

S is the side of a picture, C that of a crop, in pixels; D the length of an embedding.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from unclip.pictures import MAX_PIXELS, PictureError, decode, upright

from .dataset import DEGRADATIONS, checked_position, degrade, stream
from .embeddings import Embeddings
from .framing import FRAMINGS, open_reduced, read_part, read_square, scaled_size
from .order import ChosenOrder, SampleOrder, StreamOrder
from .sources.records import LEFT_OUT, TOO_SMALL, BadSample, Fault, Source

SAMPLE_STREAM = 1
ATTEMPTS = 16  # of which all give broken samples
MOST_ATTEMPTS = 256  # with samples that are to be left out
Order = SampleOrder | ChosenOrder | StreamOrder


class NoGoodSample(RuntimeError):
    """One broken sample after another."""


class PictureDataset(Dataset):
    """Captioned pictures of a source, for CLIP, prior and decoder.

    dataset[position], for any position >= 0, is {"image": uint8 [3,S,S], "caption": str,
    "position": int, "id": str, "faults": list}, with "z_img" [D] where embeddings are given. A
    broken sample is told in "faults" and another one stands in for it.

    Args:
        source: the pictures.
        size: S.
        seed: of order, framing, mirroring and the choice among several captions.
        chosen: numbers of the samples that are shown; all unless given.
        framing: "centre", "random" or "pad"; see framing.read_square.
        flip: share of pictures shown mirrored.
        embeddings: of these pictures; they are of upright central squares.
        with_pictures: whether "image" is read at all; a prior with embeddings does without.
        window: see SampleOrder; a stream has its own.
        max_pixels, min_side: limits of a picture.
        max_bad_share: share of broken samples above which training stops (by the loader).
    """

    def __init__(
        self,
        source: Source,
        size: int,
        seed: int = 0,
        chosen: Sequence[int] | None = None,
        framing: str = "centre",
        flip: float = 0.0,
        embeddings: Embeddings | None = None,
        with_pictures: bool = True,
        window: int = 0,
        max_pixels: int = MAX_PIXELS,
        min_side: int = 0,
        max_bad_share: float = 0.05,
    ):
        if framing not in FRAMINGS:
            raise ValueError(f"framing must be one of {', '.join(FRAMINGS)}, not {framing!r}")
        if embeddings is not None and (framing != "centre" or flip):
            key = "flip" if flip else "framing"
            raise ValueError(
                f"data.{key}: the embeddings are of central squares, not mirrored; "
                "use data.framing=centre and data.flip=0"
            )
        self.source, self.size, self.seed = source, size, seed
        self.framing, self.flip = framing, flip
        self.embeddings, self.with_pictures = embeddings, with_pictures
        self.max_pixels, self.min_side, self.max_bad_share = max_pixels, min_side, max_bad_share
        self.order = order_of(source, chosen, seed, window)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict:
        return good_sample(self.source, self.order, self.seed, position, self._sample)

    def _sample(self, index: int, rng: np.random.Generator) -> dict:
        captions = self.source.captions(index)
        sample = {"caption": captions[int(rng.integers(len(captions)))]}
        content = None
        if self.with_pictures:
            content = self.source.picture(index)
            limits = {"max_pixels": self.max_pixels, "min_side": self.min_side}
            image = read_square(content, self.size, self.framing, rng, **limits)
            if rng.random() < self.flip:
                image = image[:, ::-1]
            sample["image"] = to_tensor(image)
        if self.embeddings is not None:
            sample["z_img"] = self.embeddings.read(index, content, self.source.name(index))
        return sample | {"id": self.source.name(index)}


class PictureCropDataset(Dataset):
    """Crops of a source's pictures beside their degraded quarter-size versions, for upsamplers.

    dataset[position] is {"image": uint8 [3,C,C], "x_low": float32 [3,C/4,C/4] in [-1,1],
    "position": int, "id": str, "faults": list}. A picture is scaled down until its shorter side is
    S, or half of that, and never enlarged; only the crop and what surrounds it is worked out.

    Args:
        source, seed, chosen, window, max_pixels, min_side, max_bad_share: as for PictureDataset.
        size: S.
        crop: C, a multiple of 4.
        degradation: one of DEGRADATIONS; see degrade() in dataset.py.
        shrink_share: share of crops taken from pictures of half the size, where they fit.
    """

    MARGIN = 32  # pixels around a crop that its degraded version is made from

    def __init__(
        self,
        source: Source,
        size: int,
        crop: int,
        degradation: str = "blur",
        seed: int = 0,
        chosen: Sequence[int] | None = None,
        flip: float = 0.0,
        window: int = 0,
        max_pixels: int = MAX_PIXELS,
        min_side: int = 0,
        max_bad_share: float = 0.05,
        shrink_share: float = 0.25,
    ):
        if not 4 <= crop <= size or crop % 4:
            raise ValueError(f"data.crop must be a multiple of 4 between 4 and {size}, not {crop}")
        if degradation not in DEGRADATIONS:
            raise ValueError(f"degradation must be one of {', '.join(DEGRADATIONS)}")
        self.source, self.size, self.crop, self.seed = source, size, crop, seed
        self.degradation, self.flip, self.shrink_share = degradation, flip, shrink_share
        self.max_pixels, self.min_side, self.max_bad_share = max_pixels, min_side, max_bad_share
        self.order = order_of(source, chosen, seed, window)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict:
        return good_sample(self.source, self.order, self.seed, position, self._sample)

    def _sample(self, index: int, rng: np.random.Generator) -> dict:
        shrink = rng.random() < self.shrink_share and 2 * self.crop <= self.size
        side = self.size // 2 if shrink else self.size
        picture = open_reduced(self.source.picture(index), side, self.max_pixels, self.min_side)
        picture = upright(decode(picture))
        scaled = scaled_size(picture, side)
        if min(scaled) < self.crop:
            raise BadSample(TOO_SMALL, self.source.name(index))
        window, (top, left) = self._window(picture, scaled, rng)
        x_low = degrade(window, self.degradation, rng)
        small = self.crop // 4
        x_low = x_low[:, top // 4 : top // 4 + small, left // 4 : left // 4 + small]
        image = window[top : top + self.crop, left : left + self.crop]
        if rng.random() < self.flip:
            image, x_low = image[:, ::-1], x_low.flip(2)
        return {
            "image": to_tensor(image),
            "x_low": x_low.contiguous(),
            "id": self.source.name(index),
        }

    def _window(
        self, picture, scaled: tuple[int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """A crop with its surroundings, [H,W,3] uint8, and the crop's (top, left) within it."""
        rooms = np.array(scaled) - self.crop
        left, top = (4 * rng.integers(rooms // 4 + 1)).tolist()
        box = (
            max(0, left - self.MARGIN),
            max(0, top - self.MARGIN),
            left + min(scaled[0] - left, self.crop + self.MARGIN) // 4 * 4,
            top + min(scaled[1] - top, self.crop + self.MARGIN) // 4 * 4,
        )
        return read_part(picture, scaled, box), (top - box[1], left - box[0])


def order_of(source: Source, chosen: Sequence[int] | None, seed: int, window: int) -> Order:
    """The order of a source's samples, or of those that are chosen.

    A stream is shuffled within the windows that it keeps, since going back begins it anew.
    """
    if source.sequential and chosen is not None:
        return StreamOrder(chosen, seed, source.window)
    if source.sequential:
        return SampleOrder(len(source), seed, source.window, in_order=True)
    order = SampleOrder(len(source) if chosen is None else len(chosen), seed, window)
    return order if chosen is None else ChosenOrder(order, chosen)


def good_sample(
    source: Source,
    order: Order,
    seed: int,
    position: int,
    read: Callable[[int, np.random.Generator], dict],
) -> dict:
    """The sample at a position; where it is broken, another one, and what was wrong.

    Raises:
        NoGoodSample: after 16 broken ones, or 256 where some were to be left out.
    """
    position = checked_position(position)
    faults: list[Fault] = []
    for attempt in range(MOST_ATTEMPTS):
        if sum(fault.reason not in LEFT_OUT for fault in faults) == ATTEMPTS:
            break
        index = order.substitute(position, attempt) if attempt else order[position]
        rng = stream(seed, SAMPLE_STREAM, position)
        try:
            return read(index, rng) | {"position": position, "faults": faults}
        except BadSample as error:
            faults.append(Fault(error.fault.reason, source.name(index)))
        except PictureError as error:
            faults.append(Fault(error.reason, source.name(index)))
    raise NoGoodSample(
        f"data.source: {len(faults)} broken samples in a row, the last {faults[-1].name}: "
        f"{faults[-1].reason}; look at them with unclip-data check"
    )


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """[H,W,3] uint8 to [3,H,W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
