"""--dry-run: everything that a run needs, tried without an update.

The network is built without values, so that the largest takes a moment and no memory; what its
forward pass would keep for the backward pass is counted on it. Shapes: B batch.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unclip.diffusion.noise import child_generators
from unclip.models.clip import CLIP, TextEncoding, text_config_of
from unclip_train import clip, decoder, distillation, prior, upsampler
from unclip_train.checks import CHAIN
from unclip_train.config import ConfigError, StageConfig
from unclip_train.data.build import captions_of, make_dataset, make_held_out
from unclip_train.data.loader import collate
from unclip_train.engine import list_decays
from unclip_train.leading import load_prior
from unclip_train.processes import known_precision
from unclip_train.weights import load_clip

GB = 1e9


def dry_run(name: str, config: StageConfig) -> list[str]:
    """Open the data, decode a batch, build the network and count; lines that tell what was found.

    Raises:
        ConfigError, FileNotFoundError: naming the key at fault.
    """
    dataset = make_dataset(name, config)
    held_out = make_held_out(name, config) if config.run.validate_every else None
    size = config.run.batch_size // config.run.gradient_accumulation
    batch = collate([dataset[position] for position in range(min(size, 8))])
    faults = sum(map(len, batch.pop("faults", ())))
    lines = [
        f"data: {len(dataset)} samples in {config.data.source}, {len(held_out or ())} held out; "
        f"{len(batch['position'])} read, {faults} broken",
        *(f"batch: {key} {told(value)}" for key, value in batch.items()),
    ]
    stage = blank_stage(name, config, dataset, batch)
    network = stage.network
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    lines.append(f"parameters: {total / 1e6:.2f} M, {trained / 1e6:.2f} M of them trained")
    lines += fit_neighbours(name, config, network)
    return lines + memory(stage, batch, config, total, trained, size)


def told(value: Any) -> str:
    """A shape and a type, or the first of a list."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"{value[0]!r}, ..." if isinstance(value[0], str) else "..."


def blank_stage(name: str, config: StageConfig, dataset, batch: dict):
    """The stage; its network has no values unless it begins from weights, which are read."""
    blank = torch.device("meta")
    if name == "clip":
        captions = captions_of(dataset, config)
        with contextlib.nullcontext() if config.init else blank:
            return clip.make_stage(config, captions)
    if name == "upsampler":
        with blank:
            network = upsampler.make_network(config)
        return upsampler.UpsamplerStage(network, config, batch)
    encoder = load_clip(config.clip)
    check_embeddings(encoder, batch)
    module = {"prior": prior, "decoder": decoder}[name]
    with blank:
        network = module.make_network(config, encoder)
    if name == "prior":
        return prior.PriorStage(network, encoder, config)
    if config.prior:  # it must fit; what it draws keeps nothing for gradients, and is not counted
        load_prior(config.prior, encoder)
    stage = decoder.DecoderStage(network, encoder, replace(config, prior_share=0.0), batch)
    if config.distill.teacher:  # the same holds of it
        distillation.make_stage(config, stage)
    return stage


def check_embeddings(encoder: nn.Module, batch: dict) -> None:
    """Refuse a CLIP without a tower for pictures where pictures must be embedded."""
    if "z_img" not in batch and not encoder.sees_pictures:
        raise ConfigError(
            "clip: it reads captions only; give one with both towers, or data.embeddings"
        )


