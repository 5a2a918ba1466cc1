"""Writing a model's folder: safetensors and JSON, staged aside and put in place whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
from diffusers import SchedulerMixin
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from unclip.diffusion.samplers import SAMPLER_NAMES
from unclip.models.clip import CLIP
from unclip.pipeline.folder import INDEX_NAME, PRIOR_ALONE
from unclip.pipeline.loading import (
    CLIP_REMARKS,
    NETWORK_STEM,
    SCHEDULERS,
    clip_sections,
    scheduler_settings,
)
from unclip.pipeline.memory import check_dtype
from unclip.pipeline.quantization import is_offloaded, is_quantized


def write_folder(folder: Path, overwrite: bool, write) -> None:
    """Let write(staged) fill a new folder, then give it its name.

    Raises:
        FileExistsError: when the folder holds something and overwrite is not set, or when what it
            holds is no model.
    """
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not overwrite:
        raise FileExistsError(f"{folder} exists: name another folder or set overwrite")
    if occupied and not (folder / INDEX_NAME).is_file():
        raise FileExistsError(f"{folder} holds something that is no model: name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new = staged / "new"
        new.mkdir()
        write(new)
        for path in new.rglob("*.*"):  # some writers hide their files from everyone else
            if path.is_file():
                path.chmod((new / INDEX_NAME).stat().st_mode)
        put_in_place(new, folder, staged / "old")
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def put_in_place(new: Path, folder: Path, old: Path) -> None:
    """Rename new to folder, and what stood there to old; undo the latter if the former fails."""
    existed = folder.exists()
    if existed:
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if existed:
            os.replace(old, folder)
        raise


def write_json(path: Path, value: dict) -> None:
    """Write an object, its keys in order."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def write_index(folder: Path, classes: dict[str, tuple], settings: dict) -> None:
    """Write which class each component has, and the pipeline's own settings."""
    remarks = {"_class_name": "UnCLIPPipeline", "_diffusers_version": diffusers.__version__}
    write_json(folder / INDEX_NAME, {**remarks, **classes, **settings})


def write_network(
    network: Any,
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
    class_name: str | None = None,
    left_out: Collection[str] = (),
) -> None:
    """Write a network of diffusers' kind as its own save_pretrained would, in any dtype.

    class_name: to be read as, where not its own; left_out: settings that class does not have.
    """
    config = json.loads(network.to_json_string())
    config["_class_name"] = class_name or config["_class_name"]
    unsaid = {"_name_or_path", *left_out}  # the former: where it lay on this machine
    config = {key: value for key, value in config.items() if key not in unsaid}
    state = stored_state(network, dtype, folder.name)
    write_state(folder, NETWORK_STEM, state, config, max_shard_size)


def write_state(
    folder: Path, stem: str, state: dict[str, Tensor], config: dict, max_shard_size: int | str
) -> None:
    """Write a new folder of config.json and weights in safetensors, in shards where they ask it."""
    folder.mkdir()
    write_json(folder / "config.json", config)
    split = split_torch_state_dict_into_shards(
        state, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=max_shard_size
    )
    for name, keys in split.filename_to_tensors.items():
        tensors = {key: state[key] for key in keys}
        content = safetensors.torch.save(tensors, metadata={"format": "pt"})
        (folder / name).write_bytes(content)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def check_schedulers(parts: Mapping[str, Any]) -> None:
    """Refuse schedulers among the parts of a model that could not be read again.

    Raises:
        ValueError: naming the stage's scheduler.
    """
    for name, part in parts.items():
        if isinstance(part, SchedulerMixin) and type(part) not in SCHEDULERS:
            raise ValueError(
                f"{name}: {type(part).__name__} could not be read again; call use_sampler("
                f"{name.removesuffix('_scheduler')!r}, ...) with one of {', '.join(SAMPLER_NAMES)}"
            )


def write_scheduler(scheduler: SchedulerMixin, folder: Path) -> None:
    """Write what is read of a scheduler: from_config() keeps settings of other classes too."""
    folder.mkdir()
    known = scheduler_settings(type(scheduler))
    config = json.loads(scheduler.to_json_string())
    config = {key: value for key, value in config.items() if key in known}
    write_json(folder / scheduler.config_name, config)


def write_clip(
    clip: CLIP, folder: Path, dtype: torch.dtype | None, max_shard_size: int | str
) -> None:
    """Write CLIP in the layout of CLIP.save_pretrained, in any dtype."""
    forget_lengths(clip)
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        state = stored_state(clip.model, dtype, "clip")
        clip.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    finally:
        if had_bar:
            transformers_logging.enable_progress_bar()
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for section, known in clip_sections(type(clip.model)).items():
        known = known | CLIP_REMARKS - {"_name_or_path"}
        settings = config[section] if section else config
        for key in set(settings) - known:  # old files keep settings that nothing reads any more
            del settings[key]
    write_json(path, config)


def forget_lengths(clip: CLIP) -> None:
    """What its tokenizer was last asked for is no part of it."""
    backend = clip.tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()


def write_prior(
    parts: Mapping[str, Any], folder: Path, dtype: torch.dtype | None, max_shard_size: int | str
) -> None:
    """Write a prior alone, with its scheduler and the steps and guidance it is meant for."""
    check_schedulers(parts)
    prior, scheduler = parts["prior"], parts["prior_scheduler"]
    write_network(prior, folder / "prior", dtype, max_shard_size)
    write_scheduler(scheduler, folder / "prior_scheduler")
    settings = {"default_steps": parts["steps"], "default_guidance": parts["guidance"]}
    classes = {
        "prior": ("unclip", type(prior).__name__),
        "prior_scheduler": ("diffusers", type(scheduler).__name__),
    }
    write_index(folder, classes, {"_class_name": PRIOR_ALONE, **settings})


def stored_state(network: nn.Module, dtype: torch.dtype | None, name: str) -> dict[str, Tensor]:
    """The weights as they are stored: on the CPU, contiguous, in dtype, finite, not quantized."""
    check_storable(network, dtype, name)
    state = {}
    for key, tensor in network.state_dict().items():
        kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        state[key] = tensor.detach().to("cpu", kind).contiguous()
        if not torch.isfinite(state[key]).all():
            raise FloatingPointError(f"{name}: {key} is not finite, nothing was saved")
    return state


def check_storable(network: nn.Module, dtype: torch.dtype | None, name: str) -> None:
    """Refuse weights that are not there as they were, and a dtype that none can be stored in."""
    if dtype == "auto":
        raise ValueError("dtype: 'auto' is for loading; give the torch.dtype to store weights in")
    if dtype is not None:
        check_dtype(dtype)
    if is_quantized(network):
        raise ValueError(f"{name}: its weights are quantized; save the model that it was made from")
    if is_offloaded(network):
        raise ValueError(f"{name}: its weights are offloaded; call remove_all_hooks() first")
