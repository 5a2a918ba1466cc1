"""Stage prior: from a caption's embedding and states to the embedding of its picture.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from unclip.diffusion.gaussian import q_sample
from unclip.diffusion.losses import simple_loss
from unclip.diffusion.schedule import make_schedule
from unclip.metrics.similarity import prior_cosines
from unclip.models.clip import CLIP, TextEncoding
from unclip.models.prior import Prior
from unclip.models.prior_transformer import Prefix
from unclip_train.conditions import PlainEmbeddings, image_embeddings
from unclip_train.config import ConfigError, PriorConfig
from unclip_train.data.dataset import DrawingDataset
from unclip_train.data.loader import collate, to_unit_range
from unclip_train.draws import draw_noise_like, draw_timesteps, drop_captions
from unclip_train.leading import draw_embeddings
from unclip_train.lora import add_lora, save_lora
from unclip_train.networks import build_network
from unclip_train.previews import PriorPreviews
from unclip_train.styles import Analogies, Styles, make_styles
from unclip_train.validation import generators_of, mean_by_timestep, spread_timesteps
from unclip_train.weights import check_clip_fits, load_and_grow, load_clip


class PriorStage:
    """L = E ||f(z_img_t, t, caption) - z_img||^2 in the normalised space (DALL-E 2, eq. 2).

    Each caption is learned at K timesteps at once: its text is read once, as their common prefix.

    Args:
        network: the prior.
        clip: whose embeddings it learns.
        config: of the stage.
        previews: draws config.prompts, where there are any.
        kept: embeddings of pictures that are shown again and again.
        styles: what embeddings of drawings are strengthened by.
        analogies: of what nobody drew, in the place of some captions and embeddings.
    """

    name = "prior"

    def __init__(
        self,
        network: Prior,
        clip: CLIP,
        config: PriorConfig,
        previews: PriorPreviews | None = None,
        kept: PlainEmbeddings | None = None,
        styles: Styles | None = None,
        analogies: Analogies | None = None,
    ):
        self.network = network
        self.clip = clip.requires_grad_(False).eval()
        self.drop_text, self.noise_levels = config.drop_text, config.noise_levels
        self.styles, self.analogies = styles, analogies
        self.previews, self.kept, self.lora = previews, kept, config.lora
        self.schedule = make_schedule(network.config.schedule, network.config.num_train_timesteps)

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Squared error of the predicted embedding, and its cosine with the true one."""
        captions, z_img = batch["caption"], self._z_img(network, batch)
        if self.analogies:
            captions, z_img = self.analogies.mix_in(captions, z_img, generators)
        text = self._text(drop_captions(captions, self.drop_text, generators))
        t = torch.cat([self._timesteps(generators, z_img) for _ in range(self.noise_levels)])
        z_img = z_img.repeat(self.noise_levels, 1)  # [K B, D], level by level
        z_hat, z_0 = self._predict(network, z_img, text, t, generators)
        cosine = F.cosine_similarity(self.network.denormalize(z_hat), z_img)
        return {"loss": simple_loss(z_hat, z_0).mean(), "cosine": cosine.mean()}

    @torch.no_grad()
    def _z_img(self, network: nn.Module, batch: dict) -> Tensor:
        """What is to be learned of a batch's pictures, [B, D], where the network is."""
        device = next(network.parameters()).device
        z_img = image_embeddings(self.clip.to(device), batch, device, self.kept)
        if self.styles and "style" in batch:  # pictures to validate on may have none
            return self.styles.strengthen(z_img, batch["style"])
        return z_img

    @torch.no_grad()
    def _text(self, captions: list[str]) -> TextEncoding:
        """The captions; an empty one is what guidance will lead away from."""
        text = self.clip.encode_text(captions)
        empty = torch.tensor([not caption for caption in captions], device=text.text_mask.device)
        null = self.network.unconditional(text)
        mask = torch.where(empty[:, None], null.text_mask, text.text_mask)
        return text._replace(text_mask=mask)

    def _timesteps(self, generators: list[torch.Generator], like: Tensor) -> Tensor:
        return draw_timesteps(self.schedule.num_steps, generators, like.device)

    def _predict(
        self,
        network: nn.Module,
        z_img: Tensor,
        text: TextEncoding,
        t: Tensor,
        generators: list[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """z_img_hat and z_img [K B, D], normalised, of B captions at timesteps t [K B]."""
        with torch.no_grad():
            z_0 = self.network.normalize(z_img)
            levels = len(t) // len(generators)
            parts = [draw_noise_like(part, generators) for part in z_0.chunk(levels)]
            z_t = q_sample(self.schedule, z_0, t, torch.cat(parts))
        rows = torch.arange(len(generators), device=t.device).repeat(levels)
        prefix = Prefix(rows if levels > 1 else None)  # no token that only pads is read
        return network(z_t, t, text, prefix).float(), z_0

    def validate(self, network: nn.Module, batches: Iterable[dict]) -> dict[str, float]:
        """Loss by timestep, and the cosines of embeddings that are drawn of held-out captions.

        cosine_image: with the true embedding; cosine_shuffled: with that of another caption's
        picture, which an average embedding reaches for nothing; cosine_text: with the caption's;
        cosine_truth: of the true embedding with the caption's, which cosine_text should come near.
        """
        losses, drawn = [], []
        for batch in batches:
            z_img, text = self._z_img(network, batch), self._text(batch["caption"])
            t = spread_timesteps(self.schedule.num_steps, batch, z_img.device)
            z_hat, z_0 = self._predict(network, z_img, text, t, generators_of(batch))
            losses.append((t, simple_loss(z_hat, z_0)))
            drawn.append((draw_embeddings(network, text, batch["position"]), z_img, text.z_txt))
        cosines = prior_cosines(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))
        names = {"unrelated": "shuffled"}
        means = {f"cosine_{names.get(k, k)}": float(v.mean()) for k, v in cosines.items()}
        return mean_by_timestep(losses, self.schedule.num_steps) | means

    def save(self, network: nn.Module, folder: Path) -> None:
        """A folder that Prior.from_pretrained reads, or the changes of a LoRA alone."""
        if self.lora.rank:
            save_lora(network, folder, self.name, self.lora)
        else:
            network.save_pretrained(folder)

    def preview(self, network: nn.Module) -> Image.Image | None:
        """Pictures of the prompts; an embedding itself cannot be looked at."""
        return self.previews.sheet(self.clip, network) if self.previews else None


def make_network(config: PriorConfig, clip: CLIP) -> nn.Module:
    """A prior as the config describes it, fresh or begun from weights, without statistics."""
    width = clip.model.config.text_config.hidden_size
    if width != clip.embedding_dim:
        raise ConfigError(
            f"clip: the prior needs text states as wide as embeddings, but {config.clip} has "
            f"{width} and {clip.embedding_dim}"
        )
    sizes = {"embedding_dim": clip.embedding_dim, "context": clip.context}
    if config.init:
        grow = {} if config.lora.rank else {"num_layers": with_layers}  # those would not learn
        prior = load_and_grow("prior", config.init, config.network, grow)
        check_clip_fits(config, prior, sizes)
        return add_lora(prior, config.lora) if config.lora.rank else prior
    return build_network(Prior, config.network, **sizes)


def with_layers(prior: nn.Module, num_layers: int) -> nn.Module:
    """A prior of this package with more layers; another's as it is, to be refused."""
    return Prior.with_layers(prior, num_layers) if isinstance(prior, Prior) else prior


def make_stage(
    config: PriorConfig, dataset: Dataset, held_out: Dataset | None = None
) -> PriorStage:
    """A prior as the config describes it, with the statistics of the data it will learn."""
    clip = load_clip(config.clip)
    prior = make_network(config, clip)
    if not config.init and prior.config.normalization == "statistics":
        embeddings = getattr(dataset, "embeddings", None)
        known = (embeddings.mean, embeddings.std) if embeddings is not None else None
        prior.set_statistics(
            *(known or measure_statistics(clip, dataset, config.statistics_samples))
        )
    previews = None
    if config.prompts:
        previews = PriorPreviews(config.prompts, config.decoder, held_out)
    kept = PlainEmbeddings(clip, dataset) if isinstance(dataset, DrawingDataset) else None
    styles, analogies = make_styles(config, kept)
    return PriorStage(prior, clip, config, previews, kept, styles, analogies)


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
