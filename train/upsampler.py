"""Stage upsampler: from a small picture to one of four times its side.

Shapes: B batch, C pixels along the side of a crop.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from unclip.diffusion.gaussian import q_sample, target_for
from unclip.diffusion.losses import simple_loss, x_0_loss_as_v
from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.schedulers import make_scheduler
from unclip.models.upsampler import Upsampler, resize
from unclip_train.config import UpsamplerConfig
from unclip_train.data.loader import to_unit_range
from unclip_train.draws import draw_noise_like, draw_timesteps
from unclip_train.networks import build_network
from unclip_train.previews import picture_grid
from unclip_train.weights import load_network, upsampler_in

PREVIEW_STEPS = 8


class UpsamplerStage:
    """L_simple on crops, the small picture corrupted (DALL-E 2, section 2.1); no text."""

    name = "upsampler"

    def __init__(self, network: Upsampler, config: UpsamplerConfig, preview_batch: dict):
        self.network = network
        self.max_loss_weight = config.max_loss_weight
        self.max_noise_level = config.max_noise_level if network.config.noise_conditioning else 0
        self.preview_batch = preview_batch
        self.schedule = make_schedule(network.config.schedule, network.config.num_train_timesteps)

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Squared error of eps or v, or of x_0 weighted as for v."""
        device = next(network.parameters()).device
        x_0 = to_unit_range(batch["image"], device)  # [B, 3, C, C]
        x_low = batch["x_low"].to(device)  # [B, 3, C/4, C/4]
        noise_level = None
        if self.max_noise_level:  # Imagen's noise-conditioning augmentation
            noise_level = draw_timesteps(self.max_noise_level + 1, generators, device)
            x_low = q_sample(self.schedule, x_low, noise_level, draw_noise_like(x_low, generators))
        t = draw_timesteps(self.schedule.num_steps, generators, device)
        eps = draw_noise_like(x_0, generators)
        x_t = q_sample(self.schedule, x_0, t, eps)
        prediction = network(x_t, t, x_low, noise_level).float()
        kind = self.network.config.prediction
        if kind == "x_0":
            error = x_0_loss_as_v(self.schedule, prediction, x_0, t, self.max_loss_weight)
        else:
            error = simple_loss(prediction, target_for(self.schedule, kind, x_0, eps, t))
        return {"loss": error.mean()}

    def save(self, network: nn.Module, folder: Path) -> None:
        """A folder that Upsampler.from_pretrained reads."""
        network.save_pretrained(folder)

    def preview(self, network: nn.Module) -> Image.Image:
        """The small picture enlarged, what is drawn from it, and the real one."""
        device = next(network.parameters()).device
        x_0 = to_unit_range(self.preview_batch["image"], device)
        x_low = self.preview_batch["x_low"].to(device)
        generators = child_generators(list(range(len(x_0))), "preview")
        config = network.config
        drawn = denoise(
            lambda x_t, t: network(x_t, t, x_low),
            randn_per_sample(x_0.shape[1:], generators, device),
            make_scheduler("ddim", config.schedule, config.prediction),
            PREVIEW_STEPS,
            generators,
        )
        return picture_grid([resize(x_low, x_0.shape[-1]), drawn, x_0])


def make_stage(config: UpsamplerConfig, preview_batch: dict) -> UpsamplerStage:
    """An upsampler as the config describes it."""
    if config.init:
        name = upsampler_in(config.init, config.data.size)
        network = load_network(name, config.init, config.network)
        if network.unet_last is not None:  # trained for its one step with another loss (Karlo)
            network.unet_last.requires_grad_(False)
    else:
        network = build_network(Upsampler, config.network)
    return UpsamplerStage(network, config, preview_batch)
