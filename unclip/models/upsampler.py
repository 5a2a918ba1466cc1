"""The upsamplers: a small picture becomes one of four times its side.

Shapes: B batch, S pixels a side, p stem.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from unclip.models.layers import take_over
from unclip.models.limits import check_upsampler
from unclip.models.shock import smooth, with_steep_edges
from unclip.models.space_to_depth import depth_to_space, space_to_depth


class Readout(nn.Module):
    """The pixels of a cell from its features h: A h, and what a hidden layer adds, V silu(W h).

    What A alone can draw is a linear space of as many dimensions a cell as h has channels, where a
    cell of 8 x 8 pixels has 192. A sharp edge is two or three numbers, where it runs, but lies in
    no space so small. Begins as A alone.

    Args:
        linear: A, h [B, C, h, w] -> [B, 3 p p, h, w].
        channels: of the hidden layer.
    """

    def __init__(self, linear: nn.Conv2d, channels: int):
        super().__init__()
        self.linear = linear
        self.hidden = nn.Conv2d(linear.in_channels, channels, 1)
        self.out = nn.Conv2d(channels, linear.out_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Features [B, C, h, w] -> pixels of cells [B, 3 p p, h, w]."""
        return self.linear(h) + self.out(F.silu(self.hidden(h)))


class Upsampler(ModelMixin, ConfigMixin):
    """ADM's U-Net of convolutions only, with the small picture beside x_t (DALL-E 2, section 2.1).

    It has no attention, so it is trained on crops and run on whole pictures of any size. A network
    that predicts x_0 gives it as a correction to the resized small picture.

    Args:
        size: pixels a side of the pictures it is meant for; the small ones have a quarter.
        stem: p; the network runs on cells of p x p pixels. 4 or 8 ask for prediction "x_0",
            because all the noise of so large a cell does not pass through the channels.
        channels: width of the U-Net's levels.
        num_blocks: residual blocks a level.
        dropout: within residual blocks.
        scale_shift: whether the time embedding scales as well as shifts (not in Karlo).
        prediction: "eps" (the paper), "v" or "x_0".
        noise_conditioning: whether noise may be added to the small picture, its level told
            (Imagen's noise-conditioning augmentation).
        clamp_resized: whether the resized small picture is brought back to [-1, 1] where bicubic
            resizing overshoots (not in Karlo).
        separate_last_step: whether a second U-Net, trained for it alone, takes the step at t = 0
            (Karlo).
        readout: channels of a hidden layer through which a cell's pixels are read out, beside the
            linear layer; None for that alone. See Readout.
        shock_passes: of the filter that makes the edges of x_0 steep, see unclip.models.shock; None
            for none. No weight depends on it, but they should have been trained for it.
        norm_groups: groups of the normalisation; divides all channels.
        schedule, num_train_timesteps: the diffusion it is trained for.

    Raises:
        ValueError: for arguments that do not fit together, by name.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        size: int = 256,
        stem: int = 1,
        channels: tuple[int, ...] = (320, 640, 960, 1280),
        num_blocks: int = 3,
        dropout: float = 0.1,
        scale_shift: bool = False,
        prediction: str = "eps",
        noise_conditioning: bool = False,
        clamp_resized: bool = True,
        separate_last_step: bool = False,
        readout: int | None = None,
        shock_passes: int | None = None,
        norm_groups: int = 32,
        schedule: str = "cosine",
        num_train_timesteps: int = 1000,
    ):
        super().__init__()
        check_upsampler(size, stem, channels, prediction, norm_groups, shock_passes)
        unet = functools.partial(
            UNet2DModel,
            sample_size=size // stem,
            in_channels=6 * stem**2,
            out_channels=3 * stem**2,
            down_block_types=["ResnetDownsampleBlock2D"] * len(channels),
            up_block_types=["ResnetUpsampleBlock2D"] * len(channels),
            block_out_channels=channels,
            layers_per_block=num_blocks,
            dropout=dropout,
            norm_num_groups=norm_groups,
            add_attention=False,
            resnet_time_scale_shift="scale_shift" if scale_shift else "default",
            class_embed_type="timestep" if noise_conditioning else None,
        )
        self.unet = unet()
        self.unet_last = unet() if separate_last_step else None
        for network in filter(None, (self.unet, self.unet_last)):
            take_over(network)
            if prediction == "x_0":  # begin at the resized small picture
                nn.init.zeros_(network.conv_out.weight)
                nn.init.zeros_(network.conv_out.bias)
            if readout:
                network.conv_out = Readout(network.conv_out, readout)

    @classmethod
    def with_readout(cls, plain: Upsampler, channels: int) -> Upsampler:
        """A network of the same weights, and an untrained Readout that does not change them yet."""
        network = cls.from_config(plain.config, readout=channels)
        weights = {
            name.replace("conv_out.", "conv_out.linear."): weight
            for name, weight in plain.state_dict().items()
        }
        network.load_state_dict(weights, strict=False)
        return network

    @property
    def multiple(self) -> int:
        """Sides of x_t must be multiples of this many pixels."""
        return self.config.stem * 2 ** (len(self.config.channels) - 1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        x_low: Tensor,
        noise_level: Tensor | None = None,
        x_resized: Tensor | None = None,
        steep: bool = True,
    ) -> Tensor:
        """Predict eps, v or x_0, as configured.

        Args:
            x_t: [B, 3, S, S] noised pictures.
            t: [B] or a single timestep, in 0 .. T-1.
            x_low: [B, 3, S/4, S/4] small pictures in [-1, 1].
            noise_level: [B] timestep up to which x_low was noised, for networks trained so.
            x_resized: [B, 3, S, S] what resized(x_low) gave, so that steps need not repeat it.
            steep: False for a network with shock_passes to give smooth(x_0), which it learns.

        Returns:
            [B, 3, S, S].
        """
        if x_resized is None:
            x_resized = self.resized(x_low)  # [B, 3, S, S]
        h = space_to_depth(torch.cat([x_t, x_resized], dim=1), self.config.stem)
        if self.config.noise_conditioning and noise_level is None:
            noise_level = torch.zeros(len(x_t), dtype=torch.long, device=x_t.device)
        h = self._output(h, t, noise_level)  # [B, 3 p p, S / p, S / p]
        prediction = depth_to_space(h, self.config.stem)  # [B, 3, S, S]
        if self.config.prediction != "x_0":
            return prediction
        return self._with_edges(x_resized + prediction, steep)

    def resized(self, x_low: Tensor) -> Tensor:
        """Small pictures [B, 3, S/4, S/4] as the network sees them, [B, 3, S, S]."""
        return resize(x_low, 4 * x_low.shape[-1], self.config.clamp_resized)

    def _with_edges(self, x_0: Tensor, steep: bool) -> Tensor:
        """x_0 [B, 3, S, S] as the shock filter leaves it, or as it is before."""
        passes = self.config.shock_passes
        if passes is None:
            return x_0
        return with_steep_edges(x_0, passes) if steep else smooth(x_0).to(x_0.dtype)

    def _output(self, h: Tensor, t: Tensor, noise_level: Tensor | None) -> Tensor:
        """What the U-Net says of h, and at t = 0 the one for the last step where there is one."""
        if self.unet_last is None:
            return self.unet(h, t, class_labels=noise_level).sample
        is_last = torch.as_tensor(t, device=h.device).expand(len(h)) == 0  # [B]
        learns = torch.is_grad_enabled()
        if is_last.all() and not learns:
            return self.unet_last(h, t, class_labels=noise_level).sample
        output = self.unet(h, t, class_labels=noise_level).sample
        if is_last.any():
            last = self.unet_last(h, t, class_labels=noise_level).sample
            output = torch.where(is_last[:, None, None, None], last, output)
        elif learns:  # every process has gradients, if of nothing, for every weight
            times = torch.as_tensor(t, device=h.device).expand(len(h))
            levels = None if noise_level is None else noise_level[:1]
            last = self.unet_last(h[:1], times[:1], class_labels=levels).sample
            output = output + 0 * last.sum()
        return output


def resize(x: Tensor, size: int, clamp: bool = True) -> Tensor:
    """Bicubic, antialiased, within [-1, 1] unless clamp is not set, where it may overshoot.

    In fp32, since a CPU has no half-precision kernel.
    """
    resized = F.interpolate(
        x.float(), (size, size), mode="bicubic", antialias=True, align_corners=False
    )
    return (resized.clamp(-1, 1) if clamp else resized).to(x.dtype)


Upsampler.__module__ = "unclip"
