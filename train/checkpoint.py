"""Checkpoints that survive a crash: whole folders, verified, never half-written.

A checkpoint is staged aside, its files are synced to disk, its manifest (sizes and sha256 of every
file, step, configuration) is written last, and the folder is renamed into place. Everything is
safetensors and JSON; nothing that is loaded can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], **facts
) -> Path:
    """Write folder/step-NNNNNNNN with one safetensors file for each entry of tensors.

    Args:
        folder: where checkpoints of a run are kept.
        step: updates done so far.
        tensors: file stem -> name -> tensor.
        facts: JSON values for the manifest.

    Raises:
        OSError: when the disk refuses; the staged folder is removed, older checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    staged = folder / f".staged-{step:08d}-{os.getpid()}"
    staged.mkdir(parents=True)
    try:
        for stem, named in tensors.items():
            contiguous = {name: tensor.detach().contiguous() for name, tensor in named.items()}
            save_file(contiguous, staged / f"{stem}.safetensors")
        sums = {path.name: file_facts(path) for path in sorted(staged.iterdir())}
        manifest = {"step": step, **facts, "files": sums}
        write_synced(staged / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        sync_folder(staged)
        if target.exists():  # the same step again, after a fall-back to an older one
            shutil.rmtree(target)
        os.replace(staged, target)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is as its manifest says; broken ones are warned of."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        fault = find_fault(path)
        if fault is None:
            return path
        warnings.warn(f"passing over checkpoint {path}: {fault}", stacklevel=2)
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is as its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, facts in manifest["files"].items():
            if file_facts(path / name) != facts:
                return f"{name} differs from the manifest"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load_checkpoint(path: Path) -> tuple[dict, dict[str, dict[str, Tensor]]]:
    """The manifest, and for each file stem its tensors."""
    manifest = json.loads((path / MANIFEST).read_text())
    tensors = {Path(name).stem: load_file(path / name) for name in manifest["files"]}
    return manifest, tensors


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, once the newest has been verified on disk."""
    checkpoints = sorted(folder.glob("step-*"))
    if checkpoints and find_fault(checkpoints[-1]) is None:
        for path in checkpoints[:-keep]:
            shutil.rmtree(path)


def replace_folder(staged: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(staged, target)
    shutil.rmtree(old, ignore_errors=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, named "<number of the parameter>.<quantity>"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of pack_optimizer, into an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def file_facts(path: Path) -> dict:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_synced(path: Path, text: str) -> None:
    """Write text and wait until the disk has it."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
