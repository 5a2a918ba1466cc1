"""Styles as directions among embeddings: more of an artist's, and what an artist never drew.

The text diffs of DALL-E 2 (section 3.3) add a difference of embeddings to that of a picture. Here
the difference is that of styles, and what comes out is what a prior learns.
Shapes: B batch, N drawings, D embedding.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip_train.conditions import PlainEmbeddings
from unclip_train.config import PriorConfig
from unclip_train.data.captions import make_caption
from unclip_train.data.drawings import Drawing, base_concept


class Styles:
    """The mean embedding of each artist's drawings, m_s, and the mean of those, m.

    Args:
        drawings: that are known.
        z_img: their embeddings [N, D].
        strength: k, how much of the difference m_s - m an embedding gets; 1 is as drawn.
    """

    def __init__(self, drawings: Sequence[Drawing], z_img: Tensor, strength: float = 1.0):
        self.drawings, self.z_img, self.strength = drawings, z_img, strength
        rows: dict[str, list[int]] = defaultdict(list)
        for row, drawing in enumerate(drawings):
            rows[drawing.style].append(row)
        self.means = {style: z_img[rows[style]].mean(0) for style in sorted(rows)}
        self.mean = torch.stack(list(self.means.values())).mean(0)
        self.toward = {style: mean - self.mean for style, mean in self.means.items()}

    def strengthen(self, z_img: Tensor, styles: Sequence[str]) -> Tensor:
        """z + (k - 1) (m_s - m) of embeddings [B, D], each at its own length."""
        toward = torch.stack([self.toward[style] for style in styles]).to(z_img)
        moved = z_img + (self.strength - 1) * toward
        return F.normalize(moved, dim=-1) * z_img.norm(dim=-1, keepdim=True)

    def missing(self) -> list[tuple[Drawing, Tensor]]:
        """Drawings that nobody made: each concept in each style it has none in, with z [D].

        z(c, s) = mean over artists a of c (z(c, a) - m_a) + m + k (m_s - m), at the usual length.
        """
        length = self.z_img.norm(dim=-1).mean()
        concepts: dict[str, list[int]] = defaultdict(list)
        for row, drawing in enumerate(self.drawings):
            concepts[base_concept(drawing)].append(row)
        found = []
        for _, rows in sorted(concepts.items()):
            known = {self.drawings[row].style for row in rows}
            alone = [self.z_img[row] - self.means[self.drawings[row].style] for row in rows]
            concept = torch.stack(alone).mean(0)
            for style in sorted(self.means.keys() - known):
                z = concept + self.mean + self.strength * self.toward[style]
                drawing = replace(self.drawings[rows[0]], style=style)
                found.append((drawing, length * F.normalize(z, dim=0)))
        return found


class Analogies:
    """Captions and embeddings of what is missing, in the place of a share of others.

    Args:
        pairs: what is missing, as Styles.missing() gives it; at least one.
        share: of the captions that give their place.
        loose_share: of these captions, as in make_caption.
    """

    def __init__(
        self, pairs: Sequence[tuple[Drawing, Tensor]], share: float, loose_share: float = 0.0
    ):
        self.share, self.loose_share = share, loose_share
        self.drawings = [drawing for drawing, _ in pairs]
        self.z_img = torch.stack([z for _, z in pairs])  # [number of pairs, D]

    def mix_in(
        self, captions: Sequence[str], z_img: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[list[str], Tensor]:
        """Captions and z_img [B, D], of which a share gives its place to pairs drawn at random."""
        captions, z_img = list(captions), z_img.clone()
        for row, generator in enumerate(generators):
            if torch.rand((), generator=generator) >= self.share:
                continue
            number = int(torch.randint(len(self.drawings), (), generator=generator))
            words = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            drawing = self.drawings[number]
            captions[row] = make_caption(drawing, words, loose_share=self.loose_share)
            z_img[row] = self.z_img[number].to(z_img)
        return captions, z_img


def make_styles(
    config: PriorConfig, kept: PlainEmbeddings | None
) -> tuple[Styles | None, Analogies | None]:
    """What config.style_strength and config.analogies ask for, of drawings kept from here on.

    Where analogies are wanted and no pair is missing there are none, and a warning says so.
    """
    if config.style_strength == 1 and not config.analogies:
        return None, None
    drawings = kept.drawings.drawings
    with torch.no_grad():
        found = kept.find([drawing.id for drawing in drawings], torch.device("cpu"))
    z_img = torch.stack([found[row] for row in range(len(drawings))])
    styles = Styles(drawings, z_img, config.style_strength)
    if not config.analogies:
        return styles, None
    pairs = styles.missing()
    if not pairs:
        warnings.warn("analogies: none, every concept is drawn in every style", stacklevel=2)
        return styles, None
    return styles, Analogies(pairs, config.analogies, kept.drawings.loose_share)
