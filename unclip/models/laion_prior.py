"""LAION's prior, that of DALLE2-pytorch: the other prior of which weights were published.

Shapes: B batch, L tokens of a caption, D embedding, N = L + 4 tokens, H heads, d width of one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor, nn

from unclip.models.clip import TextEncoding
from unclip.models.prior_transformer import Prefix

NUM_BUCKETS, MAX_DISTANCE = 32, 128  # of relative positions
ROTARY_DIM = 32
ATTENTION_SCALE = 16.0


class LaionPrior(ModelMixin, ConfigMixin):
    """Causal transformer over [text states, z_txt, t, noised z_img, query] that predicts z_img.

    Unlike Prior it has one key and value for all heads, cosine attention, rotary and relative
    positions, and learned embeddings in place of a caption where there is none. Diffusion runs on
    z_img sqrt(D), z_img of length 1. The names of the weights are those of the published ones.

    Args:
        embedding_dim: D, also the width of the network and of the text states.
        context: L.
        num_layers, num_heads, head_dim: size of the transformer.
        ff_mult: width of the layers between, in D.
        norm_in, norm_out, final_proj, normformer, rotary: parts that may be absent.
        z_img_scale: factor on z_img, sqrt(D) unless given.
        prediction: "x_0" (as published), "v" or "eps".
        schedule, num_train_timesteps: the diffusion it is trained for.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        embedding_dim: int = 768,
        context: int = 77,
        num_layers: int = 24,
        num_heads: int = 32,
        head_dim: int = 64,
        ff_mult: int = 4,
        norm_in: bool = False,
        norm_out: bool = True,
        final_proj: bool = True,
        normformer: bool = True,
        rotary: bool = True,
        z_img_scale: float | None = None,
        prediction: str = "x_0",
        schedule: str = "cosine",
        num_train_timesteps: int = 1000,
        clip_range: float | None = None,
    ):
        super().__init__()
        dim = embedding_dim
        self.to_time_embeds = nn.Sequential(nn.Embedding(num_train_timesteps, dim))
        self.learned_query = nn.Parameter(torch.randn(dim))
        self.null_text_encodings = nn.Parameter(torch.randn(1, context, dim))
        self.null_text_embeds = nn.Parameter(torch.randn(1, 1, dim))
        self.null_image_embed = nn.Parameter(torch.randn(1, dim))
        self.causal_transformer = CausalTransformer(
            *(dim, num_layers, num_heads, head_dim, ff_mult),
            *(norm_in, norm_out, final_proj, normformer, rotary),
        )

    @property
    def scale(self) -> float:
        """What unit vectors are multiplied by before diffusion."""
        return self.config.z_img_scale or math.sqrt(self.config.embedding_dim)

    def normalize(self, z_img: Tensor) -> Tensor:
        """z_img [B, D] of length 1 -> the space in which diffusion runs."""
        return z_img * self.scale

    def denormalize(self, z_img: Tensor) -> Tensor:
        """The inverse of normalize."""
        return z_img / self.scale

    def unconditional(self, text: TextEncoding) -> TextEncoding:
        """What guidance leads away from: captions without a token, whatever text says."""
        return text._replace(text_mask=torch.zeros_like(text.text_mask))

    def forward(
        self, z_img_t: Tensor, t: Tensor, text: TextEncoding, prefix: Prefix | None = None
    ) -> Tensor:
        """Noised embedding [B, D] (normalised space), t [B], caption -> z_img_hat [B, D] there.

        prefix: says which of the N captions belongs to each of the B embeddings, where they are not
            one and the same.

        A caption without a token, its mask all False, is none: learned embeddings stand for it,
        and for the noised embedding too, as the published network was trained.
        """
        if prefix is not None and prefix.rows is not None:
            text = text.select(prefix.rows.to(z_img_t.device))
        is_given = text.text_mask.any(dim=1)[:, None, None]  # [B, 1, 1]
        is_token = text.text_mask & (text.tokens != 0)  # [B, L], token 0 counts as padding
        text_states = torch.where(is_token[..., None], text.text_states, self.null_text_encodings)
        z_txt = torch.where(is_given, text.z_txt[:, None], self.null_text_embeds)  # [B, 1, D]
        noised = torch.where(is_given, z_img_t[:, None], self.null_image_embed)  # [B, 1, D]
        time = self.to_time_embeds(t.expand(len(z_img_t)))[:, None]  # [B, 1, D]
        query = self.learned_query.expand(len(z_img_t), 1, -1)  # [B, 1, D]
        sequence = torch.cat([text_states, z_txt, time, noised, query], dim=1)  # [B, N, D]
        return self.causal_transformer(sequence)[:, -1]


