"""What a command line asks for: its options over the record of a picture over the defaults."""

from __future__ import annotations

import argparse
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_PIXELS = 64_000_000
MAX_PROMPTS_BYTES = 64 << 20


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
    picture: Any = None  # a Pillow image to draw variations of
    z_img: bytes | None = None  # float32, of a picture to draw again
    source: dict[str, Any] = field(default_factory=dict)  # the record that --from read


def read_request(args: argparse.Namespace) -> Request:
    """The request of parsed options.

    Raises:
        RequestError: for options that cannot be followed.
    """
    record = read_record(args.source) if args.source else {}
    picture = None if args.image is None else read_picture(args.image)
    prompts = read_prompts(args, record, picture is not None)
    seed = first_given(args.seed, record.get("seed"))
    if seed is None:
        seed = secrets.randbits(32)
    prompts = [prompt for prompt in prompts for _ in range(args.num_images)]
    return Request(
        prompts=prompts,
        seeds=[seed + index for index in range(len(prompts))],
        settings=pipeline_settings(args, record),
        samplers={**(record.get("sampler") or {}), **given_sampler(args)},
        dtype=first_given(args.dtype, record.get("dtype"), "float32"),
        picture=picture,
        z_img=None if picture else recorded_z_img(record),
        source=record,
    )


def first_given(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)


def given_sampler(args: argparse.Namespace) -> dict[str, str]:
    """The decoder's sampler, where one is named."""
    return {} if args.scheduler is None else {"decoder": args.scheduler}


def pipeline_settings(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline that are the same for all pictures; None leaves its default."""
    steps = record.get("steps") if isinstance(record.get("steps"), dict) else {}
    guidance = record.get("guidance") if isinstance(record.get("guidance"), dict) else {}
    upsampler = args.upsampler_steps or (None, None)
    asked = {
        "prior": args.prior_steps,
        "decoder": args.steps,
        "upsampler_256": upsampler[0],
        "upsampler_1024": upsampler[1],
    }
    return {
        "negative_prompt": first_given(args.negative_prompt, record.get("negative_prompt")),
        "guidance_scale": first_given(args.guidance, guidance.get("decoder")),
        "prior_guidance_scale": first_given(args.prior_guidance, guidance.get("prior")),
        "num_prior_candidates": record.get("num_prior_candidates", 2),
        "size": first_given(args.size, record.get("size")),
        **{
            f"{stage}_num_inference_steps": first_given(value, steps.get(stage))
            for stage, value in asked.items()
        },
    }


def read_prompts(args: argparse.Namespace, record: dict[str, Any], has_picture: bool) -> list[str]:
    """The prompts of --prompt or --prompts, else that of the record; "" where a picture leads."""
    if args.prompts is not None:
        return read_prompts_file(args.prompts)
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


def read_prompts_file(path: str) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        if Path(path).stat().st_size > MAX_PROMPTS_BYTES:
            raise RequestError(f"--prompts: {path} is larger than {MAX_PROMPTS_BYTES >> 20} MiB")
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise RequestError(f"--prompts: cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise RequestError(f"--prompts: {path} is no UTF-8 text") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise RequestError(f"--prompts: {path} has no prompt; give one on each line")
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
