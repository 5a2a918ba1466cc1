"""Layers of the library's U-Nets, with the same weights and fewer passes over memory.

On a CPU a U-Net spends as long on what lies between its convolutions as on them. These layers leave
out the library's copies, divisions by one and second looks at the same caption, and overwrite what
nobody reads again; gradients go the library's way.

Shapes: B batch, C channels, H heads of E channels, S cells of a grid, P tokens of the context.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

MANY_CELLS = 1024  # of a grid; below, a CPU gains neither by doubled() nor by channels last
KeysAndValues = tuple[Tensor, Tensor]  # each [B, H, P, E]


class ResidualBlock(ResnetBlock2D):
    """diffusers' residual block, which writes into its own intermediate results when sampling."""

    def forward(self, input_tensor: Tensor, temb: Tensor, *args, **kwargs) -> Tensor:
        """x [B, C, h, w] and time embedding [B, T] -> [B, C', h', w']; as the library's."""
        if torch.is_grad_enabled() or self.output_scale_factor != 1 or self.skip_time_act:
            return super().forward(input_tensor, temb, *args, **kwargs)
        x = input_tensor
        h = F.silu(self.norm1(x), inplace=True)
        doubles = self.upsample is not None and self.conv_shortcut is None
        if doubles and doubling_pays(self.conv1, h):
            h = doubled(self.conv1, h)
        else:
            resample, doubles = self.upsample or self.downsample, False
            if resample is not None:
                x, h = resample(x), resample(h)
            h = self.conv1(h)
        told = self.time_emb_proj(F.silu(temb))[:, :, None, None]  # [B, C' or 2 C', 1, 1]
        if self.time_embedding_norm == "scale_shift":
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h.add_(told))
        h = self.conv2(self.dropout(F.silu(h, inplace=True)))
        if doubles:
            cells = h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C', h, 2, w, 2], a view
            cells.add_(x[:, :, :, None, :, None])
            return h
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


def doubling_pays(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether doubled() is the quicker way: on a CPU, for grids that are not small.

    The number of pictures has no say, so that none depends on its batch.

    Not where offloading keeps the weights elsewhere or in another dtype, nor where a LoRA is
    trained beside them.
    """
    if type(conv) is not nn.Conv2d:
        return False
    at_hand = conv.weight.device == x.device and conv.weight.dtype == x.dtype
    return x.device.type == "cpu" and at_hand and x.shape[2] * x.shape[3] >= MANY_CELLS


def doubled(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3 x 3 convolution of x [B, C, h, w] enlarged by repeating its cells, [B, C', 2 h, 2 w].

    Neighbours that repeat a cell share its product with the sum of their weights: a transposed
    convolution of 4 x 4 weights and stride 2 has 4 products a place where the other has 9.
    """
    flipped = F.pad(conv.weight.flip(2, 3), (1, 1, 1, 1))  # [C', C, 5, 5]
    summed = 4 * F.avg_pool2d(flipped, 2, stride=1)  # [C', C, 4, 4]
    return F.conv_transpose2d(x, summed.transpose(0, 1), conv.bias, stride=2, padding=1)


class ContextAttention:
    """Attention of a grid's cells over the context and each other (GLIDE, section 2.1).

    diffusers' AttnAddedKVProcessor2_0, which may be given the keys and values of the context.

    Args:
        place: which of a U-Net's attention layers this is, counted from 0.
    """

    def __init__(self, place: int):
        self.place = place
        self.attend = attend  # what compiling replaces

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        keys_and_values: list[KeysAndValues] | None = None,
    ) -> Tensor:
        """x [B, C, h, w], context [B, P, C''], bias [B, 1, P] -> [B, C, h, w].

        keys_and_values: context_keys_and_values() of all layers, in place of the context.
        """
        if keys_and_values is None:
            context = keys_and_values_of(attn, encoder_hidden_states)
        else:
            context = keys_and_values[self.place]
        return self.attend(attn, hidden_states, *context, attention_mask)


