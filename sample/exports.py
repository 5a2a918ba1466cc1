"""Pictures in the folders that other benchmarks read, without needing these benchmarks here.

GenEval (Ghosh et al. 2023, arXiv 2310.11513) asks for a folder a prompt:

    00000/metadata.jsonl      the prompt's line of evaluation_metadata.jsonl
    00000/samples/0000.png    its pictures

T2I-CompBench (Huang et al. 2023, arXiv 2307.06350) reads the prompt from the file's name, and a
number that runs through all pictures of a set:

    samples/a green bench and a blue bowl_000000.png

Both are written a prompt at a time, whole, and passed over where they are there already, so that a
stopped export goes on when it is called again, with the same settings.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_sample.request import RequestError
from unclip_sample.writing import write_whole

if TYPE_CHECKING:
    from PIL import Image

Draw = Callable[[int, str], "Sequence[Image.Image]"]  # number and text of a prompt -> its pictures
MAX_METADATA_BYTES = 64 << 20
MAX_NAME_BYTES = 255  # of a file, on most file systems
NOTE = ".unclip-export.json"  # of the settings; the benchmarks pass it over


def read_geneval_prompts(path: Path) -> list[dict[str, Any]]:
    """The rows of GenEval's evaluation_metadata.jsonl, each with at least a "prompt".

    Raises:
        RequestError: when it cannot be read, or a line is not such a row.
    """
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise RequestError(f"{path} is larger than {MAX_METADATA_BYTES >> 20} MiB")
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise RequestError(f"cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path} is no UTF-8 text") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise RequestError(f"{path}, line {number}: no JSON object with a prompt")
        rows.append(row)
    if not rows:
        raise RequestError(f"{path} has no prompts")
    return rows


def write_geneval(folder: Path, rows: Sequence[Mapping[str, Any]], draw: Draw) -> int:
    """Write what GenEval's evaluate_images.py reads; the number of prompts that were drawn now.

    rows: of evaluation_metadata.jsonl, in its order: a row's place is the name of its folder.

    Raises:
        RequestError: when a prompt's folder holds another prompt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_drawn = 0
    for number, row in enumerate(rows):
        place = folder / f"{number:05d}"
        if place.exists():
            check_same_prompt(place, row)
            continue
        staged = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            (staged / "samples").mkdir(parents=True)
            (staged / "metadata.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
            for index, picture in enumerate(draw(number, row["prompt"])):
                picture.save(staged / "samples" / f"{index:04d}.png")
            os.rename(staged, place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        num_drawn += 1
    return num_drawn


def check_same_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note in a new folder what its pictures are drawn with; go on in one that agrees.

    Raises:
        RequestError: naming the first setting that another export here had otherwise.
    """
    note = folder / NOTE
    folder.mkdir(parents=True, exist_ok=True)
    if not note.exists():
        write_whole(note, f"{json.dumps(settings)}\n".encode(), overwrite=True)
        return
    try:
        before = json.loads(note.read_text("utf-8"))
        changed = [name for name in settings if before.get(name) != settings[name]]
    except (OSError, ValueError, AttributeError):
        raise RequestError(f"{note} is damaged; name another folder") from None
    if changed:
        name = changed[0]
        raise RequestError(
            f"--{name.replace('_', '-')}: {folder} holds pictures of {before.get(name)}, not of "
            f"{settings[name]}; name another folder"
        )


def check_same_prompt(place: Path, row: Mapping[str, Any]) -> None:
    """Refuse to go on in the folder of another set of prompts."""
    try:
        before = json.loads((place / "metadata.jsonl").read_text("utf-8"))
    except (OSError, ValueError):
        before = None
    if before != dict(row):
        raise RequestError(f"{place} holds another prompt; name another folder")


def write_compbench(folder: Path, prompts: Sequence[str], num_images: int, draw: Draw) -> int:
    """Write what T2I-CompBench reads; the number of prompts that were drawn now.

    folder: its samples/ is written. num_images: of each prompt, as draw gives them.

    Raises:
        RequestError: when a prompt cannot stand in a file's name, before anything is drawn, or the
            folder holds pictures of other prompts.
    """
    names = [
        [compbench_name(prompt, number * num_images + index) for index in range(num_images)]
        for number, prompt in enumerate(prompts)
    ]
    samples = folder / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    strangers = {path.name for path in samples.glob("*.png")} - {
        name for row in names for name in row
    }
    if strangers:
        raise RequestError(f"{samples} holds {min(strangers)!r}, of no prompt; name another folder")
    num_drawn = 0
    for number, prompt in enumerate(prompts):
        paths = [samples / name for name in names[number]]
        if all(path.exists() for path in paths):
            continue
        for path, picture in zip(paths, draw(number, prompt), strict=True):
            save_whole(picture, path)
        num_drawn += 1
    return num_drawn


def compbench_name(prompt: str, number: int) -> str:
    """The name of a picture, from which T2I-CompBench reads prompt and number.

    Raises:
        RequestError: for a prompt that does not survive this.
    """
    name = f"{prompt}_{number:06d}.png"
    faults = {
        character for character in prompt if character in "_/\\" or not character.isprintable()
    }
    if faults or not prompt.strip() or prompt.startswith("."):
        raise RequestError(
            f"prompt {prompt!r} cannot name a file of T2I-CompBench; leave out _ and /"
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise RequestError(f"prompt {prompt[:40]!r}... is too long to name a file")
    return name


def save_whole(picture: Image.Image, path: Path) -> None:
    """Write a PNG that is there whole or not at all."""
    from unclip_sample.png import encode_png

    write_whole(path, encode_png(picture, None), overwrite=True)
