"""The folder of a model: where the embedded one lies, and a short name for what a folder holds."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

INDEX_NAME = "model_index.json"
PRIOR_ALONE = "UnCLIPPrior"  # in the index of a folder that holds a prior and nothing else
EMBEDDED = "emoji"


def embedded_folder() -> Path:
    """The folder of the model that is installed with the package.

    Raises:
        FileNotFoundError: when this installation carries none.
    """
    folder = Path(str(files("unclip"))) / "weights" / EMBEDDED
    if not (folder / INDEX_NAME).is_file():
        raise FileNotFoundError(
            f"no embedded model in {folder}: install a release that carries it, or name a model"
        )
    return folder


def check_folder(folder: str | Path | None) -> Path:
    """The folder of a model, the embedded one for None.

    Raises:
        FileNotFoundError: when it holds no model.
    """
    if folder is None:
        return embedded_folder()
    folder = Path(folder)
    if not (folder / INDEX_NAME).is_file():
        raise FileNotFoundError(f"no model in {folder}: it has no {INDEX_NAME}")
    return folder


def model_hash(folder: str | Path) -> str:
    """16 hexadecimal digits that tell a model's weights and settings from all others.

    The start of the sha256 over the sha256 of every safetensors and JSON file and its name; about
    a second for each gigabyte.
    """
    folder = Path(folder)
    total = hashlib.sha256()
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".json") and path.is_file()
    )
    for name in names:
        with (folder / name).open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]