def attend(attn: Attention, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Cells x [B, C, h, w] over keys and values [B, H, P, E] of the context and over each other.

    bias: [B, 1, P], added to the scores of the context.
    """
    cells = attn.group_norm(x).flatten(2).transpose(1, 2)  # [B, S, C], in channels_last no copy
    own = heads(attn, attn.to_k(cells)), heads(attn, attn.to_v(cells))  # each [B, H, S, E]
    keys, values = torch.cat([keys, own[0]], dim=2), torch.cat([values, own[1]], dim=2)
    if bias is not None:
        bias = F.pad(bias, (0, cells.shape[1]))[:, None]  # [B, 1, 1, P + S]
    queries = heads(attn, attn.to_q(cells))
    read = read_values(queries, keys, values, bias).transpose(1, 2).flatten(2)  # [B, S, C]
    for layer in attn.to_out:
        read = layer(read)
    return x + read.transpose(1, 2).unflatten(2, x.shape[2:])


def read_values(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias) v of queries [B, H, Q, E] over P tokens -> [B, H, Q, E].

    bias: [B, 1, 1 or Q, P]. In training on a CPU in half precision by plain products: over so few
    tokens the gradients of the fused kernel take two to ten times as long (docs/performance.md).
    """
    if queries.is_cpu and queries.dtype != torch.float32 and torch.is_grad_enabled():
        scores = queries @ keys.mT * queries.shape[-1] ** -0.5  # [B, H, Q, P]
        return (scores if bias is None else scores + bias).softmax(-1).to(values.dtype) @ values
    return read_values_fused(queries, keys, values, bias)


def read_values_fused(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """The same by the library's fused kernel."""
    if bias is not None:
        bias = bias.to(queries.dtype).expand(*queries.shape[:3], -1)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)


def heads(attn: Attention, tokens: Tensor) -> Tensor:
    """[B, P, C] -> [B, H, P, E]."""
    return tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def keys_and_values_of(attn: Attention, context: Tensor) -> KeysAndValues:
    """What an attention layer makes of the context [B, P, C'']: keys and values [B, H, P, E]."""
    return heads(attn, attn.add_k_proj(context)), heads(attn, attn.add_v_proj(context))


def context_keys_and_values(unet: nn.Module, context: Tensor) -> list[KeysAndValues] | None:
    """What every attention layer makes of the context [B, P, C''], by place.

    None where another processor than ours does the attention (slicing), or where the library
    brings weights to the device only while their layer runs (group offloading).
    """
    layers = attention_layers(unet)
    ours = all(isinstance(layer.processor, ContextAttention) for layer in layers)
    if not ours or any(hasattr(module, "_diffusers_hook") for module in unet.modules()):
        return None
    return [keys_and_values_of(layer, context) for layer in layers]


def attention_layers(unet: nn.Module) -> list[Attention]:
    """The attention layers over the context, in the order of their places."""
    return [module for module in unet.modules() if isinstance(module, Attention)]


def take_over(unet: nn.Module) -> None:
    """Let our layers work in a library's U-Net, in place; its weights and their names stay."""
    for module in unet.modules():
        if type(module) is ResnetBlock2D:
            module.__class__ = ResidualBlock
    for place, layer in enumerate(attention_layers(unet)):
        if isinstance(layer.processor, AttnAddedKVProcessor2_0):
            layer.set_processor(ContextAttention(place))


def quickest_layout(network: nn.Module) -> torch.memory_format:
    """How a decoder's or an upsampler's weights should lie in memory to sample.

    With channels last convolutions need not rearrange, but the library's normalisation of small
    grids takes five to twenty times as long on a CPU.
    """
    many = (network.config.size // network.config.stem) ** 2 >= MANY_CELLS
    return torch.channels_last if many else torch.contiguous_format


def compile_layers(unet: nn.Module, **settings: Any) -> None:
    """Compile the residual blocks of a U-Net, and on a GPU the attention, in place.

    The layers rather than the whole, because equal ones are compiled once. Attention stays as it
    is on a CPU, where the compiled one took twice as long. settings: those of torch.compile.
    """
    on_cpu = next(unet.parameters()).device.type == "cpu"
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        settings = {"isolate_recompiles": True, **settings}  # else each layer searches all graphs
    for module in unet.modules():
        if isinstance(module, ResidualBlock):
            module.compile(**settings)
        elif isinstance(getattr(module, "processor", None), ContextAttention) and not on_cpu:
            module.processor.attend = torch.compile(attend, **settings)
