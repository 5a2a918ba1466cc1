"""Stage prior: from a caption's embedding and states to the embedding of its picture.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from unclip.diffusion.gaussian import q_sample
from unclip.diffusion.losses import simple_loss
from unclip.diffusion.schedule import make_schedule
from unclip.models.clip import CLIP
from unclip.models.prior import Prior
from unclip.models.prior_transformer import Prefix
from unclip_train.conditions import image_embeddings
from unclip_train.config import ConfigError, PriorConfig
from unclip_train.data.loader import collate, to_unit_range
from unclip_train.draws import draw_noise_like, draw_timesteps, drop_captions
from unclip_train.networks import build_network
from unclip_train.weights import load_clip, load_network


class PriorStage:
    """L = E ||f(z_img_t, t, caption) - z_img||^2 in the normalised space (DALL-E 2, eq. 2)."""

    name = "prior"

    def __init__(self, network: Prior, clip: CLIP, config: PriorConfig):
        self.network = network
        self.clip = clip.requires_grad_(False).eval()
        self.drop_text = config.drop_text
        self.schedule = make_schedule(network.config.schedule, network.config.num_train_timesteps)

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Squared error of the predicted embedding, and its cosine with the true one."""
        device = next(network.parameters()).device
        self.clip.to(device)
        captions = drop_captions(batch["caption"], self.drop_text, generators)
        with torch.no_grad():
            z_img = image_embeddings(self.clip, batch, device)
            text = self.clip.encode_text(captions)
            z_0 = self.network.normalize(z_img)  # [B, D]
        t = draw_timesteps(self.schedule.num_steps, generators, device)
        z_t = q_sample(self.schedule, z_0, t, draw_noise_like(z_0, generators))
        z_hat = network(z_t, t, text, Prefix()).float()  # reads no token that only pads
        cosine = F.cosine_similarity(self.network.denormalize(z_hat), z_img)
        return {"loss": simple_loss(z_hat, z_0).mean(), "cosine": cosine.mean()}

    def save(self, network: nn.Module, folder: Path) -> None:
        """A folder that Prior.from_pretrained reads."""
        network.save_pretrained(folder)

    def preview(self, network: nn.Module) -> Image.Image | None:
        """An embedding cannot be looked at; the decoder's previews show what it is worth."""
        return None


def make_stage(config: PriorConfig, dataset: Dataset) -> PriorStage:
    """A prior as the config describes it, with the statistics of the data it will learn."""
    clip = load_clip(config.clip)
    width = clip.model.config.text_config.hidden_size
    if width != clip.embedding_dim:
        raise ConfigError(
            f"clip: the prior needs text states as wide as embeddings, but {config.clip} has "
            f"{width} and {clip.embedding_dim}"
        )
    if config.init:
        return PriorStage(load_network("prior", config.init, config.network), clip, config)
    prior = build_network(
        Prior, config.network, embedding_dim=clip.embedding_dim, context=clip.context
    )
    if prior.config.normalization == "statistics":
        embeddings = getattr(dataset, "embeddings", None)
        known = (embeddings.mean, embeddings.std) if embeddings is not None else None
        prior.set_statistics(
            *(known or measure_statistics(clip, dataset, config.statistics_samples))
        )
    return PriorStage(prior, clip, config)


@torch.no_grad()
def measure_statistics(
    clip: CLIP, dataset: Dataset, num_samples: int, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of z_img over the first num_samples positions."""
    embeddings = []
    for start in range(0, num_samples, batch_size):
        positions = range(start, min(start + batch_size, num_samples))
        batch = collate([dataset[position] for position in positions])
        embeddings.append(clip.encode_image(to_unit_range(batch["image"], torch.device("cpu"))))
    z_img = torch.cat(embeddings)  # [num_samples, D]
    return z_img.mean(0), z_img.std(0).clamp(min=1e-4)
