"""The decoder's own text transformer (GLIDE), where a config asks for one.

Shapes: B batch, L tokens, W width.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class TextTransformer(ModelMixin, ConfigMixin):
    """Bidirectional transformer over a caption's tokens, as GLIDE's public code has it.

    Every place has a padding embedding of its own, learned, which stands where a caption has ended;
    attention is full, and the output at the last place speaks for the whole caption.

    Args:
        vocab_size: tokens of the vocabulary.
        context: L.
        width, num_layers, num_heads: size of the transformer.
    """

    _supports_gradient_checkpointing = True
    gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 49408,
        context: int = 77,
        width: int = 512,
        num_layers: int = 16,
        num_heads: int = 8,
    ):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.padding_embedding = nn.Parameter(torch.empty(context, width))
        block = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, num_layers, enable_nested_tensor=False)
        self.norm_out = nn.LayerNorm(width)
        for parameter in (
            self.token_embedding.weight,
            self.positional_embedding,
            self.padding_embedding,
        ):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, L] and mask [B, L] -> states [B, L, W] and the caption's embedding [B, W]."""
        states = self.token_embedding(tokens) + self.positional_embedding  # [B, L, W]
        states = torch.where(mask[..., None], states, self.padding_embedding.to(states.dtype))
        for block in self.blocks.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                states = self._gradient_checkpointing_func(block, states)
            else:
                states = block(states)
        states = self.norm_out(states)
        return states, states[:, -1]


TextTransformer.__module__ = "unclip"
