"""The U-Net of guided-diffusion and its heirs, name by name, in diffusers' names.

It numbers its blocks in a row, input_blocks.0 to middle_block to output_blocks.N, and packs the
queries, keys and values of a head side by side: [q | k | v] of head 0, [q | k | v] of head 1, ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
PACKED = {"qkv": ("to_q", "to_k", "to_v"), "encoder_kv": ("add_k_proj", "add_v_proj")}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a packed U-Net that its weights betray; all others are published."""

    channels: tuple[int, ...]  # by level
    num_blocks: int
    attention_levels: tuple[bool, ...]


def shape_of(weights: Mapping[str, Tensor]) -> Shape:
    """The sizes of a U-Net from its weights.

    Every level but the last doubles its side on the way up, in one more residual block.

    Raises:
        KeyError: for the first weight that a U-Net of this kind would have.
    """
    num_outputs = 1 + max(
        (int(name.split(".")[1]) for name in weights if name.startswith("output_blocks.")),
        default=0,
    )
    doubling = {
        name.split(".")[1]
        for name in weights
        if name.startswith("output_blocks.")
        and name.split(".")[2] != "0"
        and name.endswith("in_layers.0.weight")
    }
    num_levels = len(doubling) + 1
    num_blocks = num_outputs // num_levels - 1
    firsts = [f"input_blocks.{1 + level * (num_blocks + 1)}" for level in range(num_levels)]
    return Shape(
        channels=tuple(weights[f"{first}.0.in_layers.2.weight"].shape[0] for first in firsts),
        num_blocks=num_blocks,
        attention_levels=tuple(f"{first}.1.qkv.weight" in weights for first in firsts),
    )


def places(shape: Shape) -> dict[str, str]:
    """diffusers' name of each residual block and each attention, by its packed name."""
    found = {}
    num_levels, per_level = len(shape.channels), shape.num_blocks + 1
    for level, attends in enumerate(shape.attention_levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{num_levels - 1 - level}"
        for block in range(shape.num_blocks):
            number = 1 + level * per_level + block
            found[f"input_blocks.{number}.0"] = f"{down}.resnets.{block}"
            if attends:
                found[f"input_blocks.{number}.1"] = f"{down}.attentions.{block}"
        if level < num_levels - 1:
            found[f"input_blocks.{(level + 1) * per_level}.0"] = f"{down}.downsamplers.0"
        for block in range(per_level):
            number = (num_levels - 1 - level) * per_level + block
            found[f"output_blocks.{number}.0"] = f"{up}.resnets.{block}"
            if attends:
                found[f"output_blocks.{number}.1"] = f"{up}.attentions.{block}"
        if level > 0:
            found[f"output_blocks.{number}.{2 if attends else 1}"] = f"{up}.upsamplers.0"
    found["middle_block.0"] = "mid_block.resnets.0"
    if any(shape.attention_levels):
        found["middle_block.1"] = "mid_block.attentions.0"
    last = 2 if any(shape.attention_levels) else 1
    return found | {f"middle_block.{last}": "mid_block.resnets.1"}


def unpacked_unet(weights: Mapping[str, Tensor], head_dim: int) -> Iterator[tuple[str, Tensor]]:
    """The weights of a packed U-Net in diffusers' names.

    Raises:
        KeyError: for a weight that such a network has not.
    """
    homes = places(shape_of(weights))
    for name, tensor in weights.items():
        layer, kind = name.rsplit(".", 1)
        if layer in ENDS:
            yield f"{ENDS[layer]}.{kind}", tensor
            continue
        home, part = ".".join(layer.split(".")[:3]), ".".join(layer.split(".")[3:])
        if layer.startswith("middle_block"):
            home, part = ".".join(layer.split(".")[:2]), ".".join(layer.split(".")[2:])
        if part in RESNET:
            yield f"{homes[home]}.{RESNET[part]}.{kind}", tensor
        elif part in ATTENTION:
            yield f"{homes[home]}.{ATTENTION[part]}.{kind}", as_linear(tensor)
        elif part in PACKED:
            parts = PACKED[part]
            for own, piece in zip(parts, unpack(tensor, len(parts), head_dim), strict=True):
                yield f"{homes[home]}.{own}.{kind}", as_linear(piece)
        else:
            raise KeyError(name)


def unpack(tensor: Tensor, num_parts: int, head_dim: int) -> Tensor:
    """Rows packed head by head [heads parts d, ...] -> each part's own [parts, heads d, ...]."""
    return rearrange(tensor, "(h p d) ... -> p (h d) ...", p=num_parts, d=head_dim).contiguous()


def as_linear(tensor: Tensor) -> Tensor:
    """The weight [C, C', 1] of a convolution of width 1 as that of a linear layer [C, C']."""
    return tensor.squeeze(-1) if tensor.ndim == 3 else tensor
