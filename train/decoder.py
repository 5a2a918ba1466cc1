"""Stage decoder: from z_img and a caption to a small picture.

Shapes: B batch, S pixels a side, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from unclip.diffusion.gaussian import q_sample, target_for
from unclip.diffusion.guidance import drop_mask
from unclip.diffusion.losses import hybrid_loss, min_snr_weight, prediction_loss, simple_loss
from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.schedulers import make_scheduler
from unclip.models.clip import CLIP, TextEncoding
from unclip.models.decoder import Decoder, known_part
from unclip.models.prior import Prior
from unclip_train.conditions import PlainEmbeddings, image_embeddings
from unclip_train.config import DecoderConfig
from unclip_train.data.dataset import DrawingDataset
from unclip_train.data.loader import to_unit_range
from unclip_train.draws import (
    draw_masks,
    draw_noise_like,
    draw_timesteps,
    drop_captions,
    noised_z_img,
)
from unclip_train.leading import led_by_prior, load_prior
from unclip_train.lora import add_lora, save_lora
from unclip_train.networks import build_network
from unclip_train.previews import USUAL, DecoderPreviews, Sampling, picture_grid
from unclip_train.validation import generators_of, mean_by_timestep, spread_timesteps
from unclip_train.weights import check_clip_fits, load_and_grow, load_clip


class DecoderStage:
    """L_simple, with 0.001 L_vlb where the variance is learned (DALL-E 2, section 2.1; GLIDE).

    Args:
        network: the decoder.
        clip: that conditions it.
        config: of the stage.
        preview_batch: pictures whose own embeddings are drawn in previews.
        previews: draws config.prompts, where there are any.
        kept: embeddings of pictures that are shown again and again.
        prior: that leads config.prior_share of the samples.
    """

    name = "decoder"

    def __init__(
        self,
        network: Decoder,
        clip: CLIP,
        config: DecoderConfig,
        preview_batch: dict,
        previews: DecoderPreviews | None = None,
        kept: PlainEmbeddings | None = None,
        prior: Prior | None = None,
    ):
        self.network = network
        self.clip = clip.requires_grad_(False).eval()
        self.config, self.lora = config, config.lora
        self.preview_batch, self.previews, self.kept = preview_batch, previews, kept
        self.prior = prior
        self.schedule = make_schedule(network.config.schedule, network.config.num_train_timesteps)

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Squared error of eps, v or x_0; z_img and caption dropped independently.

        An inpainting decoder is told the part of x_0 that random masks leave (GLIDE, section 5.1).
        """
        captions = drop_captions(batch["caption"], self.config.drop_text, generators)
        no_z_img = drop_mask(self.config.drop_z_img, generators)
        x_0, z_img, text = self.conditions(network, batch, captions)
        if self.config.z_img_noise:
            z_img = noised_z_img(z_img, self.config.z_img_noise, generators)
        if self.config.prior_share:
            share = self.config.prior_share
            z_img = led_by_prior(self.prior, self.clip, z_img, batch, share, generators)
        mean, std = self.config.timestep_mean, self.config.timestep_std
        t = draw_timesteps(self.schedule.num_steps, generators, x_0.device, mean, std)
        no_z_img = no_z_img.to(x_0.device)
        error = self._errors(network, x_0, t, z_img, text, no_z_img, generators)
        return {"loss": error.mean()}

    def conditions(
        self, network: nn.Module, batch: dict, captions: list[str]
    ) -> tuple[Tensor, Tensor, TextEncoding]:
        """Pictures [B, 3, S, S], z_img [B, D] and captions."""
        device = next(network.parameters()).device
        self.clip.to(device)
        x_0 = to_unit_range(batch["image"], device)
        with torch.no_grad():
            z_img = image_embeddings(self.clip, batch, device, self.kept)
            return x_0, z_img, self.clip.encode_text(captions)

    def _errors(
        self,
        network: nn.Module,
        x_0: Tensor,
        t: Tensor,
        z_img: Tensor,
        text: TextEncoding,
        no_z_img: Tensor | None,
        generators: list[torch.Generator],
    ) -> Tensor:
        """The weighted loss [B] of pictures noised up to t [B]."""
        eps = draw_noise_like(x_0, generators)
        x_t = q_sample(self.schedule, x_0, t, eps)
        known = None
        if self.network.config.inpainting:
            known = known_part(x_0, draw_masks(x_0.shape[-1], generators, x_0.device))
        output = network(x_t, t, z_img, text, known, no_z_img).float()
        return self._weight(t) * self._error(output, x_0, x_t, eps, t)

    def validate(self, network: nn.Module, batches: Iterable[dict]) -> dict[str, float]:
        """Loss by timestep, with all conditions given."""
        losses = []
        for batch in batches:
            x_0, z_img, text = self.conditions(network, batch, batch["caption"])
            t = spread_timesteps(self.schedule.num_steps, batch, x_0.device)
            error = self._errors(network, x_0, t, z_img, text, None, generators_of(batch))
            losses.append((t, error))
        return mean_by_timestep(losses, self.schedule.num_steps)

    def _error(self, output: Tensor, x_0: Tensor, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        kind = self.network.config.prediction
        if self.network.config.learned_variance:
            weight = self.config.vlb_weight
            return hybrid_loss(self.schedule, output, x_0, x_t, eps, t, weight, kind)
        if self.config.min_snr_gamma:  # which weighs the plain error of each kind
            return simple_loss(output, target_for(self.schedule, kind, x_0, eps, t))
        weight = self.config.max_loss_weight
        return prediction_loss(self.schedule, kind, output, x_0, eps, t, weight)

    def _weight(self, t: Tensor) -> Tensor:
        if not self.config.min_snr_gamma:
            return torch.ones_like(t, dtype=torch.float32)
        kind = self.network.config.prediction
        return min_snr_weight(self.schedule, t, self.config.min_snr_gamma, kind)

    def save(self, network: nn.Module, folder: Path) -> None:
        """A folder that Decoder.from_pretrained reads, or the changes of a LoRA alone."""
        if self.lora.rank:
            save_lora(network, folder, self.name, self.lora)
        else:
            network.save_pretrained(folder)

    def preview(self, network: nn.Module, sampling: Sampling = USUAL) -> Image.Image:
        """Real pictures, what is drawn from their own z_img and captions, and the prompts."""
        device = next(network.parameters()).device
        x_0 = to_unit_range(self.preview_batch["image"], device)
        z_img = image_embeddings(self.clip.to(device), self.preview_batch, device)
        text = self.clip.encode_text(self.preview_batch["caption"])
        generators = child_generators(list(range(len(x_0))), "preview")
        config = network.config
        scheduler = make_scheduler(
            "ddim", config.schedule, config.prediction, learned_variance=config.learned_variance
        )
        drawn = denoise(
            lambda x_t, t: network(x_t, t, z_img, text),
            randn_per_sample(x_0.shape[1:], generators, device),
            scheduler,
            sampling.steps,
            generators,
            learned_variance=config.learned_variance,
        )
        more = self.previews.rows(self.clip, network, sampling) if self.previews else []
        return picture_grid([x_0, drawn, *more])


def make_network(config: DecoderConfig, clip: CLIP) -> Decoder:
    """A decoder as the config describes it, fresh or begun from weights."""
    arguments = dict(config.network)
    sizes = {"embedding_dim": clip.embedding_dim, "context": clip.context}
    if config.init:
        grow = {"inpainting": lambda plain, _: Decoder.for_inpainting(plain)}
        grow = {} if config.lora.rank else grow  # further weights would not learn
        network = load_and_grow("decoder", config.init, arguments, grow)
        check_clip_fits(config, network, sizes)
        return add_lora(network, config.lora) if config.lora.rank else network
    if arguments.get("text_encoder"):  # it reads the tokens of CLIP's tokenizer
        words = {"vocab_size": len(clip.tokenizer), "context": clip.context}
        arguments["text_encoder"] = {**arguments["text_encoder"], **words}
    width = clip.model.config.text_config.hidden_size
    return build_network(Decoder, arguments, **sizes, text_states_dim=width, size=config.data.size)


def make_stage(
    config: DecoderConfig, preview_batch: dict, dataset: Dataset | None = None
) -> DecoderStage:
    """A decoder as the config describes it, beside the CLIP that conditions it."""
    clip = load_clip(config.clip)
    prior = load_prior(config.prior, clip) if config.prior else None
    previews = DecoderPreviews(config.prompts, prior) if config.prompts else None
    kept = PlainEmbeddings(clip, dataset) if isinstance(dataset, DrawingDataset) else None
    network = make_network(config, clip)
    return DecoderStage(network, clip, config, preview_batch, previews, kept, prior)
