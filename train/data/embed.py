"""unclip-data embed: z_img of every picture of a source, once, for prior and decoder to learn from.

Each process writes every world-th shard; a shard that lies there whole is not made again. Whoever
finds all of them works out mean and standard deviation and finishes the folder.
Shapes: n samples of a shard, D embedding.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unclip.models.clip import CLIP
from unclip.pictures import MAX_PIXELS, PictureError

from .drawings import write_whole
from .embeddings import (
    FORMAT_VERSION,
    MANIFEST,
    STATISTICS,
    clip_folder,
    digest,
    fingerprint_clip,
    hash_names,
    read_manifest,
    shard_path,
)
from .framing import read_square
from .sources.records import BadSample, Source

MIN_STD = 1e-4
DECODERS = 4  # threads


def embed_source(
    source: Source,
    clip_source: str | Path,
    output: str | Path,
    shard_size: int = 4096,
    batch_size: int = 64,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    max_pixels: int = MAX_PIXELS,
) -> dict:
    """Write this process's shards; finish the folder when all are there; return a report.

    Pictures are seen as CLIP sees them: the central square, at the size of its picture tower.

    Raises:
        ValueError: when an argument is out of range, or output holds other embeddings.
        FileNotFoundError: when there is no CLIP.
    """
    for key, value, low in (("shard-size", shard_size, 1), ("batch-size", batch_size, 1)):
        if value < low:
            raise ValueError(f"--{key} must be at least {low}, not {value}")
    if not 0 <= rank < world:
        raise ValueError(f"--rank must lie between 0 and {world - 1}, not {rank}")
    clip = CLIP.from_pretrained(clip_folder(clip_source)).to(device).eval()
    folder = Path(output)
    plan = {
        "version": FORMAT_VERSION,
        "num_samples": len(source),
        "shard_size": shard_size,
        "dim": clip.embedding_dim,
        "names": hash_names(source),
        "clip": fingerprint_clip(clip_source),
    }
    start_folder(folder, plan)
    numbers = range(-(-len(source) // shard_size))
    report = {"written": 0, "kept": 0, "samples": 0, "faults": Counter()}
    began = time.perf_counter()
    for number in numbers[rank::world]:
        if read_sums(folder, number, plan) is not None:
            report["kept"] += 1
            continue
        make_shard(source, clip, folder, number, plan, batch_size, max_pixels, report)
        show_progress(report, number, len(numbers), began)
    report["finished"] = finish(folder, plan, len(numbers))
    return {"folder": str(folder)} | report | {"faults": dict(report["faults"])}


def start_folder(folder: Path, plan: dict) -> None:
    """Make the folder, or take up one of the same plan."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output: {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError:
            old = {}
        differing = [key for key in plan if old.get(key) != plan[key]]
        if differing:
            raise ValueError(
                f"--output: {folder} holds embeddings with another {', '.join(differing)}; "
                "name another folder"
            )
    elif any(folder.glob("*.safetensors")) or (folder / MANIFEST).exists():
        raise ValueError(f"--output: {folder} holds other files; name another folder")
    else:
        write_whole(path, json.dumps(plan).encode())


def make_shard(
    source: Source,
    clip: CLIP,
    folder: Path,
    number: int,
    plan: dict,
    batch_size: int,
    max_pixels: int,
    report: dict,
) -> None:
    """Embed the samples of one shard and write them, whole or not at all."""
    first = number * plan["shard_size"]
    indices = range(first, min(first + plan["shard_size"], len(source)))
    z_img = torch.zeros(len(indices), plan["dim"])
    valid = torch.zeros(len(indices), dtype=torch.uint8)
    digests = torch.zeros(len(indices), dtype=torch.int64)
    size = clip.model.config.vision_config.image_size
    with ThreadPoolExecutor(1 if source.sequential else DECODERS) as pool:
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            read = list(pool.map(reader(source, size, max_pixels), part))
            good = [place for place, (image, _) in enumerate(read) if image is not None]
            report["faults"].update(told for image, told in read if image is None)
            if not good:
                continue
            rows = torch.tensor([start + place for place in good])
            z_img[rows] = encode(clip, [read[place][0] for place in good])
            digests[rows] = torch.tensor([read[place][1] for place in good])
            valid[rows] = 1
    kept = z_img[valid.bool()].double()
    tensors = {
        "z_img": z_img.half(),
        "valid": valid,
        "digest": digests,
        "sum": kept.sum(0),
        "sum_of_squares": (kept**2).sum(0),
    }
    facts = {"clip": plan["clip"], "names": hash_names(source, indices)}
    write_whole(shard_path(folder, number), save(tensors, facts))
    report["written"] += 1
    report["samples"] += len(kept)


def reader(source: Source, size: int, max_pixels: int) -> Callable:
    """A function from a sample's number to (pixels, digest), or to (None, reason)."""

    def read(index: int) -> tuple[np.ndarray | None, int | str]:
        try:
            content = source.picture(index)
            return read_square(content, size, max_pixels=max_pixels), digest(content)
        except BadSample as error:
            return None, error.fault.reason
        except PictureError as error:
            return None, error.reason

    return read


@torch.no_grad()
def encode(clip: CLIP, images: list[np.ndarray]) -> Tensor:
    """Pictures [S, S, 3] uint8 to z_img [n, D], on the CPU."""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(clip.image_mean.device)
    return clip.encode_image(x.float() / 127.5 - 1).cpu()


def read_sums(folder: Path, number: int, plan: dict) -> tuple[int, Tensor, Tensor] | None:
    """Count, sum and sum of squares [D] of a whole shard; None where it must be made."""
    try:
        with safe_open(shard_path(folder, number), "pt") as shard:
            if (shard.metadata() or {}).get("clip") != plan["clip"]:
                return None
            count = int(shard.get_tensor("valid").sum())
            return count, shard.get_tensor("sum"), shard.get_tensor("sum_of_squares")
    except (OSError, SafetensorError):
        return None


def finish(folder: Path, plan: dict, num_shards: int) -> bool:
    """Write mean, std and the manifest, when every shard is there."""
    sums = [read_sums(folder, number, plan) for number in range(num_shards)]
    if any(part is None for part in sums):
        return False
    count = sum(part[0] for part in sums)
    if count < 2:
        raise ValueError("data.source: fewer than two pictures could be embedded")
    mean = sum(part[1] for part in sums) / count  # [D]
    squares = sum(part[2] for part in sums)
    std = ((squares - count * mean**2) / (count - 1)).clamp(min=0).sqrt().clamp(min=MIN_STD)
    write_whole(folder / STATISTICS, save({"mean": mean.float(), "std": std.float()}))
    manifest = plan | {"num_embedded": count, "num_shards": num_shards}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2).encode())
    read_manifest(folder)
    return True


def show_progress(report: dict, number: int, num_shards: int, began: float) -> None:
    """A line for each shard, on a terminal."""
    if sys.stderr.isatty():
        rate = report["samples"] / (time.perf_counter() - began)
        print(f"shard {number + 1} of {num_shards}, {rate:.0f} pictures/s", file=sys.stderr)
