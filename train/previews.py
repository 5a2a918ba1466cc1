"""Sheets of pictures to look at while a network learns: the same prompts and seeds every time.

Shapes: B batch, S pixels a side, D embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from unclip.models.clip import CLIP, TextEncoding
from unclip.models.decoder import Decoder
from unclip.models.prior import Prior
from unclip.pipeline.schedulers import scheduler_for
from unclip.pipeline.stages import Stage, sample_decoder
from unclip_train.data.loader import collate, to_unit_range
from unclip_train.leading import draw_embeddings
from unclip_train.weights import load_network

NUM_SEEDS = 8  # pictures of each prompt
POOL = 256  # held-out pictures among which the nearest are sought


class Sampling(NamedTuple):
    """How a decoder is sampled for a preview: DDIM steps, and guidance of prompts."""

    steps: int = 25
    guidance: float = 3.0


USUAL = Sampling()


def picture_grid(rows: list[Tensor]) -> Image.Image:
    """Batches [B, 3, S, S] in [-1, 1], one a row, as a single picture."""
    pixels = rearrange(torch.stack(rows).float().cpu(), "r b c h w -> (r h) (b w) c")
    return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().numpy())


def draw_pictures(
    decoder: nn.Module,
    clip: CLIP,
    text: TextEncoding,
    z_img: Tensor | None,
    seeds: list[int],
    sampling: Sampling = USUAL,
) -> Tensor:
    """[B, 3, S, S] that a decoder draws under guidance, of captions alone where z_img is None."""
    scheduler = scheduler_for(decoder, "ddim")
    stage = Stage("decoder", decoder, scheduler, sampling.steps)
    empty = clip.encode_text([""]).expand(len(seeds))
    z_img = decoder.null_z_img(len(seeds)) if z_img is None else z_img
    return sample_decoder(stage, z_img, text, empty, seeds, sampling.guidance)


class DecoderPreviews:
    """A row of pictures for each prompt, from a decoder that is being trained.

    Args:
        prompts: captions.
        prior: a trained one, whose embeddings lead the decoder; without it the captions alone do.
    """

    def __init__(self, prompts: list[str], prior: Prior | None):
        self.prompts, self.prior = prompts, prior

    def rows(self, clip: CLIP, decoder: nn.Module, sampling: Sampling = USUAL) -> list[Tensor]:
        """[NUM_SEEDS, 3, S, S] of each prompt."""
        seeds, rows = list(range(NUM_SEEDS)), []
        for prompt in self.prompts:
            text, z_img = clip.encode_text([prompt]).expand(NUM_SEEDS), None
            if self.prior is not None:
                z_img = draw_embeddings(self.prior.to(text.z_txt.device), text, seeds)
            rows.append(draw_pictures(decoder, clip, text, z_img, seeds, sampling))
        return rows


class PriorPreviews:
    """A row of pictures for each prompt, from a prior that is being trained.

    Args:
        prompts: captions.
        decoder: folder of a trained one, which draws the embeddings; without it the held-out
            pictures that lie nearest are shown, the nearest first.
        held_out: those pictures.
    """

    def __init__(self, prompts: list[str], decoder: str | None, held_out: Dataset | None):
        self.prompts = prompts
        self.decoder: Decoder | None = None
        if decoder:
            self.decoder = load_network("decoder", decoder, {}, "decoder")
        self.pictures: Tensor | None = None
        if held_out is not None and self.decoder is None:
            samples = [held_out[position] for position in range(min(POOL, len(held_out)))]
            self.pictures = collate(samples).get("image")  # there are none beside embeddings

    def sheet(self, clip: CLIP, prior: nn.Module) -> Image.Image | None:
        """All rows; nothing where there is neither a decoder nor a picture."""
        device = next(prior.parameters()).device
        clip = clip.to(device)
        if self.decoder is None and self.pictures is None:
            return None
        seeds, rows = list(range(NUM_SEEDS)), []
        for prompt in self.prompts:
            text = clip.encode_text([prompt]).expand(NUM_SEEDS)
            z_img = draw_embeddings(prior, text, seeds)
            if self.decoder is not None:
                decoder = self.decoder.to(device).eval()
                rows.append(draw_pictures(decoder, clip, text, z_img, seeds))
            else:
                rows.append(self._nearest(clip, z_img.mean(0)))
        return picture_grid(rows)

    def _nearest(self, clip: CLIP, z_img: Tensor) -> Tensor:
        """The pictures [NUM_SEEDS, 3, S, S] whose embeddings are most like z_img [D]."""
        x = to_unit_range(self.pictures, z_img.device)
        known = torch.cat([clip.encode_image(part) for part in x.split(64)])
        order = F.cosine_similarity(known, z_img[None]).argsort(descending=True)
        return x[order[torch.arange(NUM_SEEDS) % len(order)]]
