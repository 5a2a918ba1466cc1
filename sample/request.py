"""What a command line asks for: its options over the record of a picture over the defaults."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unclip_sample.prompts import PromptsError, is_shared, read_prompts_file
from unclip_sample.stage_words import given_samplers, pipeline_settings

MAX_PIXELS = 64_000_000


class RequestError(Exception):
    """The options cannot be followed; the message names the one at fault."""


@dataclass
class Request:
    """The pictures to draw, a prompt and a seed each, and the settings of all."""

    prompts: list[str]
    seeds: list[int]
    settings: dict[str, Any]  # arguments of UnCLIPPipeline
    samplers: dict[str, str]  # by stage, where it should not be the model's own
    dtype: str = "float32"
    quantize: str | None = None
    picture: Any = None  # a Pillow image to draw variations of
    z_img: bytes | None = None  # float32, of a picture to draw again
    source: dict[str, Any] = field(default_factory=dict)  # the record that --from read
    own: list[dict[str, Any]] = field(
        default_factory=list
    )  # settings by picture, where they differ
    best_of: list[int] = field(default_factory=list)  # pictures to draw of each, or 0, by picture
    # By picture, the number of what must be drawn at once: all that one best-of keeps, or it alone.
    units: list[int] = field(default_factory=list)

    def settings_at(self, index: int) -> dict[str, Any]:
        """The arguments of the pipeline for one picture."""
        return self.own[index] if self.own else self.settings

    def batches(self, mine: Sequence[int], batch_size: int) -> list[list[int]]:
        """Pictures that are drawn by one call: so many at once, of the same settings."""
        found: list[list[int]] = []
        for index in mine:
            if found and self._fits(found[-1], index, batch_size):
                found[-1].append(index)
            else:
                found.append([index])
        return found

    def _fits(self, batch: list[int], index: int, batch_size: int) -> bool:
        """Whether a picture can be drawn by the call that draws some others."""
        if self.best_of[index] or self.best_of[batch[0]]:
            return self.units[batch[0]] == self.units[index]
        same = self.settings_at(batch[0]) == self.settings_at(index)
        return same and len(batch) < batch_size


def read_request(
    args: argparse.Namespace, lines: list[argparse.Namespace] | None = None
) -> Request:
    """The request of parsed options.

    lines: options of single captions, in place of --prompt and --prompts.

    Raises:
        RequestError: for options that cannot be followed.
    """
    record = read_record(args.source) if args.source else {}
    if record.get("plot"):
        raise RequestError(f"--from: {args.source} is a plot; name one of its pictures' options")
    picture = None if args.image is None else read_picture(args.image)
    lines = lines or read_lines(args, record, picture is not None)
    seed = first_given(args.seed, record.get("seed"))
    if seed is None:
        if is_shared():
            raise RequestError("--seed: give it where several processes share the pictures")
        seed = secrets.randbits(32)
    request = Request(
        prompts=[],
        seeds=[],
        settings=pipeline_settings(args, record),
        samplers={**(record.get("sampler") or {}), **given_samplers(args)},
        dtype=first_given(args.dtype, record.get("dtype"), "float32"),
        quantize=first_given(args.quantize, record.get("quantize")),
        picture=picture,
        z_img=None if picture else recorded_z_img(record),
        source=record,
    )
    num_drawn = 0
    for line in lines:
        first = seed + num_drawn if line.seed is None else line.seed
        num_drawn += add_pictures(request, line, first, args, record)
    if all(own == request.settings for own in request.own):
        request.own = []
    return request


def add_pictures(
    request: Request,
    line: argparse.Namespace,
    first: int,
    args: argparse.Namespace,
    record: dict[str, Any],
) -> int:
    """Add the pictures of one caption, from seed first; the number that will be drawn."""
    if line.best_of and line.best_of < line.num_images:
        raise RequestError(f"--best-of: give {line.num_images} (--num-images) or more")
    settings = pipeline_settings(line, record)
    for stage, name in given_samplers(line).items():
        if given_samplers(args).get(stage) != name:
            settings["stages"].setdefault(stage, {})["scheduler"] = name
    unit = request.units[-1] + 1 if request.units else 0
    for index in range(line.num_images):
        request.units.append(unit if line.best_of else unit + index)
        request.prompts.append(line.prompt)
        # Of those that best-of keeps, the first of all that are drawn stands for the others.
        request.seeds.append(first if line.best_of else first + index)
        request.own.append(settings)
        request.best_of.append(line.best_of or 0)
    return line.best_of or line.num_images


def first_given(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def read_lines(
    args: argparse.Namespace, record: dict[str, Any], has_picture: bool
) -> list[argparse.Namespace]:
    """The options of each caption: of --prompt, of a line of --prompts, or of the record."""
    if args.prompts is not None:
        from unclip_sample.cli import parser

        try:
            return read_prompts_file(args.prompts, args, parser())
        except PromptsError as error:
            raise RequestError(f"--prompts: {error}") from None
    prompts = read_prompts(args, record, has_picture)
    whole = {**vars(args), "seed": None}
    return [argparse.Namespace(**{**whole, "prompt": prompt}) for prompt in prompts]


def read_prompts(args: argparse.Namespace, record: dict[str, Any], has_picture: bool) -> list[str]:
    """The captions of --prompt, else that of the record; "" where a picture leads."""
    prompts = args.prompt
    if prompts is None and record.get("prompt") is not None:
        return [record["prompt"]]
    if prompts is None and has_picture:
        return [""]
    if prompts is None:
        raise RequestError("--prompt is missing: say what to draw")
    if not all(prompt.strip() for prompt in prompts):
        raise RequestError("--prompt is empty: say what to draw")
    return prompts


def read_record(path: str) -> dict[str, Any]:
    """How a picture was made."""
    from unclip_sample.png import read_png

    try:
        record = read_png(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"--from: {str(error).removeprefix('path: ')}") from None
    samplers = record.get("sampler")
    if samplers is not None and not isinstance(samplers, dict):
        raise RequestError(f"--from: {path} does not name the sampler of each stage")
    if record.get("dtype") not in (None, "float32", "bfloat16", "float16"):
        raise RequestError(f"--from: {path} names an unknown dtype")
    if record.get("quantize") not in (None, "int8", "float8"):
        raise RequestError(f"--from: {path} names an unknown quantization")
    return record


def recorded_z_img(record: dict[str, Any]) -> bytes | None:
    """The embedding that a variation was drawn from, which its record holds as float32 in hex."""
    if record.get("z_img") is None:
        return None
    try:
        z_img = bytes.fromhex(record["z_img"])
    except (TypeError, ValueError):
        z_img = b""
    if not z_img or len(z_img) % 4:
        raise RequestError("--from: the record's z_img is damaged")
    return z_img


def read_picture(path: str, option: str = "--image") -> Any:
    """A picture file as a Pillow image; option is what errors name."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise RequestError(f"{option}: {path} has more than {MAX_PIXELS:,} pixels")
            picture.load()
            return picture
    except FileNotFoundError:
        raise RequestError(f"{option}: {path} does not exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "no PNG, JPEG or WebP, or damaged"
        raise RequestError(f"{option}: cannot read {path} ({reason})") from None
