"""The prior's transformer, whose text is read once for all steps, candidates and noise levels.

In the causal sequence [text states, z_txt, t, noised z_img, query] the first L + 1 tokens cannot
see what changes from step to step, so their keys and values never change: they are the prefix.

Shapes: B batch, N captions, L text tokens, P tokens of a prefix, H heads of E channels, C = H E
channels of a token, D CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import PriorTransformer
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.prior_transformer import PriorTransformerOutput
from torch import Tensor

from unclip.models.layers import heads, read_values

MASKED = -10000.0  # the library's stand-in for minus infinity; exp() of it is 0 in float32


@dataclass
class Prefix:
    """What every later token may know of captions: keys and values of each block.

    Made empty and filled by the first forward that is given it.

    Args:
        rows: [B], which of the N captions each row of the batch belongs to; None where they are
            the same.
    """

    rows: Tensor | None = None
    keys_and_values: list[tuple[Tensor, Tensor]] | None = None  # each [B, H, P, E]
    bias: Tensor | None = None  # [B, 1, 1, P]: 0, or MASKED where a token pads

    @staticmethod
    def cat(prefixes: Sequence[Prefix]) -> Prefix:
        """Join filled ones along B; shorter ones are padded by tokens without weight."""
        longest = max(prefix.bias.shape[-1] for prefix in prefixes)
        missing = [longest - prefix.bias.shape[-1] for prefix in prefixes]
        blocks = zip(*(prefix.keys_and_values for prefix in prefixes), strict=True)
        pairs = [
            tuple(
                torch.cat([F.pad(x, (0, 0, 0, n)) for x, n in zip(members, missing, strict=True)])
                for members in zip(*block, strict=True)
            )
            for block in blocks
        ]
        padded = zip(prefixes, missing, strict=True)
        bias = [F.pad(prefix.bias, (0, n), value=MASKED) for prefix, n in padded]
        return Prefix(keys_and_values=pairs, bias=torch.cat(bias))


class PrefixPriorTransformer(PriorTransformer):
    """diffusers' PriorTransformer, with the same weights, that can keep the prefix of its text.

    forward takes one argument more, a Prefix. The first call with it reads the N captions of
    proj_embedding and encoder_hidden_states and fills it; later ones look at nothing but
    hidden_states [B, D] and timestep [B]. The result is the library's, to rounding.

    Gradient checkpointing, which the library's lacks, makes a block's activations again when its
    gradients are computed instead of keeping them.
    """

    _supports_gradient_checkpointing = True
    gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        proj_embedding: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
        prefix: Prefix | None = None,
    ) -> PriorTransformerOutput | tuple[Tensor]:
        """As the library's; see the class for prefix."""
        if prefix is None and self._makes_again():
            prefix = Prefix()
        if prefix is None or self.prd_embedding is None:
            return super().forward(
                hidden_states,
                timestep,
                proj_embedding,
                encoder_hidden_states,
                attention_mask,
                return_dict,
            )
        if prefix.keys_and_values is None:
            self._fill(prefix, proj_embedding, encoder_hidden_states, attention_mask)
        predicted = self._predict(hidden_states, timestep, prefix)
        return PriorTransformerOutput(predicted) if return_dict else (predicted,)

    def _fill(self, prefix: Prefix, z_txt: Tensor, states: Tensor, mask: Tensor | None) -> None:
        """Read captions: z_txt [N, D], states [N, L, D], mask [N, L] True where a token is real."""
        num_captions, length = states.shape[:2]
        if mask is None:
            mask = torch.ones(num_captions, length, dtype=torch.bool, device=states.device)
        real = length if mask.is_meta else last_real(mask) + 1
        kept = [*range(real), length]  # what pads in every caption has no weight
        if self.embedding_proj_norm is not None:
            z_txt = self.embedding_proj_norm(z_txt)
        if self.encoder_hidden_states_proj is not None:
            states = self.encoder_hidden_states_proj(states[:, :real])
        tokens = torch.cat([states[:, :real], self.embedding_proj(z_txt)[:, None]], dim=1)
        tokens = self._placed(tokens, kept)  # [N, P, C]
        bias = F.pad((1 - mask[:, :real].to(tokens.dtype)) * MASKED, (0, 1))[:, None, None]
        causal = tokens.new_full((len(kept), len(kept)), MASKED).triu(1)
        found = []
        for block in self.transformer_blocks:
            tokens, keys_and_values = self._attend(block, tokens, None, bias + causal)
            found.append(keys_and_values)
        rows = slice(None) if prefix.rows is None else prefix.rows.to(bias.device)
        prefix.keys_and_values = [(keys[rows], values[rows]) for keys, values in found]
        prefix.bias = bias[rows]

    def _predict(self, z_img_t: Tensor, t: Tensor, prefix: Prefix) -> Tensor:
        """z_img_hat [B, D] of noised embeddings [B, D] at timesteps t [B]."""
        times = self.time_embedding(self.time_proj(t.expand(len(z_img_t))).to(self.dtype))
        query = self.prd_embedding.to(times.dtype)[:, 0].expand(len(z_img_t), -1)
        tokens = torch.stack([times, self.proj_in(z_img_t), query], dim=1)  # [B, 3, C]
        first = self.config.num_embeddings + 1
        tokens = self._placed(tokens, range(first, first + 3))
        causal = tokens.new_full((3, 3), MASKED).triu(1).expand(len(tokens), 1, 3, 3)
        bias = torch.cat([prefix.bias.expand(-1, 1, 3, -1), causal], dim=3)  # [B, 1, 3, P + 3]
        for block, past in zip(self.transformer_blocks, prefix.keys_and_values, strict=True):
            tokens, _ = self._attend(block, tokens, past, bias)
        return self.proj_to_clip_embeddings(self.norm_out(tokens)[:, -1])

    def _makes_again(self) -> bool:
        """Whether activations are made again rather than kept."""
        return self.gradient_checkpointing and torch.is_grad_enabled()

    def _attend(self, block: BasicTransformerBlock, *inputs) -> tuple[Tensor, tuple]:
        if self._makes_again():
            return self._gradient_checkpointing_func(attend, block, *inputs)
        return attend(block, *inputs)

    def _placed(self, tokens: Tensor, places: list[int] | range) -> Tensor:
        """Tokens [B, P, C] with the positional embeddings of their places in the sequence."""
        positions = self.positional_embedding[:, list(places)].to(tokens.dtype)
        tokens = tokens + positions
        return tokens if self.norm_in is None else self.norm_in(tokens)


def last_real(mask: Tensor) -> int:
    """The last place of [N, L] at which any caption has a token; the first where none has."""
    return int(mask.any(dim=0).nonzero().max()) if mask.any() else 0


def attend(
    block: BasicTransformerBlock,
    tokens: Tensor,
    past: tuple[Tensor, Tensor] | None,
    bias: Tensor,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Tokens [B, Q, C] through a block, over the past's keys and values and their own.

    bias: [B, 1, Q, P + Q], added to the scores. Returns the tokens, and their keys and values
    [B, H, Q, E].
    """
    attention = block.attn1
    x = block.norm1(tokens)
    own = heads(attention, attention.to_k(x)), heads(attention, attention.to_v(x))
    pairs = ((own[0],), (own[1],)) if past is None else zip(past, own, strict=True)
    keys, values = (torch.cat(pair, dim=2) for pair in pairs)
    queries = heads(attention, attention.to_q(x))
    read = read_values(queries, keys, values, bias).transpose(1, 2).flatten(2)  # [B, Q, C]
    for layer in attention.to_out:
        read = layer(read)
    tokens = tokens + read
    return tokens + block.ff(block.norm3(tokens)), own
