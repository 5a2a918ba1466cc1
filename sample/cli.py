"""unclip-sample: draw pictures of captions, or variations of a picture, as PNG files."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from unclip_sample import edit_words, edits, latent_words, latents
from unclip_sample.outputs import OutputError, plan_outputs
from unclip_sample.request import Request, RequestError, read_request

EXAMPLES = """examples:
  unclip-sample --prompt "a red apple, noto style"
  unclip-sample --prompt "a rocket" --guidance 3 --seed 7 --num-images 4 --output rocket.png
  unclip-sample --prompts prompts.txt --size 256 --output pictures/
  unclip-sample --image cat.png --num-images 4 --output cats/
  unclip-sample --inpaint cat.png --mask hat.png --prompt "a cat with a hat"
  unclip-sample --upscale cat.png --size 2048
  unclip-sample --interpolate cat.png "a rocket" --output way.gif
  unclip-sample --image apple.png --text-diff "a green apple" --base "a red apple" --grid
  unclip-sample --from rocket-0002.png --output again.png

Image i is drawn with seed + i, and comes out the same alone or beside others. STEPS are a number,
fast27, or ddimN (ddim15: the paper's list for the last upsampler).
"""
SAMPLERS = ("ddpm", "ddim", "dpm++")
SIZES = (64, 256, 512, 1024, 2048, 4096)  # those above a model's largest for --upscale
DTYPES = ("float32", "bfloat16", "float16")
BATCH_SIZE = 1  # sums in a larger batch may be rounded otherwise, by a level here and there


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong on one line."""

    def error(self, message: str) -> NoReturn:
        """Name the argument and leave."""
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")


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
    add_settings(parser.add_argument_group("how to draw it"))
    edit_words.add_words(parser.add_argument_group("with a picture"))
    latent_words.add_words(parser.add_argument_group("with the latent (z_img, x_T)"))
    add_machine(parser.add_argument_group("where and with what"))
    return parser


def add_subject(group: argparse._ArgumentGroup) -> None:
    """Options that say what is drawn."""
    which = group.add_mutually_exclusive_group()
    which.add_argument("--prompt", metavar="TEXT", action="append", help="caption; may be repeated")
    which.add_argument("--prompts", metavar="FILE", help="captions, one on each line")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    group.add_argument("--image", metavar="FILE", help="picture to draw variations of")
    group.add_argument(
        "--from", dest="source", metavar="PNG", help="draw a picture again, other options changed"
    )
    group.add_argument("--num-images", type=count, default=1, metavar="N", help="for each caption")
    group.add_argument("--seed", type=seed, metavar="N", help="of the first; drawn unless given")
    group.add_argument("--size", type=int, choices=SIZES, help="pixels a side; the model's largest")


def add_settings(group: argparse._ArgumentGroup) -> None:
    """Options of the stages."""
    group.add_argument("--guidance", type=scale, metavar="X", help="of the decoder; 1 is none")
    group.add_argument("--prior-guidance", type=scale, metavar="X", help="of the prior; 1 is none")
    group.add_argument("--steps", type=steps, help="of the decoder")
    group.add_argument("--prior-steps", type=steps, metavar="STEPS", help="of the prior")
    group.add_argument(
        "--upsampler-steps", type=step_pair, metavar="STEPS[,STEPS]", help="to 256, and to 1024"
    )
    group.add_argument("--scheduler", choices=SAMPLERS, help="sampler of the decoder")


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Options of files and of the machine."""
    group.add_argument("--model", metavar="FOLDER", help="the embedded model unless given")
    group.add_argument("--output", metavar="FILE.png|FOLDER", help="the first free unclip.png")
    group.add_argument("--overwrite", action="store_true", help="replace files that exist")
    group.add_argument("--no-metadata", action="store_true", help="write pixels alone")
    group.add_argument("--format", choices=("text", "json"), default="text", help="of the report")
    group.add_argument("--batch-size", type=count, default=BATCH_SIZE, metavar="N", help="at once")
    group.add_argument("--threads", type=count, metavar="N", help="of the CPU")
    group.add_argument("--dtype", choices=DTYPES, help="of the decoder and the upsamplers")
    group.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ...")
    group.add_argument("--quiet", action="store_true", help="no progress, no text report")
    group.add_argument("--debug", action="store_true", help="show the trace of an error")


# Kinds of values


def count(text: str) -> int:
    """A whole number from 1 to 100000."""
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"give a whole number from 1 to 100000, not {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A whole number from 0 to 2^62, which leaves room for the seeds after it."""
    if not re.fullmatch("[0-9]{1,19}", text) or int(text) > 2**62:
        raise argparse.ArgumentTypeError(f"give a whole number from 0 to 2^62, not {text!r}")
    return int(text)


def scale(text: str) -> float:
    """A guidance scale."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"give a number from 0 to 100, not {text!r}")
    return value


def steps(text: str) -> int | str:
    """A number of steps or the name of a list."""
    if re.fullmatch("[0-9]{1,4}", text) and 1 <= int(text) <= 1000:
        return int(text)
    if re.fullmatch(r"fast27|ddim[1-9][0-9]{0,3}", text):
        return text
    raise argparse.ArgumentTypeError(f"give a number from 1 to 1000, fast27 or ddimN, not {text!r}")


def step_pair(text: str) -> tuple[int | str, int | str]:
    """Steps of both upsamplers: A for both, or A,B."""
    parts = [steps(part) for part in text.split(",", 1)]
    return parts[0], parts[-1]


# The work


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when done, 2 for a mistake in the words, 1 for a run that failed."""
    args = parser().parse_args(arguments)
    try:
        return run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"unclip-sample: {line}", file=sys.stderr)
        return 2 if isinstance(error, RequestError | OutputError) else 1


