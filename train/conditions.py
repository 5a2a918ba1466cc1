"""What prior and decoder are told of a batch's pictures.

Shapes: B batch, S pixels a side, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unclip.diffusion.guidance import drop_mask
from unclip.models.clip import CLIP, TextEncoding
from unclip.models.prior import Prior
from unclip.pipeline.schedulers import scheduler_for
from unclip.pipeline.stages import Stage, sample_prior
from unclip_train.data.dataset import DrawingDataset
from unclip_train.data.loader import to_unit_range

GROUP = 16  # drawings that are embedded together
PRIOR_STEPS = 10


class PlainEmbeddings:
    """z_img of drawings that stand single on white, which are the same at every showing: kept.

    They are embedded when one of them is first asked for, in groups by their place in the data set,
    so that an embedding does not depend, to the bit, on the batch that it was first asked for in.

    Args:
        clip: whose embeddings they are.
        drawings: the data set that shows them.
    """

    def __init__(self, clip: CLIP, drawings: DrawingDataset):
        self.clip, self.drawings = clip, drawings
        self.places = {drawing.id: place for place, drawing in enumerate(drawings.drawings)}
        self.groups: dict[int, Tensor] = {}  # each [GROUP, D]

    def find(self, names: list[str], device: torch.device) -> dict[int, Tensor]:
        """By its row in a batch, the z_img [D] of each name that is one of these drawings'."""
        found = {}
        for row, name in enumerate(names):
            if name in self.places:
                group, place = divmod(self.places[name], GROUP)
                found[row] = self._group(group, device)[place]
        return found

    def _group(self, number: int, device: torch.device) -> Tensor:
        if number not in self.groups:
            first = number * GROUP
            places = range(first, min(first + GROUP, len(self.places)))
            images = torch.stack([self.drawings.plain_picture(place) for place in places])
            self.groups[number] = self.clip.encode_image(to_unit_range(images, device))
        return self.groups[number].to(device)


@torch.no_grad()
def image_embeddings(
    clip: CLIP, batch: dict, device: torch.device, kept: PlainEmbeddings | None = None
) -> Tensor:
    """z_img [B, D]: those that came with the batch, those that are kept, or of its pictures."""
    if "z_img" in batch:
        return batch["z_img"].to(device, non_blocking=True)
    found = {} if kept is None else kept.find(batch.get("plain", ()), device)
    others = [row for row in range(len(batch["image"])) if row not in found]
    if others:
        x = to_unit_range(batch["image"][others], device)
        found |= dict(zip(others, clip.encode_image(x), strict=True))
    return torch.stack([found[row] for row in range(len(batch["image"]))])


def draw_embeddings(prior: Prior, text: TextEncoding, seeds: list[int]) -> Tensor:
    """z_img [B, D] that a prior draws of captions, without guidance, in a few steps."""
    stage = Stage("prior", prior, scheduler_for(prior, "ddpm"), PRIOR_STEPS)
    return sample_prior(stage, text, text, seeds, 1.0, 1)


@torch.no_grad()
def led_by_prior(
    prior: Prior,
    clip: CLIP,
    z_img: Tensor,
    captions: Sequence[str],
    share: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """z_img [B, D], a share of them replaced by what a prior draws of the same captions.

    A decoder is led by those when it is used, and learns here how far they are to be trusted
    beside the caption.
    """
    rows = drop_mask(share, generators).nonzero().flatten().tolist()
    if not rows:
        return z_img
    seeds = [int(torch.randint(2**31, (), generator=generators[row])) for row in rows]
    text = clip.encode_text([captions[row] for row in rows])
    led = z_img.clone()
    led[rows] = draw_embeddings(prior.to(z_img.device), text, seeds).to(z_img)
    return led