class CausalTransformer(nn.Module):
    """[B, N, D] -> [B, N, D], each place seeing itself and those before it."""

    def __init__(
        self, dim, num_layers, num_heads, head_dim, ff_mult, norm_in, norm_out, proj, post, rotary
    ):
        super().__init__()
        self.init_norm = ScaleNorm(dim) if norm_in else nn.Identity()
        self.rel_pos_bias = RelativePositions(num_heads)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [Attention(dim, num_heads, head_dim, rotary), feed_forward(dim, ff_mult, post)]
            )
            for _ in range(num_layers)
        )
        self.norm = ScaleNorm(dim, stable=True) if norm_out else nn.Identity()
        self.project_out = nn.Linear(dim, dim, bias=False) if proj else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = self.init_norm(x)
        bias = self.rel_pos_bias(x.shape[1])  # [H, N, N + 1]
        for attention, between in self.layers:
            x = x + attention(x, bias)
            x = x + between(x)
        return self.project_out(self.norm(x))


class ScaleNorm(nn.Module):
    """Layer normalisation without a shift; the stable one divides by the largest value first."""

    def __init__(self, dim: int, stable: bool = False):
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))
        self.stable = stable

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        if self.stable:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) * self.g


class RelativePositions(nn.Module):
    """A bias for each head by how far back a key stands, far ones in ever wider buckets (T5)."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(NUM_BUCKETS, num_heads)

    def forward(self, num_tokens: int) -> Tensor:
        """[H, N, N + 1], for as many keys and one before them."""
        device = self.relative_attention_bias.weight.device
        keys = torch.arange(num_tokens + 1, device=device)
        distance = (torch.arange(num_tokens, device=device)[:, None] - keys).clamp(min=0)
        half = NUM_BUCKETS // 2
        far = torch.log(distance.clamp(min=1) / half) / math.log(MAX_DISTANCE / half) * half
        far = (half + far.long()).clamp(max=NUM_BUCKETS - 1)
        bucket = torch.where(distance < half, distance, far)  # [N, N + 1]
        return self.relative_attention_bias(bucket).permute(2, 0, 1)


class Attention(nn.Module):
    """Cosine attention of many queries to one head of keys and values, and to a learned one."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, rotary: bool):
        super().__init__()
        self.num_heads = num_heads
        self.norm = ScaleNorm(dim)
        self.null_kv = nn.Parameter(torch.randn(2, head_dim))
        self.to_q = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * head_dim, bias=False)
        self.rotary_emb = Rotary(min(ROTARY_DIM, head_dim)) if rotary else nn.Identity()
        self.to_out = nn.Sequential(
            nn.Linear(num_heads * head_dim, dim, bias=False), ScaleNorm(dim)
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, N, D] and [H, N, N + 1] -> [B, N, D]."""
        x = self.norm(x)
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.num_heads)
        k, v = self.to_kv(x).chunk(2, dim=-1)  # [B, N, d]
        q, k = self.rotary_emb(q), self.rotary_emb(k)
        null_k, null_v = self.null_kv[:, None, None].expand(-1, len(x), -1, -1)  # [B, 1, d]
        k, v = torch.cat([null_k, k], dim=1), torch.cat([null_v, v], dim=1)  # [B, N + 1, d]
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        num_tokens = x.shape[1]
        future = x.new_ones(num_tokens, num_tokens + 1, dtype=torch.bool).triu(2)
        bias = bias.to(q.dtype).masked_fill(future, -torch.finfo(q.dtype).max)
        h = F.scaled_dot_product_attention(
            q, k[:, None], v[:, None], attn_mask=bias[None], scale=ATTENTION_SCALE
        )  # [B, H, N, d]
        return self.to_out(rearrange(h, "b h n d -> b n (h d)"))


class Rotary(nn.Module):
    """Rotates pairs of neighbouring values by an angle that grows with the position."""

    def __init__(self, dim: int):
        super().__init__()
        self.freqs = nn.Parameter(10000 ** (-torch.arange(0, dim, 2) / dim), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, d] -> [..., N, d]; values beyond twice the frequencies stay."""
        places = torch.arange(x.shape[-2], device=x.device)
        angle = torch.outer(places, self.freqs.float()).to(x.dtype)  # [N, d / 2]
        turned, rest = x[..., : 2 * angle.shape[-1]], x[..., 2 * angle.shape[-1] :]
        a, b = turned[..., 0::2], turned[..., 1::2]
        pair = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        return torch.cat([torch.stack(pair, dim=-1).flatten(-2), rest], dim=-1)


class GatedSiLU(nn.Module):
    """The first half of the values, gated by the second."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2 W] -> [..., W]."""
        x, gate = x.chunk(2, dim=-1)
        return x * F.silu(gate)


def feed_forward(dim: int, mult: int, post_norm: bool) -> nn.Sequential:
    """The layers between: [B, N, D] -> [B, N, D]."""
    inner = mult * dim
    return nn.Sequential(
        ScaleNorm(dim),
        nn.Linear(dim, 2 * inner, bias=False),
        GatedSiLU(),
        ScaleNorm(inner) if post_norm else nn.Identity(),
        nn.Identity(),  # dropout, in training
        nn.Linear(inner, dim, bias=False),
    )


LaionPrior.__module__ = "unclip"
