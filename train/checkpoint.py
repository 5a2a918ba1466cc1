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
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"
STAGED, OLD = ".staged-", ".old-"  # beginnings of names of folders that are not in place


class SaveError(OSError):
    """The disk refuses; says where, why, how much was asked for, and that older ones are kept."""

    def __init__(self, path: Path, error: Exception, num_bytes: int):
        free = shutil.disk_usage(existing_parent(path)).free
        reason = getattr(error, "strerror", None) or str(error)
        super().__init__(
            f"cannot write {path}: {reason}. It needs {num_bytes} bytes, {free} are free; what "
            "was saved before is kept"
        )


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
        SaveError: when the disk refuses; the staged folder is removed, older checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    staged = folder / f"{STAGED}{step:08d}-{os.getpid()}"
    try:
        staged.mkdir(parents=True)
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
    except (OSError, SafetensorError) as error:
        raise SaveError(target, error, num_bytes(*tensors.values())) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def num_bytes(*groups: dict[str, Tensor]) -> int:
    """What named tensors take on a disk."""
    return sum(t.numel() * t.element_size() for named in groups for t in named.values())


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is as its manifest says; broken ones are warned of.

    Raises:
        OSError: when all are broken; a run that has learned something is not begun again unasked.
    """
    paths = sorted(folder.glob("step-*"), reverse=True)
    for path in paths:
        fault = find_fault(path)
        if fault is None:
            return path
        warnings.warn(f"passing over checkpoint {path}: {fault}", stacklevel=2)
    if paths:
        raise OSError(f"no checkpoint in {folder} is whole: remove the folder to begin again")
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is as its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, facts in manifest["files"].items():
            if Path(name).name != name or not name.endswith(".safetensors"):
                return f"{name!r} has no place in it"
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


def save_model(target: Path, write: Callable[[Path], None], weights: dict[str, Tensor]) -> None:
    """Have a folder written aside, then put it in the place of an older one.

    Raises:
        SaveError: when the disk refuses; the older one stays.
    """
    staged = target.with_name(STAGED + target.name)
    shutil.rmtree(staged, ignore_errors=True)
    try:
        write(staged)
        replace_folder(staged, target)
    except (OSError, SafetensorError) as error:
        raise SaveError(target, error, num_bytes(weights)) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def replace_folder(staged: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one."""
    old = target.with_name(OLD + target.name)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(staged, target)
    shutil.rmtree(old, ignore_errors=True)


def clear_up(folder: Path) -> None:
    """Put right what a killed process left behind: half-written folders, one half replaced."""
    for old in folder.glob(OLD + "*"):
        target = old.with_name(old.name.removeprefix(OLD))
        if not target.exists():
            os.replace(old, target)
    for path in [*folder.glob(STAGED + "*"), *folder.glob(OLD + "*")]:
        shutil.rmtree(path, ignore_errors=True)


def existing_parent(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(parent for parent in path.absolute().parents if parent.exists())


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