def fit_neighbours(name: str, config: StageConfig, network: nn.Module) -> list[str]:
    """Hold the sizes of an upsampler or decoder against the runs beside it, as assemble takes them.

    Raises:
        ConfigError: where one does not draw what the next enlarges.
    """
    runs, own = Path(config.output).parent, Path(config.output).name
    if own not in CHAIN:
        return []
    sizes = {own: config.data.size}
    for other in CHAIN:
        path = runs / other / "model" / "config.json"
        if other != own and path.is_file():
            sizes[other] = json.loads(path.read_text())["size"]
    lines = []
    for first, second in zip(CHAIN, CHAIN[1:], strict=False):
        if not {first, second} <= set(sizes):
            continue
        if sizes[second] != 4 * sizes[first]:
            other = first if own == second else second
            raise ConfigError(
                f"data.size {sizes[own]} does not fit the {other} in {runs / other}, which draws "
                f"{sizes[other]} pixels: {second} must draw four times the side of {first}"
            )
        lines.append(f"sizes: {first} {sizes[first]} -> {second} {sizes[second]}")
    return lines


def memory(
    stage, batch: dict, config: StageConfig, total: int, trained: int, size: int
) -> list[str]:
    """What a process will need: weights, gradients, AdamW and averages in fp32, activations."""
    averages = len(list_decays(config.run))
    parts = {
        "weights": 4 * total,
        "gradients": 4 * trained,
        "AdamW": 8 * trained,
        "averages": 4 * trained * averages,
        "activations": kept_bytes(stage, batch, config) * size / len(batch["position"]),
    }
    told = ", ".join(f"{name} {value / GB:.2f}" for name, value in parts.items())
    need, have = sum(parts.values()), available_bytes()
    lines = [f"memory: about {need / GB:.2f} GB for micro-batches of {size} ({told})"]
    if need > have:
        lines.append(
            f"memory: this device has {have / GB:.2f} GB: raise run.gradient_accumulation, set "
            "run.gradient_checkpointing=true, or train on more devices in shards"
        )
    return lines


def kept_bytes(stage, batch: dict, config: StageConfig) -> int:
    """Bytes that a forward pass of the batch keeps for its backward pass, counted without values.

    Numbers count 2 bytes where run.precision means bf16 or fp16, though some stay in 4; what
    gradient checkpointing would save is not subtracted.
    """
    network = stage.network.to("meta").train()
    if hasattr(stage, "clip"):
        stage.clip = ShapesOfClip(stage.clip)
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}
    short = known_precision(config.run.precision) != "no"

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            width = 2 if short and x.dtype == torch.float32 else x.element_size()
            kept[storage._cdata] = storage.nbytes() // x.element_size() * width
        alive.append(x)  # so that no other storage is given its number
        return x

    alive: list[Tensor] = []
    batch = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in batch.items()}
    generators = child_generators(batch["position"], "dry run")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        with contextlib.suppress(ForwardDone):
            stage.loss(ForwardAlone(network), batch, generators)
    return sum(kept.values())


class ForwardDone(Exception):
    """The network has run; what the loss makes of its output does not matter."""


class ForwardAlone:
    """Stands in a loss for a network, runs it and goes no further."""

    def __init__(self, network: nn.Module):
        self.network, self.parameters = network, network.parameters

    def __call__(self, *inputs: Any, **named: Any) -> None:
        """Run the network; raises ForwardDone."""
        self.network(*inputs, **named)
        raise ForwardDone


class ShapesOfClip:
    """Answers as a CLIP does, with tensors that have no values."""

    def __init__(self, clip: CLIP):
        self.dim, self.context = clip.embedding_dim, clip.context
        self.width = text_config_of(clip.model).hidden_size

    def to(self, device: torch.device) -> ShapesOfClip:
        """Itself."""
        return self

    def encode_image(self, x: Tensor) -> Tensor:
        """[B, D]."""
        return torch.empty(len(x), self.dim, device="meta")

    def encode_text(self, captions: list[str]) -> TextEncoding:
        """z_txt [B, D], states [B, L, W], mask and tokens [B, L]."""
        shape = len(captions), self.context
        with torch.device("meta"):
            return TextEncoding(
                torch.empty(len(captions), self.dim),
                torch.empty(*shape, self.width),
                torch.empty(shape, dtype=torch.bool),
                torch.empty(shape, dtype=torch.long),
            )


def available_bytes() -> int:
    """Memory of the GPU, or of this machine where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
