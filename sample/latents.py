"""Operations on latents for unclip-sample: what the words ask for, drawn, written and recorded.

The record of such a picture holds its latent, so that --from draws it again without the pictures
that it was made of.
"""

from __future__ import annotations

import argparse
import json
import secrets
import time
from pathlib import Path
from typing import Any

from unclip_sample.frames import is_animation, plan_animation, save_animation, sheet
from unclip_sample.latent_words import OF_A_SUBJECT, OF_SUBJECTS, is_picture, operation_of, word
from unclip_sample.outputs import plan_outputs
from unclip_sample.request import Request, RequestError, first_given, read_picture, read_record
from unclip_sample.stage_words import STAGES, by_stage, given_samplers

BYTES_OF_A_LATENT = 110_000  # x_T of 64 pixels and z_img, as hexadecimal
MAX_RECORD_BYTES = 8_000_000
OF_THE_DECODER = ("guidance", "image_guidance_scale", "guidance_interval", "guidance_rescale")
READ = (".png", ".jpg", ".jpeg", ".webp")
NUM_FRAMES = {"interpolate": 7, "text_diff": 5}
MAX_THETA = 0.4


# The work


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked, load the model, draw, write, report."""
    from unclip_sample.cli import load, model_facts, model_folder

    start = time.perf_counter()
    operation = operation_of(args)
    record = read_latents(args.source) if operation == "again" else {}
    subjects = record if operation == "again" else read_subjects(args, operation)
    count = num_pictures(args, operation, record)
    as_sheet = args.grid or bool(record.get("sheet"))
    if as_sheet and not args.no_metadata and count * BYTES_OF_A_LATENT > MAX_RECORD_BYTES:
        raise RequestError(f"--grid: cannot record {count} latents; add --no-metadata")
    paths = plan(args, 1 if as_sheet else count)
    request = request_of(args, operation, record, count)
    folder = model_folder(args.model)
    pipe = load(folder, request, args)
    facts = {} if args.no_metadata else model_facts(folder, request, args)
    try:
        output = OPERATE[operation](pipe, args, subjects, settings_of(args, request, record))
    except ValueError as error:
        raise RequestError(str(error)) from None
    made = record.get("made_by") if operation == "again" else made_by(args, operation)
    facts = {"prompt": request.prompts[0], **words_of(args, record), "made_by": made, **facts}
    written = write(pipe, output, paths, facts, as_sheet, args)
    if args.format == "json":
        seconds = round(time.perf_counter() - start, 2)
        print(json.dumps({"images": written, "model": folder.name, "seconds": seconds}, indent=2))
    return 0


def num_pictures(args: argparse.Namespace, operation: str, record: dict[str, Any]) -> int:
    """How many pictures an operation draws."""
    num_frames = args.frames or NUM_FRAMES.get(operation, 0)
    if operation == "again":
        return len(record["latents"]["z_img"])
    if operation == "interpolate":
        return (len(args.interpolate) - 1) * (num_frames - 1) + 1
    if operation == "text_diff":
        return num_frames
    return len(args.project) if operation == "project" else args.num_images


def plan(args: argparse.Namespace, count: int) -> list[Path]:
    """The file of each picture, or that of the animation."""
    if is_animation(args.output):
        return [plan_animation(args.output, args.overwrite)]
    return plan_outputs(args.output, count, args.overwrite)


def request_of(
    args: argparse.Namespace, operation: str, record: dict[str, Any], count: int
) -> Request:
    """What loading a model and recording its pictures wants to know."""
    seed = secrets.randbits(32) if args.seed is None else args.seed
    samplers = {**(record.get("sampler") or {}), **given_samplers(args)}
    samplers.pop("decoder", None)  # always DDIM, which no scheduler of the model need be
    return Request(
        prompts=[caption_of(args, operation, record)] * count,
        seeds=[seed + index for index in range(count)],
        settings={},
        samplers=samplers,
        dtype=first_given(args.dtype, record.get("dtype"), "float32"),
        quantize=first_given(args.quantize, record.get("quantize")),
        source=record,
    )


def read_subjects(args: argparse.Namespace, operation: str) -> list[Any]:
    """Captions as they are, and what names a picture file as a Pillow image."""
    if operation in OF_SUBJECTS:
        names, option = getattr(args, operation), word(operation)
        if not all(name.strip() for name in names):
            raise RequestError(f"{option}: one of the texts is empty")
        return [read_picture(name, option) if is_picture(name) else name for name in names]
    if args.image is not None:
        return [read_picture(args.image)]
    return [] if args.prompt is None else args.prompt


def caption_of(args: argparse.Namespace, operation: str, record: dict[str, Any]) -> str:
    """The words that the decoder reads beside the latent."""
    if operation in OF_A_SUBJECT and args.image is None:
        return ""  # the prompt is the subject
    return first_given(args.prompt and args.prompt[0], record.get("prompt"), "")


def settings_of(
    args: argparse.Namespace, request: Request, record: dict[str, Any]
) -> dict[str, Any]:
    """Settings of the pipeline's operations, those that are given or recorded."""
    steps = by_stage(record, "steps")
    own = {name: by_stage(record, name).get("decoder") for name in OF_THE_DECODER}
    asked = (args.prior_steps, args.steps, *(args.upsampler_steps or (None, None)))
    words = words_of(args, record)
    given = {
        "prompt": request.prompts[0],
        "negative_prompt": words["negative_prompt"],
        "guidance_scale": first_given(args.guidance, own["guidance"]),
        "image_guidance_scale": first_given(args.image_guidance, own["image_guidance_scale"]),
        "guidance_interval": first_given(args.guidance_interval, own["guidance_interval"]),
        "guidance_rescale": first_given(args.guidance_rescale, own["guidance_rescale"]),
        "num_prior_candidates": args.candidates,
        "prior_guidance_scale": args.prior_guidance,
        **{
            f"{stage}_num_inference_steps": first_given(value, steps.get(stage))
            for stage, value in zip(STAGES, asked, strict=True)
        },
        "num_refinements": args.refinements,
        "clip_guidance_scale": first_given(args.clip_guidance, record.get("clip_guidance")),
        "clip_prompt": words["clip_prompt"],
        "size": first_given(args.size, record.get("size")),
        "seeds": request.seeds[0],
        "max_batch_size": args.batch_size,
    }
    return {name: value for name, value in given.items() if value is not None}


