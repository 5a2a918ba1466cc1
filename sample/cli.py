"""unclip-sample: draw pictures of captions, or variations of a picture, as PNG files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from unclip_sample import edit_words, edits, latent_words, latents, plots, stage_words
from unclip_sample.outputs import plan_outputs
from unclip_sample.prompts import is_shared, own_share
from unclip_sample.records import record_of
from unclip_sample.request import Request, RequestError, read_request
from unclip_sample.running import exit_status, quiet_libraries
from unclip_sample.words import Parser, count, seed, side

EXAMPLES = """examples:
  unclip-sample --prompt "a red apple, noto style"
  unclip-sample --prompt "a rocket" --guidance 3 --seed 7 --num-images 4 --output rocket.png
  unclip-sample --prompts prompts.jsonl --size 256 --output pictures/
  unclip-sample --prompt "a rocket" --best-of 16 --output rocket.png
  unclip-sample --prompt "a rocket" --x guidance=1,2,4 --y seed=1,2,3 --output plot.png
  unclip-sample --image cat.png --num-images 4 --output cats/
  unclip-sample --inpaint cat.png --mask hat.png --prompt "a cat with a hat"
  unclip-sample --upscale cat.png --size 2048
  unclip-sample --interpolate cat.png "a rocket" --output way.gif
  unclip-sample --image apple.png --text-diff "a green apple" --base "a red apple" --grid
  unclip-sample --from rocket-0002.png --output again.png