def run(args: argparse.Namespace) -> int:
    """Check everything that can be checked, load the model, draw, write, report."""
    if edit_words.wanted(args):
        return edits.run(args)
    if latent_words.wanted(args):
        return latents.run(args)
    start = time.perf_counter()
    request = read_request(args)
    paths = plan_outputs(args.output, len(request.prompts), args.overwrite)
    folder = model_folder(args.model)
    pipe = load(folder, request, args)
    facts = {} if args.no_metadata else model_facts(folder, request, args)
    written = []
    for first in range(0, len(paths), args.batch_size):
        batch = slice(first, first + args.batch_size)
        written += draw(pipe, request, batch, paths[batch], facts, args)
    if args.format == "json":
        seconds = round(time.perf_counter() - start, 2)
        print(json.dumps({"images": written, "model": folder.name, "seconds": seconds}, indent=2))
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
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import torch

    from unclip import UnCLIPPipeline

    device = check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = UnCLIPPipeline.from_pretrained(folder, getattr(torch, request.dtype), device)
    if args.quiet:
        pipe.set_progress_bar_config(disable=True)
    for stage, sampler in request.samplers.items():
        try:
            if sampler is not None and pipe.sampler(stage) != sampler:
                pipe.use_sampler(stage, sampler)
        except (KeyError, ValueError) as error:
            raise RequestError(f"the sampler of {stage}: {error}") from None
    return pipe


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
    libraries = ("unclip", "torch", "diffusers", "transformers")
    return {
        "model": folder.name,
        "model_hash": digest,
        "dtype": request.dtype,
        "versions": {name: version(name) for name in libraries},
    }


def draw(
    pipe: Any,
    request: Request,
    batch: slice,
    paths: list[Path],
    facts: dict[str, Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Draw some of the pictures and write them; a report of each."""
    from unclip_sample.png import save_png

    prompts, seeds = request.prompts[batch], request.seeds[batch]
    subject: dict[str, Any] = {"image": request.picture}
    if request.z_img is not None:
        subject = {"image_embeds": embedding(request.z_img)}
    try:
        output = pipe(prompts, seeds=seeds, **subject, **request.settings)
    except ValueError as error:
        raise RequestError(str(error)) from None
    written = []
    for index, (image, path) in enumerate(zip(output.images, paths, strict=True)):
        own = {"prompt": prompts[index], "seed": seeds[index]}
        negative = request.settings["negative_prompt"]
        record = {**own, "negative_prompt": negative, **output.settings, **facts}
        if "prior" not in output.settings["stages"]:
            record["z_img"] = output.image_embeds[index].numpy().tobytes().hex()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(image, path, None if args.no_metadata else record, overwrite=args.overwrite)
        written.append({"path": str(path), "size": output.settings["size"], **own})
        if args.format == "text" and not args.quiet:
            print(f"wrote {path} (seed {seeds[index]})", flush=True)
    return written


def embedding(values: bytes) -> Any:
    """z_img [1, D] from its float32 values."""
    import torch

    return torch.frombuffer(bytearray(values), dtype=torch.float32)[None]


if __name__ == "__main__":
    sys.exit(main())
