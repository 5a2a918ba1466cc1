"""LoRA: small trained changes of a prior or a decoder, added to its weights and taken away again.

W = W_0 + sum_i weight_i alpha_i / r_i B_i A_i   (Hu et al. 2021, arXiv 2106.09685)

Shapes: r rank, A [r, in], B [out, r]; of a convolution A [r, in, k, k], B [out, r, 1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unclip.pipeline.loading import (
    ModelFileError,
    inside,
    read_json,
    read_tensors,
    refuse_unknown,
)
from unclip.pipeline.quantization import is_offloaded, is_quantized

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
STAGES = ("prior", "decoder")
KNOWN = {
    *("peft_type", "r", "lora_alpha", "target_modules", "lora_dropout", "bias"),
    *("base_model_name_or_path", "unclip_stage"),
}
RUN_MODEL = "model"  # where a run of unclip-train keeps what it has learned


@dataclass(frozen=True)
class Change:
    """What one LoRA adds to the weights of a network, at weight 1.

    Args:
        stage: "prior" or "decoder".
        factors: by the name of a layer, its A and B.
        scale: alpha / r.
    """

    stage: str
    factors: dict[str, tuple[Tensor, Tensor]]
    scale: float

    def delta(self, layer: str) -> Tensor:
        """scale B A, of a layer's shape but for trailing sizes of 1, in float32."""
        a, b = (factor.float() for factor in self.factors[layer])
        product = self.scale * b.flatten(1) @ a.flatten(1)  # [out, in k k]
        return product.view(len(b), *a.shape[1:])


def read_lora(source: str | Path) -> Change:
    """A LoRA from the folder that unclip-train wrote, or that of its run; strict, no pickles.

    Raises:
        FileNotFoundError: when a file is missing.
        ModelFileError: naming the file in which something is wrong.
    """
    folder = Path(source)
    if not (folder / CONFIG).is_file() and (folder / RUN_MODEL / CONFIG).is_file():
        folder = folder / RUN_MODEL
    path = folder / CONFIG
    config = read_json(path, folder)
    refuse_unknown(path, config, KNOWN)
    stage, rank, alpha = (config.get(key) for key in ("unclip_stage", "r", "lora_alpha"))
    if config.get("peft_type") != "LORA" or stage not in STAGES:
        raise ModelFileError(f"{path}: is no LoRA of a prior or decoder")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ModelFileError(f"{path}: r and lora_alpha must be numbers, r above 0")
    if not math.isfinite(alpha):
        raise ModelFileError(f"{path}: lora_alpha is not finite")
    return Change(stage, read_factors(inside(folder / WEIGHTS, folder), rank), alpha / rank)


def read_factors(path: Path, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The A and B of every layer, checked."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(path):
        layer, _, half = name.removesuffix(".weight").rpartition(".lora_")
        if half not in ("A", "B") or not layer:
            raise ModelFileError(f"{path}: {name} is no weight of a LoRA")
        if tensor.ndim < 2 or tensor.shape[0 if half == "A" else 1] != rank:
            raise ModelFileError(f"{path}: {name} has the shape {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} is not finite")
        halves.setdefault(layer, {})[half] = tensor
    for layer, found in halves.items():
        if len(found) < 2:
            raise ModelFileError(f"{path}: {layer} lacks its lora_{'A' if 'B' in found else 'B'}")
    return {layer: (found["A"], found["B"]) for layer, found in halves.items()}


class Lora:
    """Methods of UnCLIPPipeline that add LoRA to its weights."""

    def load_lora(self, source: str | Path, weight: float = 1.0) -> str:
        """Add a LoRA to the prior or the decoder, and to what others have added; returns which.

        weight: how much of it; negative leads away. save_pretrained() then writes the sum.

        Raises:
            FileNotFoundError, ModelFileError: when it cannot be read.
            ValueError: when it does not fit, or weights rest on another device by offloading.
        """
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"weight: give a finite number, not {weight!r}")
        change = read_lora(source)
        network = self.components[change.stage]
        if network is None:
            raise ValueError(f"source: {source} changes a {change.stage}, which this model lacks")
        check_whole(network, change.stage)
        layers = {name: layer_of(network, name, change, source) for name in change.factors}
        originals: dict[tuple[str, str], Tensor] = self.__dict__.setdefault("_lora_originals", {})
        for name, layer in layers.items():
            originals.setdefault((change.stage, name), layer.weight.detach().clone())
            add(layer, weight * change.delta(name))
        return change.stage

    def unload_lora(self) -> None:
        """Take away all that load_lora has added; the weights are again what they were.

        Raises:
            ValueError: when the weights are quantized, or rest on another device by offloading.
        """
        for stage, _ in self.__dict__.get("_lora_originals", {}):
            check_within_reach(self.components[stage], stage)
        for (stage, name), original in self.__dict__.pop("_lora_originals", {}).items():
            layer: Any = self.components[stage].get_submodule(name)
            layer.weight.data.copy_(original)


def check_whole(network: nn.Module, stage: str) -> None:
    """Refuse to change weights that are no longer what was stored."""
    if is_quantized(network):
        raise ValueError(f"source: the {stage} is quantized; add a LoRA first, then quantize()")


def check_within_reach(network: nn.Module, stage: str) -> None:
    """Refuse to take a LoRA from weights that cannot be written where they are."""
    if is_quantized(network):
        raise ValueError(f"lora: the {stage} is quantized; unload it before quantize()")
    if is_offloaded(network):
        raise ValueError("lora: unload it before offloading the model, or after remove_all_hooks()")


def layer_of(network: nn.Module, name: str, change: Change, source: str | Path) -> nn.Module:
    """The layer that a LoRA changes.

    Raises:
        ValueError: when there is none, of another shape, or its weights are elsewhere.
    """
    try:
        layer = network.get_submodule(name)
        shape = layer.weight.shape
    except AttributeError:
        raise ValueError(f"source: {source} changes {name}, which this model lacks") from None
    if change.delta(name).shape != shape:
        a, b = change.factors[name]
        raise ValueError(
            f"source: {source} changes {name} by {tuple(b.shape)} and {tuple(a.shape)}, but here "
            f"it is {tuple(shape)}"
        )
    if layer.weight.is_meta:
        raise ValueError("source: load a LoRA before offloading the model")
    return layer


@torch.no_grad()
def add(layer: nn.Module, delta: Tensor) -> None:
    """Add to a layer's weight, the sum worked out in float32."""
    weight = layer.weight
    weight.copy_(weight.float() + delta.to(weight.device))
