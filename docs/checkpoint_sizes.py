"""Sizes of the published networks: python docs/checkpoint_sizes.py

Prints the memory tables of docs/checkpoints.md and writes docs/safetensors_keys.md, every weight of
a model by name. Networks are built on PyTorch's meta device, so nothing is read. What is counted is
weights alone; activations and the framework come on top.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection

from unclip import Decoder, LaionPrior, Prior, Upsampler

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
GIB = 1 << 30
# CLIP ViT-L/14 (OpenAI), which Karlo, Kandinsky 2.1 and LAION's prior were trained with.
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
KARLO = {
    "CLIP": "CLIP, captions",
    "prior": "prior",
    "decoder": "decoder",
    "upsampler_256": "upsampler_256 (both networks)",
}
MOVING = ("decoder", "upsampler_256")  # into the dtype asked for
PAGE = Path(__file__).with_name("safetensors_keys.md")
INTRODUCTION = """# The keys of our safetensors files

A model's folder has one folder a network; `diffusion_pytorch_model.safetensors` (for CLIP
`model.safetensors`), in one file or in shards with an index, holds exactly these tensors. Shapes
are those of Karlo and CLIP ViT-L/14. `{0..2}` stands for each number from 0 to 2;
a name whose shape differs between numbers is written once for each shape. This page is made by
`python docs/checkpoint_sizes.py`.
"""
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def millions(network: nn.Module) -> float:
    """Parameters of a network, in millions."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def components() -> dict[str, nn.Module]:
    """Karlo's networks and the other priors at full size, without values."""
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=768)
    with torch.device("meta"):
        return {
            "CLIP, captions": CLIPTextModelWithProjection(config.text_config),
            "CLIP, both towers": CLIPModel(config),
            "prior": Prior(),
            "decoder": Decoder(),
            "upsampler_256 (both networks)": Upsampler(separate_last_step=True),
            "prior of Kandinsky 2.2": Prior(embedding_dim=1280),
            "prior of LAION": LaionPrior(),
        }


def largest_layer(network: nn.Module) -> float:
    """Parameters of the layer that has the most of its own, in millions."""
    return (
        max(
            sum(parameter.numel() for parameter in layer.parameters(recurse=False))
            for layer in network.modules()
        )
        / 1e6
    )


def memory_rows(karlo: dict[str, nn.Module]) -> list[str]:
    """GiB of weights that are on the device at once; CLIP and the prior stay in float32."""
    rows = []
    for dtype, width in BYTES.items():
        gib = {
            name: 1e6 * (width if name in MOVING else 4) / GIB for name in karlo
        }  # of a million parameters
        whole = {name: millions(network) * gib[name] for name, network in karlo.items()}
        layer = max(largest_layer(network) * gib[name] for name, network in karlo.items())
        largest = max(whole, key=whole.get)
        cells = f"{sum(whole.values()):.1f} | {whole[largest]:.1f} ({largest}) | {layer:.2f}"
        rows.append(f"| {dtype} | {cells} |")
    return rows


def tables() -> str:
    """Both tables as Markdown."""
    every = components()
    lines = ["| network | parameters (M) | float32 (GiB) | 16 bits (GiB) |", "|---|---|---|---|"]
    for name, network in every.items():
        count = millions(network)
        whole, half = count * 4e6 / GIB, count * 2e6 / GIB
        lines.append(f"| {name} | {count:,.1f} | {whole:.2f} | {half:.2f} |")
    karlo = {name: every[label] for name, label in KARLO.items()}
    lines += ["", "| dtype | no offload (GiB) | model offload (GiB) | sequential offload (GiB) |"]
    lines.append("|---|---|---|---|")
    return "\n".join([*lines, *memory_rows(karlo)]) + "\n"


def networks() -> dict[str, nn.Module]:
    """One network of each kind at Karlo's or LAION's size, without values."""
    with torch.device("meta"):
        return {
            "clip/ (CLIPModel)": CLIPModel(
                CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=768)
            ),
            "prior/ (Prior)": Prior(),
            "prior/ (LaionPrior)": LaionPrior(),
            "decoder/ (Decoder)": Decoder(),
            "decoder/ (Decoder with a text transformer of its own: these as well)": nn.ModuleDict(
                {
                    "text_transformer": Decoder(
                        text_encoder={"width": 2048, "num_layers": 24, "num_heads": 32}
                    ).text_transformer
                }
            ),
            "upsampler_256/ and upsampler_1024/ (Upsampler)": Upsampler(separate_last_step=True),
        }


def patterns(network: nn.Module) -> list[str]:
    """The weights with their shapes, those that differ in numbers alone on one line."""
    found: dict[tuple[str, tuple[int, ...]], list[list[int]]] = {}
    for name, tensor in network.state_dict().items():
        numbers = [int(number) for number in NUMBER.findall(name)]
        found.setdefault((NUMBER.sub("#", name), tuple(tensor.shape)), []).append(numbers)
    lines = []
    for (pattern, shape), every in found.items():
        for column in range(pattern.count("#")):
            pattern = pattern.replace("#", spoken({row[column] for row in every}), 1)
        lines.append(f"{pattern} {list(shape)} x {len(every)}")
    return lines


def spoken(numbers: set[int]) -> str:
    """Numbers as a range where they are one."""
    low, high = min(numbers), max(numbers)
    if len(numbers) == 1:
        return str(low)
    if len(numbers) == high - low + 1:
        return f"{{{low}..{high}}}"
    return "{" + ",".join(map(str, sorted(numbers))) + "}"


def page() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for title, network in networks().items():
        count = len(network.state_dict())
        listing = "\n".join(patterns(network))
        parts.append(f"\n## {title}: {count} tensors\n\n```\n{listing}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(tables(), end="")
