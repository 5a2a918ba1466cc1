"""A trained prior that leads a decoder which is being trained, as it will when it is used.

Shapes: B batch, D embedding.
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
from unclip_train.config import ConfigError
from unclip_train.weights import load_network

SAMPLER, STEPS = "unipc", 8  # the spread that DDPM needs 50 for (docs/evaluation.md)


def load_prior(source: str, clip: CLIP) -> Prior:
    """The trained prior beside a decoder, which stays as it is.

    Raises:
        ConfigError: when it does not draw the embeddings of this CLIP.
    """
    prior = load_network("prior", source, {}, "prior").requires_grad_(False).eval()
    for name, ours in (("embedding_dim", clip.embedding_dim), ("context", clip.context)):
        if prior.config[name] != ours:
            raise ConfigError(
                f"prior: {source} has {name} {prior.config[name]}, but the CLIP has {ours}"
            )
    return prior


def draw_embeddings(prior: Prior, text: TextEncoding, seeds: list[int]) -> Tensor:
    """z_img [B, D] that a prior draws of captions, without guidance, in a few steps."""
    stage = Stage("prior", prior, scheduler_for(prior, SAMPLER), STEPS)
    return sample_prior(stage, text, text, seeds, 1.0, 1)


@torch.no_grad()
def led_by_prior(
    prior: Prior,
    clip: CLIP,
    z_img: Tensor,
    batch: dict,
    share: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """z_img [B, D] of a batch, a share replaced by what a prior draws of the same captions.

    A decoder is led by those when it is used, and learns here how far they are to be trusted
    beside the caption. Drawings that stand single keep their own, which say all of them: a
    decoder that trusts those less loses their styles (docs/emoji-model.md).
    """
    plain = batch.get("plain", [""] * len(z_img))
    chosen = drop_mask(share, generators).nonzero().flatten().tolist()
    rows = [row for row in chosen if not plain[row]]
    if not rows:
        return z_img
    seeds = [int(torch.randint(2**31, (), generator=generators[row])) for row in rows]
    text = clip.encode_text([batch["caption"][row] for row in rows])
    led = z_img.clone()
    led[rows] = draw_embeddings(prior.to(z_img.device), text, seeds).to(z_img)
    return led