def words_of(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, str | None]:
    """The texts that lead, given or recorded."""
    return {
        "negative_prompt": first_given(args.negative_prompt, record.get("negative_prompt")),
        "clip_prompt": first_given(args.clip_prompt, record.get("clip_prompt")),
    }


def made_by(args: argparse.Namespace, operation: str) -> dict[str, Any]:
    """What people may want to know of how a picture was made; of a file its name alone."""
    names = getattr(args, operation) if operation in OF_SUBJECTS else [args.image or args.prompt[0]]
    shown = [Path(name).name if is_picture(name) else name for name in names]
    options = ("text_diff", "base", "max_theta", "weights", "project", "condition", "noise")
    given = {"base_text" if name == "base" else name: getattr(args, name) for name in options}
    given = {name: value for name, value in given.items() if value is not None}
    return {"operation": operation, "subject_texts": shown, **given}


def vary(pipe: Any, args: argparse.Namespace, subjects: list, settings: dict) -> Any:
    """Variations of a picture, from its own noise or from fresh noise."""
    return pipe.vary(subjects[0], args.num_images, args.eta, **settings)


def interpolate(pipe: Any, args: argparse.Namespace, subjects: list, settings: dict) -> Any:
    """The way from subject to subject."""
    num_frames = args.frames or NUM_FRAMES["interpolate"]
    return pipe.interpolate(subjects, num_frames, args.noise or "slerp", **settings)


def text_diff(pipe: Any, args: argparse.Namespace, subjects: list, settings: dict) -> Any:
    """A subject led to a text, away from --base, its own caption or "a photo"."""
    own = "a photo" if args.image else args.prompt[0]
    base = own if args.base is None else args.base.strip() or None
    theta = first_given(args.max_theta, MAX_THETA)
    num_frames = args.frames or NUM_FRAMES["text_diff"]
    return pipe.text_diff(subjects[0], args.text_diff, base, num_frames, theta, **settings)


def mix(pipe: Any, args: argparse.Namespace, subjects: list, settings: dict) -> Any:
    """Subjects in one."""
    return pipe.mix(subjects, args.weights, args.num_images, **settings)


def project(pipe: Any, args: argparse.Namespace, subjects: list, settings: dict) -> Any:
    """What some principal components keep of a subject."""
    components = read_components(pipe, Path(args.fit_on))
    return pipe.project(subjects[0], components, args.project, **settings)


def ablate(pipe: Any, args: argparse.Namespace, subjects: list, settings: dict) -> Any:
    """A caption by a part of the model's ways."""
    caption = settings.pop("prompt")
    return pipe.ablate(caption, args.condition or "prior", args.num_images, **settings)


def read_components(pipe: Any, path: Path) -> Any:
    """Principal components that a file holds, or those of the pictures in a folder."""
    import torch

    from unclip import PrincipalComponents
    from unclip.pipeline.arguments import check_pictures

    if path.suffix == ".safetensors":
        try:
            return PrincipalComponents.load(path)
        except (OSError, ValueError) as error:
            raise RequestError(f"--fit-on: {str(error).removeprefix('path: ')}") from None
    if not path.is_dir():
        raise RequestError(f"--fit-on: {path} is no folder; give one of pictures")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READ)
    if len(files) < 2:
        raise RequestError(f"--fit-on: {path} holds {len(files)} pictures; give more")
    found = [
        pipe.encode_images(check_pictures(read_picture(str(file), "--fit-on"))) for file in files
    ]
    return PrincipalComponents.fit(torch.cat(found).cpu())


