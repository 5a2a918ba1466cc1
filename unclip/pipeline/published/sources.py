"""Where a model comes from: a folder, a file or a hub name, and which layout it is in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from unclip.pipeline.folder import INDEX_NAME, check_folder
from unclip.pipeline.loading import ModelFileError, read_json, read_pipeline
from unclip.pipeline.published import karlo

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.json", "*.txt")
VARIANT = re.compile(r"\w+")


def locate(source: str | Path | None) -> tuple[Path, Path] | None:
    """A source on this machine and the folder that its links may lead to; None for a hub name."""
    if source is None or Path(source).exists():
        path = check_folder(None) if source is None else Path(source)
        return path, path if path.is_dir() else path.parent
    if isinstance(source, str) and HUB_NAME.fullmatch(source) and ".." not in source:
        return None
    raise FileNotFoundError(f"no model in {source}: there is no {INDEX_NAME}")


def fetch(name: str, variant: str | None) -> tuple[Path, Path]:
    """A model of the Hugging Face hub as a folder, and the cache that its links lead into.

    Only safetensors, JSON and texts are fetched, never pickles.

    Raises:
        FileNotFoundError: when the hub cannot be reached or has no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
    others = [] if variant else ["*.fp16*.safetensors", "*.bf16*.safetensors"]
    try:
        folder = snapshot_download(
            name, allow_patterns=[*HUB_FILES, weights], ignore_patterns=others
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FileNotFoundError(
            f"no model {name}: neither here nor on the hub ({reason})"
        ) from None
    folder = Path(folder)
    return folder, folder.parents[1]


def find(source: str | Path | None, variant: str | None) -> tuple[Path, Path]:
    """A source as a path, fetched where it is a hub name, and where its links may lead."""
    return locate(source) or fetch(str(source), variant)


def read_model(
    source: str | Path | None, dtype: torch.dtype, variant: str | None
) -> dict[str, Any]:
    """Everything that UnCLIPPipeline is made of, from any layout that this package reads."""
    if variant is not None and not VARIANT.fullmatch(variant):
        raise ValueError(f"variant: give a word such as fp16, not {variant!r}")
    folder, root = find(source, variant)
    if not (folder / INDEX_NAME).is_file():
        raise FileNotFoundError(f"no model in {folder}: it has no {INDEX_NAME}")
    index = read_json(folder / INDEX_NAME, root)
    name = index.get("_class_name")
    if name == karlo.VARIATIONS or (name == karlo.TEXT_TO_IMAGE and "text_proj" in index):
        return karlo.read_karlo(folder, dtype, root, variant)
    if variant is not None:
        raise ModelFileError(f"{folder / INDEX_NAME}: models of this layout have no variants")
    return read_pipeline(folder, dtype, root)
