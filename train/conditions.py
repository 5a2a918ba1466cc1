"""What prior and decoder are told of a batch's pictures.

Shapes: B batch, S pixels a side, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unclip.models.clip import CLIP
from unclip_train.data.dataset import DrawingDataset
from unclip_train.data.loader import to_unit_range

GROUP = 16  # drawings that are embedded together


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