Image i is drawn with seed + i, and comes out the same alone or beside others. STEPS are a number,
fast27, or ddimN (ddim15: the paper's list for the last upsampler).
"""
OFFLOADS = ("model", "sequential", "group")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "float8")
BATCH_SIZE = 1  # sums in a larger batch may be rounded otherwise, by a level here and there


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = Parser(
        "unclip-sample",
        description="Draw pictures of captions with unCLIP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_subject(parser.add_argument_group("what to draw"))
    stage_words.add_words(parser.add_argument_group("how to draw it"))
    edit_words.add_words(parser.add_argument_group("with a picture"))
    latent_words.add_words(parser.add_argument_group("with the latent (z_img, x_T)"))
    plots.add_words(parser.add_argument_group("plots"))
    add_machine(parser.add_argument_group("where and with what"))
    return parser


def add_subject(group: argparse._ArgumentGroup) -> None:
    """Options that say what is drawn."""
    which = group.add_mutually_exclusive_group()
    which.add_argument("--prompt", metavar="TEXT", action="append", help="caption; may be repeated")
    which.add_argument("--prompts", metavar="FILE", help="captions, a text or JSON on each line")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    group.add_argument("--image", metavar="FILE", help="picture to draw variations of")
    group.add_argument(
        "--from", dest="source", metavar="PNG", help="draw a picture again, other options changed"
    )
    group.add_argument("--num-images", type=count, default=1, metavar="N", help="for each caption")
    group.add_argument(
        "--best-of",
        type=count,
        metavar="N",
        help="draw N, keep the --num-images that CLIP ranks first",
    )
    group.add_argument("--seed", type=seed, metavar="N", help="of the first; drawn unless given")
    group.add_argument("--size", type=side, metavar="PIXELS", help="a side; the model's largest")


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Options of files and of the machine."""
    group.add_argument("--model", metavar="FOLDER", help="the embedded model unless given")
    group.add_argument(
        "--lora", metavar="FOLDER[:SCALE]", action="append", help="trained change; may be repeated"
    )
    group.add_argument("--output", metavar="FILE.png|FOLDER", help="the first free unclip.png")
    group.add_argument("--overwrite", action="store_true", help="replace files that exist")
    group.add_argument("--no-metadata", action="store_true", help="write pixels alone")
    group.add_argument("--format", choices=("text", "json"), default="text", help="of the report")
    group.add_argument("--batch-size", type=count, default=BATCH_SIZE, metavar="N", help="at once")
    group.add_argument("--threads", type=count, metavar="N", help="of the CPU")
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        help="of the decoder and the upsamplers; auto is bfloat16 where that is faster",
    )
    group.add_argument(
        "--quantize", choices=QUANTIZATIONS, help="weights of all stages; needs torchao"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ...")
    group.add_argument("--offload", choices=OFFLOADS, help="weights to the CPU while they rest")
    group.add_argument("--attention-slicing", action="store_true", help="less memory, slower")
    group.add_argument("--compile", action="store_true", help="torch.compile, for many pictures")
    group.add_argument("--quiet", action="store_true", help="no progress, no text report")
    group.add_argument("--debug", action="store_true", help="show the trace of an error")


# The work


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when done, 2 for a mistake in the words, 1 for a run that failed."""
    args = parser().parse_args(arguments)
    return exit_status("unclip-sample", lambda: run(args), args.debug)


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked, load the model, draw, write, report."""
    if edit_words.wanted(args):
        return edits.run(args)
    if latent_words.wanted(args):
        return latents.run(args)
    start = time.perf_counter()
    check_prior_is_asked(args)
    cells, columns = plots.read_cells(args, parser()) if plots.wanted(args) else (None, 0)
    request = read_request(args, cells)
    if cells is not None:
        return run_plot(request, args, cells, columns)
    mine = own_share(request.units)
    if is_shared() and args.output is None:
        raise RequestError("--output: give it where several processes share the pictures")
    paths = plan_outputs(args.output, len(request.prompts), args.overwrite, mine)
    folder = model_folder(args.model)
    pipe = load(folder, request, args)
    facts = {} if args.no_metadata else model_facts(folder, request, args)
    written = []
    for rows in request.batches(mine, args.batch_size):
        written += draw(pipe, request, rows, [paths[row] for row in rows], facts, args)
    if args.format == "json":
        seconds = round(time.perf_counter() - start, 2)
        print(json.dumps({"images": written, "model": folder.name, "seconds": seconds}, indent=2))
    return 0


def check_prior_is_asked(args: argparse.Namespace) -> None:
    """Refuse settings of the prior where a picture leads in its place."""
    for name in (*stage_words.OF_THE_PRIOR, "prior_negative_prompt"):
        if args.image is not None and getattr(args, name) is not None:
            option = latent_words.word(name)
            raise RequestError(f"{option}: --image leads, no caption does; leave it out")


def run_plot(
    request: Request, args: argparse.Namespace, cells: list[argparse.Namespace], columns: int
) -> int:
    """Draw the cells of a plot and write them on one sheet."""
    from unclip_sample.contact_sheet import contact_sheet
    from unclip_sample.png import save_png

    (path,) = plan_outputs(args.output, 1, args.overwrite)
    folder = model_folder(args.model)
    pipe = load(folder, request, args)
    images = []
    for rows in request.batches(range(len(cells)), args.batch_size):
        images += call(pipe, request, rows, args).images
    sheet = contact_sheet(
        images, [plots.label(args, cell) for cell in cells], cells[0].cell, columns
    )
    made = {"prompt": request.prompts[0], "seed": request.seeds[0], "plot": [args.x, args.y]}
    record = None if args.no_metadata else {**made, **model_facts(folder, request, args)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(sheet, path, record, overwrite=args.overwrite)
    if args.format == "json":
        print(json.dumps({"images": [{"path": str(path)}], "model": folder.name}, indent=2))
    elif not args.quiet:
        print(f"wrote {path} ({len(cells)} cells)")
    return 0


def model_folder(name: str | None) -> Path:
    """The folder of the model, the embedded one unless named."""
    from unclip.pipeline.folder import check_folder

    try:
        return check_folder(name)
    except FileNotFoundError as error:
        raise RequestError(f"--model: {error}") from None


def load(folder: Path, request: Request, args: argparse.Namespace) -> Any:
    """The pipeline, as the request wants it."""
    quiet_libraries()
    import torch

    from unclip import UnCLIPPipeline
    from unclip.pipeline.memory import chosen_dtype

    device = check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    place = None if args.offload else device
    asked = request.dtype
    dtype = chosen_dtype(asked if asked == "auto" else getattr(torch, asked), device)
    request.dtype = str(dtype).removeprefix("torch.")  # what a PNG will say
    pipe = UnCLIPPipeline.from_pretrained(folder, dtype, place)
    for source, scale in map(split_lora, args.lora or ()):
        try:
            pipe.load_lora(source, scale)
        except (OSError, ValueError) as error:
            raise RequestError(f"--lora: {str(error).removeprefix('source: ')}") from None
    if request.quantize:
        try:
            pipe.quantize(request.quantize)
        except ImportError as error:
            raise RequestError(f"--quantize: {str(error).partition(': ')[2]}") from None
    if args.quiet:
        pipe.set_progress_bar_config(disable=True)
    if "analytic" in wanted_samplers(request) and not has_score_norms(pipe):
        pipe.measure_score_norms()
    for stage, sampler in request.samplers.items():
        try:
            if sampler is not None and pipe.sampler(stage) != sampler:
                pipe.use_sampler(stage, sampler)
        except (KeyError, ValueError) as error:
            raise RequestError(f"the sampler of {stage}: {error}") from None
    fit_to_machine(pipe, device, args)
    return pipe


def split_lora(words: str) -> tuple[str, float]:
    """The folder and the scale of --lora FOLDER[:SCALE]; 1 where none is given."""
    folder, colon, scale = words.rpartition(":")
    if not colon or Path(words).exists():
        return words, 1.0
    try:
        return folder, float(scale)
    except ValueError:
        raise RequestError(f"--lora: {scale!r} is no number; give FOLDER:0.5") from None


def fit_to_machine(pipe: Any, device: Any, args: argparse.Namespace) -> None:
    """Offloading, slicing and compiling, where they are asked for."""
    if args.attention_slicing:
        pipe.enable_attention_slicing()
    if args.compile:
        pipe.compile_networks()
    offload = {
        "model": pipe.enable_model_cpu_offload,
        "sequential": pipe.enable_sequential_cpu_offload,
        "group": pipe.enable_group_offload,
    }
    if args.offload == "group":
        offload["group"](device)
    elif args.offload:
        offload[args.offload](device=device)


def wanted_samplers(request: Request) -> set[str]:
    """The samplers that a request names, for all pictures or for some."""
    own = [settings["stages"] for settings in request.own]
    stages = [stage for by_stage in own for stage in by_stage.values()]
    return {*request.samplers.values(), *(stage.get("scheduler") for stage in stages)}


def has_score_norms(pipe: Any) -> bool:
    """Whether a model holds the statistics of its prior that Analytic-DPM needs."""
    return pipe.prior is None or bool(pipe.prior_scheduler.config.get("score_norms"))


def check_device(name: str) -> Any:
    """The device of that name, which this machine must have."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RequestError(f"--device: this machine has no {name!r}; give cpu") from None
    return device


def model_facts(folder: Path, request: Request, args: argparse.Namespace) -> dict[str, Any]:
    """What the record of every picture says of the model; warns where it made no --from picture."""
    from importlib.metadata import version

    from unclip.pipeline.folder import model_hash

    digest, before = model_hash(folder), request.source.get("model_hash")
    if before is not None and before != digest:
        print(
            f"unclip-sample: {args.source} was made with another model ({before}, not {digest}): "
            "the picture will differ",
            file=sys.stderr,
        )
    changes = [
        {"hash": model_hash(source), "scale": scale}
        for source, scale in map(split_lora, args.lora or ())
    ]
    if request.source and request.source.get("lora", []) != changes:
        print(
            f"unclip-sample: {args.source} was made with other --lora than are given: the picture "
            "will differ",
            file=sys.stderr,
        )
    libraries = ("unclip", "torch", "diffusers", "transformers")
    return {
        "model": folder.name,
        "model_hash": digest,
        **({"lora": changes} if changes else {}),
        "dtype": request.dtype,
        **({"quantize": request.quantize} if request.quantize else {}),
        "versions": {name: version(name) for name in libraries},
    }


def call(pipe: Any, request: Request, rows: list[int], args: argparse.Namespace) -> Any:
    """What the pipeline draws for some of the pictures, by one call."""
    prompts, seeds = [request.prompts[row] for row in rows], [request.seeds[row] for row in rows]
    settings = dict(request.settings_at(rows[0]))
    num_drawn = request.best_of[rows[0]] if request.best_of else 0
    if num_drawn:
        prompts, seeds = prompts[0], [seeds[0] + index for index in range(num_drawn)]
        settings |= {"best_of": num_drawn, "num_images_per_prompt": len(rows)}
        settings["max_batch_size"] = args.batch_size
    subject: dict[str, Any] = {"image": request.picture}
    if request.z_img is not None:
        subject = {"image_embeds": embedding(request.z_img)}
    try:
        return pipe(prompts, seeds=seeds, **subject, **settings)
    except ValueError as error:
        raise RequestError(str(error)) from None


def draw(
    pipe: Any,
    request: Request,
    rows: list[int],
    paths: list[Path],
    facts: dict[str, Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Draw some of the pictures and write them; a report of each."""
    from unclip_sample.png import save_png

    output = call(pipe, request, rows, args)
    settings = request.settings_at(rows[0])
    texts = {"negative_prompt": settings["negative_prompt"]}
    prior = settings["stages"].get("prior", {})
    if "negative_prompt" in prior:
        texts["prior_negative_prompt"] = prior["negative_prompt"]
    written = []
    for index, (image, path) in enumerate(zip(output.images, paths, strict=True)):
        own = {"prompt": request.prompts[rows[index]], "seed": output.seeds[index]}
        if output.scores is not None:
            own["score"] = round(float(output.scores[index]), 6)
        record = record_of(output, index, {**own, **texts}, facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(image, path, None if args.no_metadata else record, overwrite=args.overwrite)
        written.append({"path": str(path), "size": output.settings["size"], **own})
        if args.format == "text" and not args.quiet:
            print(f"wrote {path} (seed {output.seeds[index]})", flush=True)
    return written


def embedding(values: bytes) -> Any:
    """z_img [1, D] from its float32 values."""
    import torch

    return torch.frombuffer(bytearray(values), dtype=torch.float32)[None]


if __name__ == "__main__":
    sys.exit(main())
