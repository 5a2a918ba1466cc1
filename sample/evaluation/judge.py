"""The judge: a CLIP that looks at pictures and reads captions, and belongs to no model graded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unclip import CLIP
from unclip.pipeline.folder import model_hash
from unclip_sample.encoder import find_clip, load_clip, logit_scale

BATCH = 64


@dataclass
class Judge:
    """A CLIP with a name and a hash; `independent` says that it is not the model's own.

    What it has read it remembers, since sections ask about the same captions again.
    """

    clip: CLIP
    name: str
    digest: str
    independent: bool

    def __post_init__(self):
        self._read: dict[str, Tensor] = {}

    @classmethod
    def load(cls, folder: str | None, pipeline: Any, model: Path, device: Any) -> Judge:
        """The CLIP in a folder, or the model's own where none is named.

        Raises:
            RequestError: for a folder that holds no CLIP.
        """
        own = model_hash(model / "clip")
        if folder is None:
            return cls(pipeline.text_and_image_encoder(), f"{model.name}/clip", own, False)
        found = find_clip(folder, "--judge")
        digest = model_hash(found)
        name = Path(folder).resolve().name
        return cls(load_clip(found, device, "--judge"), name, digest, digest != own)

    @torch.no_grad()
    def see(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures, each [S, S, 3] uint8, to unit vectors z_img [N, D]."""
        return self.look(tensor_of(pictures))

    @torch.no_grad()
    def see_halves(self, pictures: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The left and the right halves of pictures, each judged alone: z_img [N, D] of both.

        The middle square of each half is looked at, in which a thing is as large as when it stands
        alone: a judge finds few names of small ones.
        """
        x = tensor_of(pictures)
        size = x.shape[-1]
        rows = slice(size // 4, size // 4 + size // 2)
        return self.look(x[:, :, rows, : size // 2]), self.look(x[:, :, rows, size // 2 :])

    @torch.no_grad()
    def look(self, x: Tensor) -> Tensor:
        """Pictures [N, 3, S, S] in [-1, 1] to unit vectors z_img [N, D], on the CPU."""
        device = self.clip.image_mean.device
        z = torch.cat([self.clip.encode_image(part.to(device)) for part in x.split(BATCH)])
        return torch.nn.functional.normalize(z, dim=-1).cpu()

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> Tensor:
        """Captions to unit vectors z_txt [M, D]."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._read]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            z_txt = torch.nn.functional.normalize(self.clip.encode_text(part).z_txt, dim=-1).cpu()
            self._read.update(zip(part, z_txt, strict=True))
        return torch.stack([self._read[caption] for caption in captions])

    @property
    def logit_scale(self) -> float:
        """The scale at which its cosines become probabilities."""
        return logit_scale(self.clip)


def tensor_of(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures, each [S, S, 3] uint8, as [N, 3, S, S] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
