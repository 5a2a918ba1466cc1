"""One network out of whatever a model lies in: a run, a folder of ours, or a published layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from unclip.pipeline.folder import INDEX_NAME
from unclip.pipeline.loading import NETWORKS, ModelFileError, read_index, read_json, read_network
from unclip.pipeline.published import karlo, karlo_original
from unclip.pipeline.published.settings import read_entries
from unclip.pipeline.published.sources import find, layout_of, read_prior

RUN_MODEL = "model"  # where a run of unclip-train keeps what it has learned


def read_part(source: str | Path, name: str, variant: str | None = None) -> nn.Module:
    """A prior, decoder or upsampler in float32.

    Args:
        source: the network's own folder, the folder of a run that trained it, a model in any
            layout that docs/checkpoints.md lists, or the name of one on the Hugging Face hub.
        name: "prior", "decoder", "upsampler_256" or "upsampler_1024".
        variant: the word in the names of a published model's files ("fp16").

    Raises:
        FileNotFoundError: when there is no such thing.
        ModelFileError: naming the file in which something is wrong, or what the model lacks.
    """
    path, root = find(source, variant)
    for folder in (path, path / RUN_MODEL):
        if (folder / "config.json").is_file():
            return read_network(NETWORKS[name], folder, torch.float32, root)
    layout = layout_of(path, root)
    if layout == "unclip":
        if read_index(path, root)[name] is None:
            raise ModelFileError(f"{path / INDEX_NAME}: this model has no {name}")
        return read_network(NETWORKS[name], path / name, torch.float32, root)
    if name == "prior" and layout not in ("karlo", "karlo original"):
        return read_prior(source, variant)["prior"]
    if layout == "karlo":
        return read_karlo_part(path, root, name, variant)
    if layout == "karlo original":
        return read_original_part(path, root, name)
    raise ModelFileError(f"{path}: holds no {name}")


def read_karlo_part(path: Path, root: Path, name: str, variant: str | None) -> nn.Module:
    """A network of Karlo in diffusers' layout."""
    if name == "prior":
        index = read_json(path / INDEX_NAME, root)
        if "prior" not in index:
            raise ModelFileError(f"{path / INDEX_NAME}: this model has no prior")
        allowed = {key: karlo.PRIOR[key] for key in karlo.PRIOR}
        entries = {key: value for key, value in index.items() if key in allowed}
        read_entries(path / INDEX_NAME, entries, allowed)
        scheduler = read_json(path / "prior_scheduler" / "scheduler_config.json", root)
        clip_range = scheduler.get("clip_sample_range", 1.0)
        return karlo.read_prior(path / "prior", root, variant, clip_range)
    if name == "decoder":
        text = read_json(path / "text_encoder" / "config.json", root)
        context = text.get("max_position_embeddings", 77)
        return karlo.read_decoder(path, torch.float32, root, variant, context)
    if name == "upsampler_256":
        return karlo.read_upsampler(path, torch.float32, root, variant)
    raise ModelFileError(f"{path}: Karlo has no {name}")


def read_original_part(path: Path, root: Path, name: str) -> nn.Module:
    """A network of Karlo's own checkpoint files."""

    def file(part: str) -> Path:
        return karlo_original.only_file(path, karlo_original.FILES[part], root)

    if name == "prior":
        return karlo_original.read_prior(file("prior"), file("statistics"))
    if name == "decoder":
        return karlo_original.read_decoder(file("decoder"), torch.float32)
    if name == "upsampler_256":
        return karlo_original.read_upsampler(file("upsampler"), torch.float32)
    raise ModelFileError(f"{path}: Karlo has no {name}")
