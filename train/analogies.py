"""Embeddings of drawings that nobody made: a concept in the style of an artist who never drew it.

The text diffs of DALL-E 2 (section 3.3) add a difference of embeddings to that of a picture. Here
the difference is that of styles, and what comes out is what a prior may learn of such captions.
Shapes: N drawings, D embedding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip_train.conditions import PlainEmbeddings
from unclip_train.config import ConfigError
from unclip_train.data.captions import make_caption
from unclip_train.data.drawings import Drawing, base_concept

STRENGTH = 1.5  # of a style: a mean over artists has less of any than a drawing (emoji-model.md)


class Analogies:
    """Pairs of caption and embedding for every concept in every style that it was not drawn in.

    Args:
        drawings: that are known; where all styles have all concepts there is nothing to add.
        z_img: their embeddings [N, D].
        loose_share: of captions, as in make_caption.

    Raises:
        ConfigError: when no pair is missing.
    """

    def __init__(self, drawings: Sequence[Drawing], z_img: Tensor, loose_share: float = 0.0):
        self.loose_share = loose_share
        self.pairs, z_missing = [], []
        for drawing, style, z in missing_pairs(drawings, z_img):
            self.pairs.append(replace(drawing, style=style))
            z_missing.append(z)
        if not self.pairs:
            raise ConfigError("analogies: every concept is drawn in every style; leave it at 0")
        self.z_img = torch.stack(z_missing)  # [number of pairs, D]

    def mix_in(
        self,
        captions: Sequence[str],
        z_img: Tensor,
        share: float,
        generators: Sequence[torch.Generator],
    ) -> tuple[list[str], Tensor]:
        """Captions and z_img [B, D], of which a share gives its place to pairs drawn at random."""
        captions, z_img = list(captions), z_img.clone()
        for row, generator in enumerate(generators):
            if torch.rand((), generator=generator) >= share:
                continue
            number = int(torch.randint(len(self.pairs), (), generator=generator))
            words = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
            captions[row] = make_caption(self.pairs[number], words, loose_share=self.loose_share)
            z_img[row] = self.z_img[number].to(z_img)
        return captions, z_img


def missing_pairs(
    drawings: Sequence[Drawing], z_img: Tensor, strength: float = STRENGTH
) -> list[tuple[Drawing, str, Tensor]]:
    """A drawing of a concept, a style that it is missing in, and the embedding [D] by analogy.

    z(c, s) = mean over artists a of c (z(c, a) - m_a) + m + k (m_s - m),

    m_a the mean of a style, m that of the means, k the strength; brought to the usual length.
    """
    of_style: dict[str, list[int]] = defaultdict(list)
    of_concept: dict[str, list[int]] = defaultdict(list)
    for row, drawing in enumerate(drawings):
        of_style[drawing.style].append(row)
        of_concept[base_concept(drawing)].append(row)
    mean = {style: z_img[rows].mean(0) for style, rows in sorted(of_style.items())}
    whole, length = torch.stack(list(mean.values())).mean(0), z_img.norm(dim=-1).mean()
    missing = []
    for rows in of_concept.values():
        known = {drawings[row].style for row in rows}
        concept = torch.stack([z_img[row] - mean[drawings[row].style] for row in rows]).mean(0)
        for style in mean.keys() - known:
            z = concept + whole + strength * (mean[style] - whole)
            missing.append((drawings[rows[0]], style, length * F.normalize(z, dim=0)))
    return sorted(missing, key=lambda pair: (pair[0].id, pair[1]))


def find_analogies(kept: PlainEmbeddings) -> Analogies:
    """Those of a data set of drawings, whose embeddings are kept from here on.

    Raises:
        ConfigError: when no pair is missing.
    """
    dataset = kept.drawings
    names = [drawing.id for drawing in dataset.drawings]
    with torch.no_grad():
        found = kept.find(names, torch.device("cpu"))
    z_img = torch.stack([found[row] for row in range(len(names))])
    return Analogies(dataset.drawings, z_img, dataset.loose_share)
