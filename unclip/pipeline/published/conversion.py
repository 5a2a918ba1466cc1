"""One layout into another, and the proof that nothing was lost on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unclip.pipeline.folder import model_hash
from unclip.pipeline.loading import ModelFileError
from unclip.pipeline.pipeline import UnCLIPPipeline
from unclip.pipeline.published.diffusers_export import UNSHIPPED, export_to_diffusers
from unclip.pipeline.published.sources import find, layout_of, read_model, read_prior
from unclip.pipeline.saving import write_folder, write_prior

TARGETS = ("unclip", "diffusers")
SHARD_SIZE = "5GB"


def convert(
    source: str | Path | None,
    folder: str | Path,
    to: str = "unclip",
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    **parts: Any,
) -> dict[str, Any]:
    """Write a source of any layout as a folder of ours or of diffusers', and read it back.

    dtype: of the stored weights. parts: variant, clip, prior and upsampler_1024 of
    UnCLIPPipeline.from_pretrained. A source that holds a prior alone becomes a folder for its
    argument prior.

    Returns:
        layout, tensors and parameters that were compared, the folder's hash, and what was left out.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: as reading and saving do.
        ModelFileError: where what was written is not, to the bit, what was read.
    """
    folder = Path(folder)
    layout = layout_of(*find(source, parts.get("variant")))
    left_out = None
    if layout in ("laion", "kandinsky", "prior"):
        refuse_parts(layout, to, parts)
        found = read_prior(source, parts.get("variant"))
        before = {"prior": found["prior"]}
        write_folder(folder, overwrite, lambda new: write_prior(found, new, dtype, SHARD_SIZE))
        after = {"prior": read_prior(folder)["prior"]}
    else:
        pipe = UnCLIPPipeline(**read_model(source, torch.float32, **parts))
        before = networks_of(pipe.components)
        if to == "diffusers":
            left_out = UNSHIPPED if before.pop("upsampler_1024", None) is not None else None
            export_to_diffusers(pipe, folder, dtype, overwrite)
        else:
            pipe.save_pretrained(folder, dtype, SHARD_SIZE, overwrite)
        after = networks_of(read_model(folder, torch.float32))
    counts = check_equal(folder, states_of(before), states_of(after), dtype)
    return {"layout": layout, **counts, "hash": model_hash(folder), "left_out": left_out}


def refuse_parts(layout: str, to: str, parts: Mapping[str, Any]) -> None:
    """Refuse what makes no sense for a prior alone."""
    if to != "unclip":
        raise ValueError("to: a prior alone is written in our layout only")
    for name in ("clip", "prior", "upsampler_1024"):
        if parts.get(name) is not None:
            raise ValueError(f"{name}: the source ({layout}) is a prior alone and takes no parts")


def networks_of(components: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The components that hold weights."""
    return {name: part for name, part in components.items() if isinstance(part, nn.Module)}


def states_of(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Every weight by the names of its network and its own."""
    return {
        f"{name}.{key}": tensor
        for name, network in networks.items()
        for key, tensor in network.state_dict().items()
    }


def check_equal(
    folder: Path, before: Mapping[str, Tensor], after: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, int]:
    """Compare all weights, rounded to dtype as they were stored."""
    after = {key: tensor for key, tensor in after.items() if key != "clip.logit_scale"}
    before = {key: tensor for key, tensor in before.items() if key != "clip.logit_scale"}
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise ModelFileError(f"{folder}: {odd} is in one of source and result alone")
    for key, tensor in before.items():
        kept = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if not torch.equal(kept, after[key].to(kept.dtype)):
            raise ModelFileError(f"{folder}: {key} is not what was read")
    return {"tensors": len(before), "parameters": sum(w.numel() for w in before.values())}