# Pictures that were made so, again


def read_latents(path: str) -> dict[str, Any]:
    """The record of a picture that was made from latents.

    Raises:
        RequestError: when there is none, or its latents are damaged.
    """
    record = read_record(path)
    latents = record.get("latents")
    if latents is None:
        raise RequestError(f"--from: {path} holds no latents; name it with --image")
    known = latents if isinstance(latents, dict) else {}
    rows = [known.get(name) for name in ("z_img", "x_T", "seeds")]
    if not all(isinstance(row, list) and len(row) == len(rows[0]) > 0 for row in rows):
        raise RequestError("--from: the record's latents are damaged")
    if not all(isinstance(seed, int) for seed in rows[2]):
        raise RequestError("--from: the record's latents have seeds that are no numbers")
    return record


def again(pipe: Any, args: argparse.Namespace, record: dict[str, Any], settings: dict) -> Any:
    """The pictures of a record, with another seed, eta or size where they are given."""
    import torch

    latents, size = record["latents"], pipe.decoder.config.size
    seeds = latents["seeds"]
    if args.seed is not None:
        seeds = [seed - seeds[0] + args.seed for seed in seeds]
    z_img = torch.stack([floats(text) for text in latents["z_img"]])
    noise = pipe.initial_noise("decoder", seeds)
    for row, text in enumerate(latents["x_T"]):
        if text is not None:
            noise[row] = floats(text, (3, size, size))
    eta = first_given(args.eta, record.get("eta"), 0.0)
    settings |= {"eta": eta, "clip_x_0": bool(record.get("clip_x_0")), "seeds": seeds}
    return pipe.decode(z_img, noise, **settings)


def floats(text: Any, shape: tuple[int, ...] = (-1,)) -> Any:
    """A tensor from float32 values in hexadecimal."""
    import torch

    try:
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.float32).reshape(shape)
    except (TypeError, ValueError, RuntimeError):
        raise RequestError("--from: the record's latents are damaged") from None


# Writing


def write(
    pipe: Any,
    output: Any,
    paths: list[Path],
    facts: dict[str, Any],
    as_sheet: bool,
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Write the pictures, each with its record, or all as one file; a report of each file."""
    from unclip_sample.png import save_png

    paths[0].parent.mkdir(parents=True, exist_ok=True)
    if is_animation(args.output):
        save_animation(output.images, paths[0], args.overwrite)
        return [report(paths[0], output.seeds[0], output, facts, args)]
    files = [(slice(row, row + 1), picture) for row, picture in enumerate(output.images)]
    if as_sheet:
        files = [(slice(None), sheet(output.images))]
        facts = {**facts, "sheet": True}
    written = []
    for (rows, picture), path in zip(files, paths, strict=True):
        latents = recorded(pipe, output, rows)
        record = {**facts, **output.settings, "seed": latents["seeds"][0], "latents": latents}
        save_png(picture, path, None if args.no_metadata else record, overwrite=args.overwrite)
        written.append(report(path, latents["seeds"][0], output, facts, args))
    return written


def report(
    path: Path, seed: int, output: Any, facts: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """What is said of a file that was written."""
    if args.format == "text" and not args.quiet:
        print(f"wrote {path} (seed {seed})", flush=True)
    size = output.settings["size"]
    return {"path": str(path), "size": size, "prompt": facts["prompt"], "seed": seed}


def recorded(pipe: Any, output: Any, rows: slice) -> dict[str, Any]:
    """Latents as float32 in hexadecimal; None for noise that is the seed's own."""
    seeds, x_T, z_img = (member[rows] for member in (output.seeds, output.x_T, output.image_embeds))
    own = [
        bool((a == b).all()) for a, b in zip(x_T, pipe.initial_noise("decoder", seeds), strict=True)
    ]
    return {
        "seeds": seeds,
        "z_img": [hexadecimal(values) for values in z_img],
        "x_T": [
            None if is_own else hexadecimal(values) for values, is_own in zip(x_T, own, strict=True)
        ],
    }


def hexadecimal(values: Any) -> str:
    """The float32 values of a tensor as text."""
    return values.contiguous().numpy().tobytes().hex()


OPERATE = {
    "eta": vary,
    "interpolate": interpolate,
    "text_diff": text_diff,
    "mix": mix,
    "project": project,
    "condition": ablate,
    "again": again,
}
