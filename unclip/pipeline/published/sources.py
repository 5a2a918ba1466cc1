"""Where a model comes from: a folder, a file or a hub name, and which layout it is in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from unclip.models.laion_prior import LaionPrior
from unclip.pipeline.folder import INDEX_NAME, PRIOR_ALONE, check_folder
from unclip.pipeline.loading import (
    NETWORKS,
    SCHEDULERS,
    ModelFileError,
    one_line,
    read_clip,
    read_index,
    read_json,
    read_network,
    read_pipeline,
    read_scheduler,
)
from unclip.pipeline.published import kandinsky, karlo, karlo_original, laion
from unclip.pipeline.published.encoders import read_pixels, read_towers, read_whole
from unclip.pipeline.published.settings import read_entries
from unclip.pipeline.schedulers import DEFAULT_SAMPLERS, scheduler_for

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.json", "*.txt")
VARIANT = re.compile(r"\w+")


# --- finding it -----------------------------------------------------------------------------------


def find(source: str | Path | None, variant: str | None, **hub: Any) -> tuple[Path, Path]:
    """A source as a path, fetched where it is a hub name, and the folder its links may lead to.

    hub: revision and local_files_only of a hub name.

    Raises:
        FileNotFoundError: when there is no such thing.
    """
    if source is None:
        folder = check_folder(None)
        return folder, folder
    if Path(source).exists():
        path = Path(source)
        return path, path if path.is_dir() else path.parent
    if isinstance(source, str) and HUB_NAME.fullmatch(source) and ".." not in source:
        return fetch(source, variant, **hub)
    raise FileNotFoundError(f"no model in {source}: there is no {INDEX_NAME}")


def fetch(name: str, variant: str | None, **hub: Any) -> tuple[Path, Path]:
    """A model of the Hugging Face hub as a folder, and the cache that its links lead into.

    Only safetensors, JSON and texts are fetched, never pickles.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
    others = [] if variant else ["*.fp16*.safetensors", "*.bf16*.safetensors"]
    try:
        folder = snapshot_download(
            name, allow_patterns=[*HUB_FILES, weights], ignore_patterns=others, **hub
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = one_line(error)
        raise FileNotFoundError(
            f"no model {name}: not here, and no hub has it ({reason})"
        ) from None
    folder = Path(folder)
    return folder, folder.parents[1]


def layout_of(path: Path, root: Path) -> str:
    """The layout of a source: "unclip", "karlo", "karlo original", "kandinsky", "laion", "prior".

    Raises:
        FileNotFoundError: for a folder that holds none of them.
        ModelFileError: for the folder of another pipeline.
    """
    if path.suffix in laion.SUFFIXES and path.is_file():
        return "laion"
    if (path / INDEX_NAME).is_file():
        index = read_json(path / INDEX_NAME, root)
        name = index.get("_class_name")
        if name in (*kandinsky.PIPELINES, PRIOR_ALONE):
            return "prior" if name == PRIOR_ALONE else "kandinsky"
        foreign = name == karlo.TEXT_TO_IMAGE and "text_proj" in index
        return "karlo" if foreign or name == karlo.VARIATIONS else "unclip"
    if karlo_original.is_karlo_original(path):
        return "karlo original"
    if path.is_dir() and any(file.suffix in laion.SUFFIXES for file in path.iterdir()):
        return "laion"
    raise FileNotFoundError(f"no model in {path}: it has no {INDEX_NAME}")


# --- reading it -----------------------------------------------------------------------------------


def read_model(
    source: str | Path | None,
    dtype: torch.dtype,
    variant: str | None = None,
    clip: str | Path | None = None,
    prior: str | Path | None = None,
    upsampler_1024: str | Path | None = None,
    **hub: Any,
) -> dict[str, Any]:
    """Everything that UnCLIPPipeline is made of, from any layout that this package reads.

    clip, prior, upsampler_1024: sources of parts that take the place of the model's own. hub:
    revision and local_files_only of the source, where it is a hub name.
    """
    if variant is not None and (not isinstance(variant, str) or not VARIANT.fullmatch(variant)):
        raise ValueError(f"variant: give a word such as fp16, not {variant!r}")
    path, root = find(source, variant, **hub)
    layout = layout_of(path, root)
    if layout == "karlo":
        parts = karlo.read_karlo(path, dtype, root, variant)
    elif layout == "unclip":
        if variant is not None:
            raise ModelFileError(f"{path / INDEX_NAME}: models of this layout have no variants")
        parts = read_pipeline(path, dtype, root)
    elif layout == "karlo original":
        if clip is None:
            raise ValueError(
                f"clip: {path} holds no CLIP that can be read as weights; give a folder of "
                "openai/clip-vit-large-patch14, or that name"
            )
        parts = karlo_original.read_karlo_original(path, dtype, root)
    else:
        raise ModelFileError(f"{path}: holds a prior alone; give it as prior= beside a model")
    if clip is not None:
        parts |= read_encoder(clip) | {"normalize": parts["normalize"]}
    if prior is not None:
        parts |= fitting_prior(prior, variant, parts)
    if upsampler_1024 is not None:
        parts |= read_last_upsampler(upsampler_1024, dtype)
    return parts


def read_encoder(source: str | Path, variant: str | None = None) -> dict[str, Any]:
    """CLIP, tokenizer and pixel statistics from any Hugging Face CLIP, ours, or a model's folder.

    normalize is set, as in the paper, unless the source says otherwise.
    """
    path, root = find(source, variant)
    if (path / INDEX_NAME).is_file():
        if (path / "text_encoder").is_dir():
            pictures = (path / "image_encoder").is_dir()
            model, tokenizer = read_towers(path, root, variant, pictures)
            processors = ("feature_extractor", "image_processor")
            name = next((name for name in processors if (path / name).is_dir()), processors[0])
            pixels = read_pixels(path / name / "preprocessor_config.json", root, normalize=False)
            return {"clip": model, "tokenizer": tokenizer, **pixels}
        path = path / "clip"
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"no CLIP in {path}: it has no config.json")
    is_clip = read_json(path / "config.json", root).get("model_type") == "clip"
    model, tokenizer = read_whole(path, root, variant) if is_clip else read_clip(path, root)
    pixels = read_pixels(path / "preprocessor_config.json", root, normalize=True)
    return {"clip": model, "tokenizer": tokenizer, **pixels}


