"""unclip-convert: a published checkpoint as a folder of ours, or ours as diffusers loads it."""

from __future__ import annotations

import argparse
import json
import sys
import time

from unclip_sample.cli import DTYPES, Parser
from unclip_sample.running import quiet_libraries

EXAMPLES = """examples:
  unclip-convert kakaobrain/karlo-v1-alpha karlo --dtype float16
  unclip-convert kakaobrain/karlo-v1-alpha karlo-1024 --upsampler-1024 embedded
  unclip-convert karlo-files/ karlo --clip openai/clip-vit-large-patch14
  unclip-convert kandinsky-community/kandinsky-2-1-prior kandinsky-prior
  unclip-convert prior/latest.pth laion-prior
  unclip-convert my-model for-diffusers --to diffusers

SOURCE is a folder, a checkpoint or a name of the Hugging Face hub. What is written is read back and
compared, weight by weight. docs/checkpoints.md lists the layouts.
"""


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = Parser(
        "unclip-convert",
        description="Convert published unCLIP checkpoints to safetensors, and ours for others.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="what to convert")
    parser.add_argument("folder", metavar="DEST", help="the folder to write")
    parser.add_argument(
        "--to", choices=("unclip", "diffusers"), default="unclip", help="layout to write"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the weights that are written"
    )
    parser.add_argument("--variant", metavar="WORD", help="which files of the source: fp16")
    parser.add_argument("--clip", metavar="SOURCE", help="a CLIP in place of the model's own")
    parser.add_argument("--prior", metavar="SOURCE", help="a prior in place of the model's own")
    parser.add_argument(
        "--upsampler-1024", metavar="SOURCE", help='last upsampler; "embedded" is the one we ship'
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model in DEST")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the report")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when done, 2 for a mistake in the words, 1 for a run that failed."""
    args = parser().parse_args(arguments)
    try:
        report(run(args), args)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if args.debug:
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"unclip-convert: {line}", file=sys.stderr)
        return 2 if is_users_fault(error) else 1


def run(args: argparse.Namespace) -> dict:
    """Convert, and say what was done."""
    quiet_libraries(offline=False)
    import torch

    from unclip.pipeline.published.conversion import convert

    started = time.monotonic()
    result = convert(
        args.source,
        args.folder,
        to=args.to,
        dtype=getattr(torch, args.dtype),
        overwrite=args.overwrite,
        variant=args.variant,
        clip=args.clip,
        prior=args.prior,
        upsampler_1024=args.upsampler_1024,
    )
    return {"folder": args.folder, **result, "seconds": round(time.monotonic() - started, 1)}


def report(result: dict, args: argparse.Namespace) -> None:
    """What was written, on standard output."""
    if args.format == "json":
        print(json.dumps(result))
        return
    print(
        f"{result['folder']}: {result['parameters'] / 1e6:,.1f} M parameters from the layout "
        f"{result['layout']!r}, all {result['tensors']:,} tensors read back and equal "
        f"(hash {result['hash']})"
    )
    if result["left_out"]:
        print(result["left_out"])


def is_users_fault(error: Exception) -> bool:
    """Whether other words would have helped: a wrong name, or parts that do not fit."""
    from unclip.pipeline.loading import ModelFileError

    fitting = isinstance(error, ValueError) and not isinstance(error, ModelFileError)
    return fitting or isinstance(error, FileNotFoundError | FileExistsError)
