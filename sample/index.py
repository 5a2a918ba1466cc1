"""A folder's pictures as embeddings, kept in a file so that the next look is quick.

The file is safetensors: z [N, D] float32, and a JSON text that says which network looked and, for
each row, the path inside the folder, size and modification time. A row is used again while these
three stay what they were; another network, or a damaged file, means looking again at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_sample.outputs import OutputError, check_writable
from unclip_sample.writing import write_whole

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from unclip import CLIP

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
VERSION = 2
MAX_HEAD_BYTES = 1 << 16
SAVE_EVERY = 500  # pictures at least, so that a long look that is stopped goes on from there

Stamp = tuple[int, int]  # size in bytes, modification time in nanoseconds


@dataclass(frozen=True)
class Viewer:
    """A network that looks at pictures, and a name that tells its embeddings from all others."""

    name: str  # of what a file's name may hold
    width: int  # D
    look: Callable[[Image.Image], Tensor]  # a picture, of any mode, to [1, D]


@dataclass
class Index:
    """What is known of a folder: row i of z belongs to the i-th of files."""

    files: dict[str, Stamp]  # by path inside the folder, with forward slashes
    z: Tensor  # [N, D]


@dataclass
class Report:
    """What an update did."""

    new: int = 0  # looked at now: not known before, or changed since
    kept: int = 0  # known and unchanged
    removed: int = 0  # known and gone
    unreadable: dict[str, str] = field(default_factory=dict)  # path inside the folder: why


def viewer_of(clip: CLIP, model_hash: str) -> Viewer:
    """A CLIP as a viewer: its embeddings are z_img."""
    from unclip_sample.encoder import embed_pictures

    return Viewer(model_hash, clip.embedding_dim, lambda picture: embed_pictures(clip, [picture]))


def list_pictures(folder: Path) -> list[str]:
    """Paths inside a folder, at any depth, of the files that are named as pictures; sorted.

    Hidden files and folders are passed over, and links to folders are not followed.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def default_path(folder: Path, viewer: Viewer) -> Path:
    """Where a folder's index lies unless the user names a place: in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return Path(home, "unclip", "index", f"{key}-{viewer.name}.safetensors")


def check_place(path: Path) -> None:
    """Refuse a place where an index cannot be written, or where another file would be lost.

    Raises:
        OutputError: naming --index.
    """
    check_writable(path.parent, "--index")
    if path.is_dir():
        raise OutputError(f"--index: {path} is a folder; name a file in it")
    if path.exists() and not is_index(path):
        raise OutputError(f"--index: {path} is no index of pictures; name another file")


def is_index(path: Path) -> bool:
    """Whether a file is an index, though it be cut short or empty, by what its head names."""
    with path.open("rb") as file:
        head = file.read(8)
        try:
            named = json.loads(file.read(min(int.from_bytes(head, "little"), MAX_HEAD_BYTES)))
        except ValueError:
            return not head
    return isinstance(named, dict) and named.keys() - {"__metadata__"} == {"z", "json"}


def update(
    path: Path | None,
    folder: Path,
    viewer: Viewer,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> tuple[Index, Report]:
    """The index of a folder as it is now; only what is new or changed is looked at.

    path: of the index, read where it exists and written where anything has changed; None keeps
    nothing. progress: wraps the paths that are about to be read. Files that are no picture, or
    broken, are reported.
    """
    known = read(path, viewer) if path else None
    stamps = {name: stamp_of(folder / name) for name in list_pictures(folder)}
    kept = [name for name, stamp in stamps.items() if known and known.files.get(name) == stamp]
    report = Report(kept=len(kept), removed=len(set(known.files) - set(stamps)) if known else 0)
    index = _select(known, kept) if known else empty(viewer)
    names = [name for name in stamps if name not in index.files]
    rows: list[Any] = []
    for name in progress(names):
        z = look_at(viewer, folder / name, name, report)
        if z is None:
            continue
        index.files[name] = stamps[name]
        rows.append(z)
        if len(rows) >= max(SAVE_EVERY, len(index.z) // 4):  # the more there is, the less often
            index, rows = _with_rows(index, rows), []
            if path:
                write(path, index, viewer)
        report.new += 1
    index = _with_rows(index, rows)
    changed = rows or report.removed or known is None or len(kept) < len(known.files)
    if path and changed:
        write(path, index, viewer)
    return index, report


def look_at(viewer: Viewer, path: Path, name: str, report: Report) -> Tensor | None:
    """The embedding [1, D] of a file; None where it cannot be read, which is reported."""
    from unclip.pictures import PictureError, open_picture

    try:
        with open_picture(path) as picture:
            return viewer.look(picture)
    except PictureError as error:
        report.unreadable[name] = str(error)
    except OSError as error:
        report.unreadable[name] = error.strerror or type(error).__name__
    return None


def stamp_of(path: Path) -> Stamp:
    """Size and modification time; (-1, -1) for a file that has gone or cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def empty(viewer: Viewer) -> Index:
    """The index of a folder of which nothing is known."""
    import torch

    return Index({}, torch.empty(0, viewer.width))


def write(path: Path, index: Index, viewer: Viewer) -> None:
    """Write an index, whole or not at all; a folder that is missing is made."""
    import torch
    from safetensors.torch import save

    facts = {"version": VERSION, "viewer": viewer.name, "files": index.files}
    text = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save({"z": index.z.contiguous(), "json": text}), overwrite=True)


def read(path: Path, viewer: Viewer) -> Index | None:
    """An index that this viewer has made; None where there is none, or it is not what it should be.

    What is wrong with a cache is no matter for the user: it is made again.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        facts = json.loads(tensors["json"].numpy().tobytes())
        z, files = tensors["z"], facts["files"]
        files = {name: (int(size), int(time)) for name, (size, time) in files.items()}
        if (facts["version"], facts["viewer"]) != (VERSION, viewer.name):
            return None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        return None
    fits = z.shape == (len(files), viewer.width) and z.dtype == torch.float32
    return Index(files, z) if fits and bool(torch.isfinite(z).all()) else None


def _select(index: Index, names: list[str]) -> Index:
    """The rows of some of its files."""
    rows = {name: row for row, name in enumerate(index.files)}
    files = {name: index.files[name] for name in names}
    return Index(files, index.z[[rows[name] for name in names]])


def _with_rows(index: Index, rows: list[Tensor]) -> Index:
    """The same with embeddings added at the end."""
    import torch

    return Index(index.files, torch.cat([index.z, *rows]))
