"""The decoder: noise becomes a 64 x 64 picture, led by z_img and the caption.

Shapes: B batch, D CLIP embedding, L tokens, S pixels a side, p stem, E time embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from unclip.models.clip import TextEncoding
from unclip.models.layers import KeysAndValues, context_keys_and_values, take_over
from unclip.models.limits import check_decoder
from unclip.models.reuse import outer_pass, whole_pass
from unclip.models.space_to_depth import depth_to_space, space_to_depth
from unclip.models.text_encoder import TextTransformer
from unclip.models.text_proj import UnCLIPTextProjModel

BLOCKS = {  # by whether a level attends: the library's names of its blocks down and up
    False: ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    True: ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
}


@dataclass
class Context:
    """What the U-Net is told of z_img and captions, the same at every step.

    Made empty and filled by the first forward that is given it.

    Args:
        reuse: steps of which the first alone runs all levels; see unclip.models.reuse.
    """

    reuse: int = 1
    num_calls: int = 0
    tokens: Tensor | None = None  # [B, P, C]: four of z_img, then those of the caption
    mask: Tensor | None = None  # [B, P] False where a token pads
    time: Tensor | None = None  # [B, E], added to the time embedding
    keys_and_values: list[KeysAndValues] | None = None  # of every attention layer
    from_below: Tensor | None = None  # [B, C', h, w], see unclip.models.reuse

    def select(self, rows: slice) -> Context:
        """Some rows of a filled one, for a single step."""
        pairs = self.keys_and_values
        return Context(
            tokens=self.tokens[rows],
            mask=None if self.mask is None else self.mask[rows],
            time=self.time[rows],
            keys_and_values=pairs and [(keys[rows], values[rows]) for keys, values in pairs],
        )

    @staticmethod
    def cat(contexts: Sequence[Context]) -> Context:
        """Join filled ones along B, for a single step; shorter ones are padded and masked."""
        lengths = [context.tokens.shape[1] for context in contexts]
        missing = [max(lengths) - length for length in lengths]

        def padded(members: Sequence[Tensor]) -> Tensor:  # each [B, ..., P, C]
            return torch.cat(
                [F.pad(x, (0, 0, 0, n)) for x, n in zip(members, missing, strict=True)]
            )

        masks = [
            torch.ones_like(context.tokens[..., 0], dtype=torch.bool)
            if context.mask is None
            else context.mask
            for context in contexts
        ]
        mask = padded([mask[..., None] for mask in masks])[..., 0]
        pairs = None
        if contexts[0].keys_and_values is not None:
            layers = zip(*(context.keys_and_values for context in contexts), strict=True)
            pairs = [tuple(map(padded, zip(*layer, strict=True))) for layer in layers]
        return Context(
            tokens=padded([context.tokens for context in contexts]),
            mask=mask,
            time=torch.cat([context.time for context in contexts]),
            keys_and_values=pairs,
        )


class Decoder(ModelMixin, ConfigMixin):
    """GLIDE's U-Net with z_img beside the caption (DALL-E 2, section 2.1).

    z_img is added to the time embedding and gives four context tokens; the keys and values of the
    context join those of self-attention at every attention layer.

    Args:
        embedding_dim: D.
        context: L, tokens of a caption.
        size: pixels a side of the pictures it draws.
        stem: p; the network runs on cells of p x p pixels (1 in the paper; 2 costs a quarter).
        channels: width of the U-Net's levels, each half the grid of the one before.
        num_blocks: residual blocks a level.
        attention_levels: for each level, whether it attends.
        head_dim: width of an attention head; divides the channels of every attending level.
        context_dim: width of the context tokens.
        dropout: within residual blocks.
        z_img_scale: factor on z_img before projection (sqrt(D) brings unit vectors to unit RMS).
        prediction: "eps" (the paper), "v", or "x_0", which asks of a large stem no noise to be
            passed through (Li & He 2025, arXiv 2511.13720) and goes without a learned variance.
        learned_variance: whether three more channels speak for the variance (the paper).
        text_encoder: size of a text transformer of its own (GLIDE, the paper): a mapping of
            TextTransformer's arguments; without it the states of CLIP's encoder serve (Karlo).
        text_states_dim: width of CLIP's text states, when it is not D.
        inpainting: whether it also sees the known part of a picture, in four more channels whose
            weights begin at zero (GLIDE, section 5.1).
        norm_groups: groups of the normalisation; divides all channels.
        schedule, num_train_timesteps: the diffusion it is trained for.

    Raises:
        ValueError: for arguments that do not fit together, by name.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        embedding_dim: int = 768,
        context: int = 77,
        size: int = 64,
        stem: int = 1,
        channels: tuple[int, ...] = (320, 640, 960, 1280),
        num_blocks: int = 3,
        attention_levels: tuple[bool, ...] = (False, True, True, True),
        head_dim: int = 64,
        context_dim: int = 1536,
        dropout: float = 0.1,
        z_img_scale: float = 1.0,
        prediction: str = "eps",
        learned_variance: bool = True,
        text_encoder: dict | None = None,
        text_states_dim: int | None = None,
        inpainting: bool = False,
        norm_groups: int = 32,
        schedule: str = "cosine",
        num_train_timesteps: int = 1000,
    ):
        super().__init__()
        sizes = (size, stem, channels, attention_levels, head_dim, context)
        check_decoder(*sizes, prediction, norm_groups, learned_variance)
        self.text_transformer = TextTransformer(**text_encoder) if text_encoder else None
        states_dim = self.text_transformer.config.width if text_encoder else text_states_dim
        self.text_proj = UnCLIPTextProjModel(
            clip_embeddings_dim=embedding_dim,
            time_embed_dim=channels[0] * 4,
            cross_attention_dim=context_dim,
            text_states_dim=states_dim,
        )
        if text_encoder:  # GLIDE's last token takes the place that Karlo gives to z_txt
            self.text_proj.embedding_proj = type(self.text_proj.embedding_proj)(
                states_dim, channels[0] * 4
            )
        self.unet = UNet2DConditionModel(
            sample_size=size // stem,
            in_channels=(7 if inpainting else 3) * stem**2,
            out_channels=(6 if learned_variance else 3) * stem**2,
            down_block_types=[BLOCKS[attends][0] for attends in attention_levels],
            up_block_types=[BLOCKS[attends][1] for attends in reversed(attention_levels)],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=channels,
            layers_per_block=num_blocks,
            attention_head_dim=head_dim,
            cross_attention_dim=context_dim,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
            dropout=dropout,
            norm_num_groups=norm_groups,
        )
        take_over(self.unet)
        if inpainting:
            torch.nn.init.zeros_(self.unet.conv_in.weight[:, 3 * stem**2 :])

    @classmethod
    @torch.no_grad()
    def for_inpainting(cls, decoder: Decoder) -> Decoder:
        """The same decoder with channels for a known part, which it does not heed before training.

        Raises:
            ValueError: when it has them already.
        """
        if decoder.config.inpainting:
            raise ValueError("decoder: it has the channels of inpainting already")
        arguments = {name: value for name, value in decoder.config.items() if name[0] != "_"}
        inpainter = cls(**arguments | {"inpainting": True}).to(decoder.device, decoder.dtype)
        state = decoder.state_dict()
        plain = state["unet.conv_in.weight"]  # [C, 3 p p, k, k]
        widened = torch.zeros_like(inpainter.unet.conv_in.weight)  # [C, 7 p p, k, k]
        widened[:, : plain.shape[1]] = plain
        inpainter.load_state_dict(state | {"unet.conv_in.weight": widened})
        return inpainter.train(decoder.training)

    def null_z_img(self, batch_size: int) -> Tensor:
        """The learned embedding [B, D] that stands for no picture at all."""
        with align_module_device(self.text_proj):  # wherever offloading keeps the weights
            null = self.text_proj.learned_classifier_free_guidance_embeddings
            return null.expand(batch_size, -1) / self.config.z_img_scale

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        z_img: Tensor,
        text: TextEncoding,
        known: Tensor | None = None,
        no_z_img: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict eps, v or x_0, and the variance's fraction where it is learned.

        Args:
            x_t: [B, 3, S, S] noised pictures.
            t: [B] or a single timestep, in 0 .. T-1.
            z_img: [B, D] as CLIP gives it; rows of null_z_img where there is none.
            text: the captions; those of "" where there is none.
            known: [B, 4, S, S] what known_part gives, for inpainting alone; nothing is known
                unless it is given.
            no_z_img: [B] True where null_z_img takes the place of z_img, as training asks for.
            context: an empty one, given with every call about the same z_img and text, has them
                read once.

        Returns:
            [B, 3, S, S], or [B, 6, S, S] with the learned variance in the last three channels.
        """
        if no_z_img is not None:
            z_img = torch.where(no_z_img[:, None], self.null_z_img(len(z_img)), z_img)
        if context is None:
            context = self._read(z_img, text)
        elif context.tokens is None:
            self._remember(context, self._read(z_img, text))

        if self.config.inpainting:
            if known is None:
                known = known_part(torch.zeros_like(x_t), torch.ones_like(x_t[:, :1]))
            x_t = torch.cat([x_t, known.to(x_t)], dim=1)  # [B, 7, S, S]
        elif known is not None:
            raise ValueError("known: this decoder was not made for inpainting")
        h = space_to_depth(x_t, self.config.stem)  # [B, 3 p p or 7 p p, S / p, S / p]
        h = self._predict(h, t, context)  # [B, 3 p p or 6 p p, S / p, S / p]
        return depth_to_space(h, self.config.stem)  # [B, 3 or 6, S, S]

    def _predict(self, h: Tensor, t: Tensor, context: Context) -> Tensor:
        """What the U-Net says of h [B, C, S / p, S / p], in so many levels as are due."""
        is_due, context.num_calls = context.num_calls % context.reuse == 0, context.num_calls + 1
        if not is_due:
            return outer_pass(self.unet, h, t, context.time, context.from_below)
        remembered = context.keys_and_values
        told = {
            "encoder_hidden_states": context.tokens,
            "attention_mask": context.mask,
            "cross_attention_kwargs": remembered and {"keys_and_values": remembered},
        }
        if context.reuse == 1:
            return self.unet(h, t, class_labels=context.time, **told).sample
        output, context.from_below = whole_pass(self.unet, h, t, context.time, **told)
        return output

    def _read(self, z_img: Tensor, text: TextEncoding) -> Context:
        """z_img [B, D] and captions as context tokens [B, 4 + L, C], with what pads masked."""
        z_txt, text_states = text.z_txt, text.text_states
        if self.text_transformer is not None:
            text_states, z_txt = self.text_transformer(text.tokens, text.text_mask)
        tokens, time = self.text_proj(z_img * self.config.z_img_scale, z_txt, text_states)
        extra_tokens = tokens.shape[1] - text.text_mask.shape[1]
        mask = F.pad(text.text_mask, (extra_tokens, 0), value=True)  # [B, 4 + L]
        return Context(tokens=tokens, mask=mask, time=time)

    def _remember(self, context: Context, read: Context) -> None:
        """Fill a context with what was read, and with every layer's keys and values of it.

        Tokens that pad in every caption are left out: they have no weight in any attention. Where
        the layers cannot be given keys and values they see all tokens, as the library wants it.
        """
        used = int(read.mask.any(dim=0).nonzero().max()) + 1
        found = context_keys_and_values(self.unet, read.tokens[:, :used])
        used = read.tokens.shape[1] if found is None else used
        mask = read.mask[:, :used]
        context.tokens, context.time = read.tokens[:, :used], read.time
        context.mask = None if found is not None and mask.all() else mask
        context.keys_and_values = found


def known_part(x_0: Tensor, mask: Tensor) -> Tensor:
    """What an inpainting decoder is told: the picture where mask is 0, zero elsewhere; the mask.

    x_0 [B, 3, S, S] in [-1, 1], mask [B, 1, S, S] 1 where to paint -> [B, 4, S, S].
    """
    return torch.cat([x_0 * (1 - mask), mask.expand(len(x_0), -1, -1, -1)], dim=1)


Decoder.__module__ = "unclip"
