"""How a CLIP image embedding enters the decoder (DALL-E 2, section 2.1).

Shapes: B batch, D CLIP embedding, L tokens, C width of the decoder's context, E time embedding.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn


class UnCLIPTextProjModel(ModelMixin, ConfigMixin):
    """Projects z_img into the time embedding and into extra tokens beside the caption's.

    "projecting and adding CLIP embeddings to the existing timestep embedding, and [...] projecting
    CLIP embeddings into four extra tokens of context that are concatenated to the sequence of
    outputs from the GLIDE text encoder". Names and layout of the weights are those of Karlo.

    Args:
        clip_extra_context_tokens: tokens made of z_img; four in the paper.
        clip_embeddings_dim: D.
        time_embed_dim: E.
        cross_attention_dim: C.
        text_states_dim: width of the text states; D where not given (Karlo).
    """

    @register_to_config
    def __init__(
        self,
        *,
        clip_extra_context_tokens: int = 4,
        clip_embeddings_dim: int = 768,
        time_embed_dim: int,
        cross_attention_dim: int,
        text_states_dim: int | None = None,
    ):
        super().__init__()
        dim = clip_embeddings_dim
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(dim))
        self.embedding_proj = nn.Linear(dim, time_embed_dim)
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(dim, time_embed_dim)
        self.clip_extra_context_tokens = clip_extra_context_tokens
        self.clip_extra_context_tokens_proj = nn.Linear(
            dim, clip_extra_context_tokens * cross_attention_dim
        )
        self.encoder_hidden_states_proj = nn.Linear(text_states_dim or dim, cross_attention_dim)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, z_img: Tensor, z_txt: Tensor, text_states: Tensor) -> tuple[Tensor, Tensor]:
        """Context tokens [B, 4 + L, C], and what is added to the time embedding [B, E]."""
        time = self.clip_image_embeddings_project_to_time_embeddings(z_img)  # [B, E]
        time = time + self.embedding_proj(z_txt)  # [B, E]
        extra = rearrange(  # channel-major, as Karlo packs them
            self.clip_extra_context_tokens_proj(z_img),
            "b (c n) -> b n c",
            n=self.clip_extra_context_tokens,
        )  # [B, 4, C]
        states = self.encoder_hidden_states_proj(text_states)  # [B, L, C]
        states = self.text_encoder_hidden_states_norm(states)
        return torch.cat([extra, states], dim=1), time


# A saved pipeline names this class by its module. Karlo's folders say "unclip", and so must ours.
UnCLIPTextProjModel.__module__ = "unclip"
