"""Precomputed z_img of a source's pictures: shards of safetensors, and the rows read from them.

Every row carries a digest of the picture's file, so that an embedding never meets another picture.
Shapes: n samples of a shard, D embedding.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from .sources.records import NO_EMBEDDING, BadSample, Source, hash_of

if TYPE_CHECKING:  # a manifest is checked without importing torch
    from torch import Tensor

MANIFEST = "embeddings.json"
STATISTICS = "statistics.safetensors"
FORMAT_VERSION = 1
MAX_OPEN_SHARDS = 128


class Embeddings:
    """Embeddings that `unclip-data embed` wrote, beside the pictures that they are of.

    Args:
        folder: as written.
        source: the pictures; their names and number must be those that were embedded.
        clip: folder of the CLIP that they must be made by; not asked when None.

    Raises:
        FileNotFoundError: when the folder holds no finished embeddings.
        ValueError: beginning with "data.embeddings", when they are of other pictures or of
            another CLIP.
    """

    def __init__(self, folder: str | Path, source: Source, clip: str | Path | None = None):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.shard_size, self.dim = manifest["shard_size"], manifest["dim"]
        self.num_samples = manifest["num_samples"]
        if manifest["names"] != hash_names(source):
            raise ValueError(
                f"data.embeddings: {folder} holds {self.num_samples} embeddings of other pictures "
                f"than the {len(source)} of data.source; run unclip-data embed for these"
            )
        if clip is not None and manifest["clip"] != fingerprint_clip(clip):
            raise ValueError(
                f"data.embeddings: {folder} was made by another CLIP than {clip}; "
                "run unclip-data embed with this one"
            )
        with safe_open(self.folder / STATISTICS, "pt") as file:
            self.mean, self.std = file.get_tensor("mean"), file.get_tensor("std")  # [D]
        self._open: dict[int, object] = {}

    def read(self, index: int, content: bytes | None, name: str) -> Tensor:
        """The embedding [D] of a sample, in fp32; content is its picture's file, to be compared.

        Raises:
            BadSample: when the picture could not be embedded.
            ValueError: when the picture is another one.
        """
        number, row = divmod(index, self.shard_size)
        shard = self._shard(number)
        if not int(shard.get_slice("valid")[row : row + 1]):
            raise BadSample(NO_EMBEDDING, name)
        if content is not None:
            if int(shard.get_slice("digest")[row : row + 1]) != digest(content):
                raise ValueError(
                    f"data.embeddings: {name} is another picture than the one that was embedded; "
                    "run unclip-data embed again into a new folder"
                )
        return shard.get_slice("z_img")[row : row + 1][0].float()

    def _shard(self, number: int):
        if number not in self._open:
            if len(self._open) >= MAX_OPEN_SHARDS:
                self._open.clear()
            path = shard_path(self.folder, number)
            try:
                self._open[number] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise OSError(f"data.embeddings: cannot read {path}: {error}") from None
        return self._open[number]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


def read_manifest(folder: Path) -> dict:
    """What stands in embeddings.json.

    Raises:
        FileNotFoundError, ValueError: when there is none, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"data.embeddings: no finished embeddings in {folder}; "
            f"run unclip-data embed SOURCE --clip CLIP --output {folder}"
        )
    try:
        manifest = json.loads(path.read_text())
        if manifest["version"] != FORMAT_VERSION:
            raise ValueError(f"version {manifest['version']}")
        known = {key: manifest[key] for key in ("num_samples", "shard_size", "dim")}
        assert all(isinstance(value, int) and value > 0 for value in known.values())
        return manifest
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"data.embeddings: {path} is not to be read: {error!r}") from None


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return folder / f"z_img-{number:05d}.safetensors"


def digest(content: bytes) -> int:
    """64 bits that tell one picture's file from another."""
    short = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(short, "little", signed=True)


def hash_names(source: Source, indices: range | None = None) -> str:
    """A short name for the samples' names in order; the folder that they lie in may change."""
    indices = range(len(source)) if indices is None else indices
    return hash_of("/".join(source.name(index).split("/")[-2:]) for index in indices)


def clip_folder(source: str | Path) -> Path:
    """The CLIP folder within a run or a model of ours; the source itself where it is none."""
    source = Path(source)
    for folder in (source / "model", source / "clip"):
        if (folder / "config.json").is_file():
            return folder
    return source


def fingerprint_clip(source: str | Path) -> str:
    """A short name for the weights of a CLIP, whose folder is found as by clip_folder.

    Raises:
        FileNotFoundError: when there are none.
    """
    sha, folder = hashlib.sha256(), clip_folder(source)
    paths = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("*.bin"))
    if not paths:
        raise FileNotFoundError(f"clip: no weights in {folder}")
    for path in paths:
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]
