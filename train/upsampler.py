"""Stage upsampler: from a small picture to one of four times its side.

Shapes: B batch, C pixels along the side of a crop.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from unclip.diffusion.gaussian import q_sample
from unclip.diffusion.losses import prediction_loss
from unclip.diffusion.noise import child_generators, randn_per_sample
from unclip.diffusion.sampling import denoise
from unclip.diffusion.schedule import make_schedule
from unclip.diffusion.schedulers import make_scheduler
from unclip.models.shock import smooth
from unclip.models.upsampler import Upsampler, resize
from unclip_train.checks import check_noise_level
from unclip_train.config import UpsamplerConfig
from unclip_train.data.loader import to_unit_range
from unclip_train.draws import draw_noise_like, draw_timesteps
from unclip_train.networks import build_network
from unclip_train.previews import picture_grid
from unclip_train.validation import (
    generators_of,
    mean_by_timestep,
    psnr,
    spread_timesteps,
)
from unclip_train.weights import load_and_grow, upsampler_in

PREVIEW_STEPS = 8
VALIDATION_STEPS, NUM_DRAWN = 4, 64  # of crops that are drawn for their PSNR


class UpsamplerStage:
    """L_simple on crops, the small picture corrupted (DALL-E 2, section 2.1); no text."""

    name = "upsampler"

    def __init__(self, network: Upsampler, config: UpsamplerConfig, preview_batch: dict):
        self.network, self.config = network, config
        self.max_noise_level = config.max_noise_level
        self.preview_batch = preview_batch
        self.schedule = make_schedule(network.config.schedule, network.config.num_train_timesteps)

    def loss(
        self, network: nn.Module, batch: dict, generators: list[torch.Generator]
    ) -> dict[str, Tensor]:
        """Error of eps or v, or of x_0 weighted as for v; squared, or absolute."""
        x_0, x_low = self._pictures(network, batch)
        noise_level = None
        if self.max_noise_level:  # Imagen's noise-conditioning augmentation
            noise_level = draw_timesteps(self.max_noise_level + 1, generators, x_0.device)
            x_low = q_sample(self.schedule, x_low, noise_level, draw_noise_like(x_low, generators))
        mean, std = self.config.timestep_mean, self.config.timestep_std
        t = draw_timesteps(self.schedule.num_steps, generators, x_0.device, mean, std)
        return {"loss": self._errors(network, x_0, t, x_low, noise_level, generators).mean()}

    def _pictures(self, network: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
        """Crops [B, 3, C, C] and their small pictures [B, 3, C/4, C/4]."""
        device = next(network.parameters()).device
        return to_unit_range(batch["image"], device), batch["x_low"].to(device)

    def _errors(
        self,
        network: nn.Module,
        x_0: Tensor,
        t: Tensor,
        x_low: Tensor,
        noise_level: Tensor | None,
        generators: list[torch.Generator],
    ) -> Tensor:
        """The loss [B] of crops noised up to t [B]."""
        eps = draw_noise_like(x_0, generators)
        x_t = q_sample(self.schedule, x_0, t, eps)
        prediction = network(x_t, t, x_low, noise_level, steep=False).float()
        if self.network.config.shock_passes:  # a filter without weights goes on from there
            x_0 = smooth(x_0)
        kind = self.network.config.prediction
        weight, power = self.config.max_loss_weight, self.config.loss_power
        return prediction_loss(self.schedule, kind, prediction, x_0, eps, t, weight, power)

    def validate(self, network: nn.Module, batches: Iterable[dict]) -> dict[str, float]:
        """Loss by timestep; PSNR of drawn crops, and of small pictures that are only resized."""
        losses, drawn, resized = [], [], []
        for batch in batches:
            x_0, x_low = self._pictures(network, batch)
            t = spread_timesteps(self.schedule.num_steps, batch, x_0.device)
            error = self._errors(network, x_0, t, x_low, None, generators_of(batch))
            losses.append((t, error))
            if sum(map(len, drawn)) < NUM_DRAWN:
                x = self._draw(network, x_low, generators_of(batch), VALIDATION_STEPS)
                drawn.append(psnr(x, x_0))
                resized.append(psnr(resize(x_low, x_0.shape[-1]), x_0))
        means = {"psnr": drawn, "psnr_resized": resized}
        means = {name: float(torch.cat(values).mean()) for name, values in means.items()}
        return mean_by_timestep(losses, self.schedule.num_steps) | means

    def _draw(
        self,
        network: nn.Module,
        x_low: Tensor,
        generators: list[torch.Generator],
        num_steps: int,
    ) -> Tensor:
        """[B, 3, C, C] drawn from small pictures [B, 3, C/4, C/4]."""
        config, side = network.config, 4 * x_low.shape[-1]
        return denoise(
            lambda x_t, t: network(x_t, t, x_low),
            randn_per_sample((3, side, side), generators, x_low.device),
            make_scheduler("ddim", config.schedule, config.prediction),
            num_steps,
            generators,
        )

    def save(self, network: nn.Module, folder: Path) -> None:
        """A folder that Upsampler.from_pretrained reads."""
        network.save_pretrained(folder)

    def preview(self, network: nn.Module) -> Image.Image:
        """The small picture enlarged, what is drawn from it, and the real one."""
        x_0, x_low = self._pictures(network, self.preview_batch)
        generators = child_generators(list(range(len(x_0))), "preview")
        drawn = self._draw(network, x_low, generators, PREVIEW_STEPS)
        return picture_grid([resize(x_low, x_0.shape[-1]), drawn, x_0])


def make_network(config: UpsamplerConfig) -> Upsampler:
    """An upsampler as the config describes it, fresh or begun from weights."""
    if not config.init:
        return build_network(Upsampler, config.network)
    name = upsampler_in(config.init, config.data.size)
    grow = {"readout": Upsampler.with_readout}
    network = load_and_grow(name, config.init, config.network, grow)
    check_noise_level(config, network.config.noise_conditioning, config.init)
    if network.unet_last is not None:  # trained for its one step with another loss (Karlo)
        network.unet_last.requires_grad_(False)
    return network


def make_stage(config: UpsamplerConfig, preview_batch: dict) -> UpsamplerStage:
    """An upsampler as the config describes it."""
    return UpsamplerStage(make_network(config), config, preview_batch)
