"""Editing for unclip-sample: pictures read, edited, written and recorded.

The record of such a picture names the picture and the mask that it was made of and holds their
hashes, but not their pixels: --from takes its settings, and wants the files named again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from unclip_sample.edit_words import edit_of
from unclip_sample.latent_words import word
from unclip_sample.latents import report
from unclip_sample.outputs import plan_outputs
from unclip_sample.request import (
    Request,
    RequestError,
    first_given,
    read_picture,
    read_record,
    read_request,
)

# Arguments of the pipeline's methods by the names of the options.
ARGUMENTS = {
    "inpaint": {"resamples": "num_resamples", "jump": "jump_length"},
    "outpaint": {
        "canvas": "canvas",
        "offset": "offset",
        "resamples": "num_resamples",
        "jump": "jump_length",
    },
    "image_to_image": {"strength": "strength"},
    "upscale": {"tile": "tile_size", "tile_overlap": "tile_overlap"},
}
OF_UPSCALE = (
    *("size", "upsampler_256_num_inference_steps"),
    "upsampler_1024_num_inference_steps",
)


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked, load the model, edit, write, report."""
    from unclip_sample.cli import load, model_facts, model_folder

    start = time.perf_counter()
    record = read_record(args.source) if args.source else {}
    edit = edit_of(args, record)
    files = {"picture": getattr(args, edit), "mask": args.mask}
    pictures = {
        name: read_picture(path, word(edit if name == "picture" else name))
        for name, path in files.items()
        if path is not None
    }
    request = read_request(argparse.Namespace(**{**vars(args), "image": files["picture"]}))
    paths = plan_outputs(args.output, len(request.prompts), args.overwrite)
    own = own_arguments(args, edit, record)
    folder = model_folder(args.model)
    pipe = load(folder, request, args)
    facts = {} if args.no_metadata else model_facts(folder, request, args)
    made_of = {} if args.no_metadata else facts_of_files(files, record, args)
    written = []
    for first in range(0, len(paths), args.batch_size):
        batch = slice(first, first + args.batch_size)
        output = apply(pipe, edit, pictures, request, batch, own)
        noted = {"kind": edit, **made_of, **given_only(own), **without(output, "kind")}
        written += write(output, request, batch, paths[batch], {**facts, "edit": noted}, args)
    if args.format == "json":
        seconds = round(time.perf_counter() - start, 2)
        print(json.dumps({"images": written, "model": folder.name, "seconds": seconds}, indent=2))
    return 0


def own_arguments(args: argparse.Namespace, edit: str, record: dict[str, Any]) -> dict[str, Any]:
    """The edit's own arguments: those given, or those of a record of the same edit."""
    before = record.get("edit")
    before = before if isinstance(before, dict) and before.get("kind") == edit else {}
    names = ARGUMENTS[edit]
    own = {
        name: first_given(getattr(args, option), before.get(name)) for option, name in names.items()
    }
    return given_only(own)


def given_only(values: dict[str, Any]) -> dict[str, Any]:
    """What is not None."""
    return {name: value for name, value in values.items() if value is not None}


def without(output: Any, name: str) -> dict[str, Any]:
    """What the pipeline notes of an edit, but for one entry."""
    return {key: value for key, value in output.settings["edit"].items() if key != name}


def apply(
    pipe: Any,
    edit: str,
    pictures: dict[str, Any],
    request: Request,
    batch: slice,
    own: dict[str, Any],
) -> Any:
    """What the pipeline makes of a picture: some of the images asked for."""
    prompts, seeds = request.prompts[batch], request.seeds[batch]
    settings = {"seeds": seeds, **own}
    if edit == "upscale":
        subject = [[pictures["picture"]] * len(seeds)]
        settings |= {name: request.settings[name] for name in OF_UPSCALE}
    else:
        subject = [pictures["picture"]]
        led = any(prompt.strip() for prompt in prompts)
        settings |= {**request.settings, "prompt": prompts if led else None}
        settings |= {} if led else {"num_images_per_prompt": len(seeds)}
        settings |= {"mask": pictures.get("mask")} if edit == "inpaint" else {}
    try:
        return getattr(pipe, edit)(*subject, **settings)
    except ValueError as error:
        raise RequestError(str(error)) from None


def facts_of_files(
    files: dict[str, str | None], record: dict[str, Any], args: argparse.Namespace
) -> dict[str, str]:
    """Names and hashes of what a picture is made of; warns where --from names another."""
    before = record.get("edit") if isinstance(record.get("edit"), dict) else {}
    facts = {}
    for name, path in files.items():
        if path is None:
            continue
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        if before.get(f"{name}_sha256") not in (None, digest):
            print(
                f"unclip-sample: {args.source} was made with another {name} "
                f"({before.get(name)}): the result will differ",
                file=sys.stderr,
            )
        facts |= {name: Path(path).name, f"{name}_sha256": digest}
    return facts


def write(
    output: Any,
    request: Request,
    batch: slice,
    paths: list[Path],
    facts: dict[str, Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Write the pictures, each with its record; a report of each."""
    from unclip_sample.png import save_png

    written = []
    rows = zip(output.images, paths, request.prompts[batch], request.seeds[batch], strict=True)
    for image, path, prompt, seed in rows:
        negative = request.settings["negative_prompt"]
        own = {"prompt": prompt, "negative_prompt": negative, "seed": seed}
        record = None if args.no_metadata else {**own, **output.settings, **facts}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(image, path, record, overwrite=args.overwrite)
        written.append(report(path, seed, output, own, args))
    return written
