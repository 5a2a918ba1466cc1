"""The prior: a caption's embedding and text states become a CLIP image embedding.

Shapes: B batch, D CLIP embedding, L tokens, W width of the text states.
"""

from __future__ import annotations

import math

import torch
from accelerate.utils import align_module_device
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from unclip.models.clip import TextEncoding
from unclip.models.limits import check_prior
from unclip.models.prior_transformer import Prefix, PrefixPriorTransformer

PAPER_SCALE_PER_DIM = 17.2 / math.sqrt(1024)  # DALL-E 2, section 2.2: 17.2 at 1024 dimensions


class Prior(ModelMixin, ConfigMixin):
    """Causal transformer over [text states, z_txt, t, noised z_img, query] that predicts z_img.

    DALL-E 2, section 2.2: the output at the query's place is the unnoised embedding. Diffusion runs
    in a space of about unit variance, reached either by the mean and standard deviation of the
    training embeddings, stored beside the weights, or by the paper's single factor.

    Args:
        embedding_dim: D; the text states must be as wide.
        context: L, tokens of a caption.
        num_layers, num_heads, head_dim: size of the transformer.
        dropout: within its blocks.
        normalization: "statistics" (mean and std) or "scale" (17.2 / sqrt(1024) * sqrt(D), for
            embeddings of length 1).
        schedule: noise schedule it is trained with.
        num_train_timesteps: T.
        clip_range: bound on predicted embeddings in the normalised space while sampling.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        embedding_dim: int = 768,
        context: int = 77,
        num_layers: int = 20,
        num_heads: int = 32,
        head_dim: int = 64,
        dropout: float = 0.0,
        normalization: str = "statistics",
        schedule: str = "cosine",
        num_train_timesteps: int = 1000,
        clip_range: float = 5.0,
    ):
        super().__init__()
        check_prior(normalization)
        self.transformer = PrefixPriorTransformer(
            num_attention_heads=num_heads,
            attention_head_dim=head_dim,
            num_layers=num_layers,
            embedding_dim=embedding_dim,
            num_embeddings=context,
            dropout=dropout,
        )
        scale = PAPER_SCALE_PER_DIM * math.sqrt(embedding_dim)
        std = 1 / scale if normalization == "scale" else 1.0  # the library's own is 0
        torch.nn.init.constant_(self.transformer.clip_std, std)
        for statistic in (self.transformer.clip_mean, self.transformer.clip_std):
            statistic.requires_grad_(False)
        torch.nn.init.normal_(self.transformer.positional_embedding, std=0.02)
        torch.nn.init.normal_(self.transformer.prd_embedding, std=0.02)

    @classmethod
    def with_layers(cls, shallow: Prior, num_layers: int) -> Prior:
        """A network of the same weights, and further blocks behind them that change nothing yet.

        Raises:
            ValueError: when it would not have more layers.
        """
        if num_layers <= shallow.config.num_layers:
            raise ValueError(
                f"num_layers: give more than the {shallow.config.num_layers} that there are, not "
                f"{num_layers}"
            )
        network = cls.from_config(shallow.config, num_layers=num_layers)
        network.load_state_dict(shallow.state_dict(), strict=False)
        for block in network.transformer.transformer_blocks[shallow.config.num_layers :]:
            for last in (block.attn1.to_out[0], block.ff.net[-1]):
                torch.nn.init.zeros_(last.weight)
                torch.nn.init.zeros_(last.bias)
        return network

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the mean and standard deviation [D] of the training embeddings.

        Raises:
            ValueError: when a deviation is not positive and finite (it would divide by zero).
        """
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError("std must be positive and finite in every dimension")
        self.transformer.clip_mean.copy_(mean.view(1, -1))
        self.transformer.clip_std.copy_(std.view(1, -1))

    def normalize(self, z_img: Tensor) -> Tensor:
        """z_img [B, D] as CLIP gives it -> the space in which diffusion runs: (z - mean) / std."""
        mean, std = self._statistics(z_img)
        return (z_img - mean) / std

    def denormalize(self, z_img: Tensor) -> Tensor:
        """The inverse of normalize: z std + mean."""
        mean, std = self._statistics(z_img)
        return z_img * std + mean

    def _statistics(self, z_img: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [1, D] beside z_img, wherever offloading keeps the weights."""
        with align_module_device(self.transformer):
            mean, std = self.transformer.clip_mean, self.transformer.clip_std
            return mean.to(z_img.device), std.to(z_img.device)

    def unconditional(self, text: TextEncoding) -> TextEncoding:
        """What guidance leads away from: the text as it is, usually the empty caption."""
        return text

    def forward(
        self, z_img_t: Tensor, t: Tensor, text: TextEncoding, prefix: Prefix | None = None
    ) -> Tensor:
        """Noised embedding [B, D] (normalised space), t [B], caption -> z_img_hat [B, D] there.

        prefix: an empty one, given with every call about the same N captions, has them read once;
        its rows say which caption belongs to each of the B embeddings.
        """
        return self.transformer(
            z_img_t,
            timestep=t,
            proj_embedding=text.z_txt,
            encoder_hidden_states=text.text_states,
            attention_mask=text.text_mask,
            prefix=prefix,
        ).predicted_image_embedding


Prior.__module__ = "unclip"