def read_prior(source: str | Path, variant: str | None = None) -> dict[str, Any]:
    """A prior, in float32, its scheduler, and how many steps and what scale it is meant for."""
    path, root = find(source, variant)
    layout = layout_of(path, root)
    steps, guidance = None, None
    if layout == "laion":
        parts, steps, guidance = laion.read_laion_prior(path, root), laion.STEPS, laion.GUIDANCE
    elif layout == "kandinsky":
        parts = kandinsky.read_kandinsky_prior(path, root, variant)
        steps, guidance = kandinsky.STEPS, kandinsky.GUIDANCE
    elif layout == "prior":
        parts, steps, guidance = read_own_prior(path, root)
    elif layout == "unclip":
        index = read_index(path, root)
        if index["prior"] is None:
            raise ModelFileError(f"{path / INDEX_NAME}: this model has no prior")
        parts = read_prior_folders(path, root, index["prior_scheduler"])
    else:
        raise ModelFileError(f"{path}: its prior is not read alone; convert the model first")
    return {**parts, "steps": steps, "guidance": guidance}


def read_own_prior(path: Path, root: Path) -> tuple[dict[str, Any], Any, Any]:
    """A folder that saving.write_prior wrote: prior and scheduler, steps, guidance."""
    where = path / INDEX_NAME
    index = read_json(where, root)
    settings = {name: index.pop(name, None) for name in ("default_steps", "default_guidance")}
    allowed = {
        "prior": [("unclip", cls.__name__) for cls in NETWORKS["prior"]],
        "prior_scheduler": [("diffusers", cls.__name__) for cls in SCHEDULERS],
    }
    classes = read_entries(where, index, allowed)
    return read_prior_folders(path, root, classes["prior_scheduler"]), *settings.values()


def read_prior_folders(path: Path, root: Path, scheduler_class: str) -> dict[str, Any]:
    """prior/ and prior_scheduler/ of a folder of ours."""
    prior = read_network(NETWORKS["prior"], path / "prior", torch.float32, root)
    scheduler = read_scheduler(path / "prior_scheduler", scheduler_class, root)
    return {"prior": prior, "prior_scheduler": scheduler}


def fitting_prior(source: str | Path, variant: str | None, parts: dict[str, Any]) -> dict[str, Any]:
    """The parts that change when a model is given another prior.

    Raises:
        ValueError: for one that draws embeddings of another kind.
    """
    found = read_prior(source, variant)
    if isinstance(found["prior"], LaionPrior) and not parts["normalize"]:
        raise ValueError(
            "prior: it draws embeddings of length 1, but this model's decoder was trained with "
            "embeddings as CLIP gives them"
        )
    steps, guidance = parts.get("default_steps") or {}, parts.get("default_guidance") or {}
    guidance = guidance if isinstance(guidance, dict) else {"decoder": guidance}
    if found["steps"] is not None:
        steps = {**steps, "prior": found["steps"]}
        guidance = {**guidance, "prior": found["guidance"]}
    named = {name: found[name] for name in ("prior", "prior_scheduler")}
    return {**named, "default_steps": steps, "default_guidance": guidance}


def read_last_upsampler(source: str | Path, dtype: torch.dtype) -> dict[str, Any]:
    """The upsampler to 1024 pixels of one of our models; "embedded" is the one we ship."""
    path, root = find(None if source == "embedded" else source, None)
    name = "upsampler_1024"
    folder = path / name if (path / name).is_dir() else path
    network = read_network(NETWORKS[name], folder, dtype, root)
    return {name: network, f"{name}_scheduler": scheduler_for(network, DEFAULT_SAMPLERS[name])}
