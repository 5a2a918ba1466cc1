"""The command unclip-data: prepare the open picture sets; check and embed anybody's pictures."""

import argparse
import json
import os
import re
import sys
import traceback
from pathlib import Path

from unclip_train.cli import Parser

from .drawings import EMOJI_STYLES, MORE_STYLES


def main(arguments: list[str] | None = None) -> int:
    """Run `unclip-data`; 0 when it went well, 1 when the run failed, 2 for the user's fault."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"unclip-data {options.command}: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, FileNotFoundError, ImportError)) else 1
    except KeyboardInterrupt:
        print(f"unclip-data {options.command}: stopped; run it again to go on", file=sys.stderr)
        return 1


def one_line(error: Exception) -> str:
    """The error's message on one line, in the words of this command."""
    if isinstance(error, ModuleNotFoundError):
        extra = "hf-data" if error.name in ("datasets", "pyarrow") else "data"
        return (
            f"the library {error.name} is missing; install it with `pip install 'unclip[{extra}]'`"
        )
    line = " ".join(str(error).split()).replace("data.source", "SOURCE")
    return re.sub(r"\bdata\.(\w+)", lambda key: "--" + key[1].replace("_", "-"), line)


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments; imports nothing heavy."""
    parser = Parser(prog="unclip-data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    emoji = commands.add_parser("emoji", help="render the open emoji sets into a folder")
    _add_rendering(emoji, sizes=[64])
    emoji.add_argument(
        "--styles",
        nargs="+",
        choices=EMOJI_STYLES + MORE_STYLES,
        default=list(EMOJI_STYLES),
        help=f"default: {' '.join(EMOJI_STYLES)}; the others are further artists, for CLIPs",
    )
    emoji.add_argument(
        "--shared-only",
        action="store_true",
        help="only concepts that noto, twemoji and fluent all draw, without People & Body",
    )
    emoji.set_defaults(run=_run_emoji)
    icons = commands.add_parser("icons", help="render Material Design Icons into a folder")
    _add_rendering(icons, sizes=[128])
    icons.set_defaults(run=_run_icons)
    check = commands.add_parser("check", help="count what a source holds and find its faults")
    _add_source(check)
    check.add_argument("--sheet", metavar="PNG", help="write samples with their captions")
    check.add_argument("--size", type=int, metavar="PIXELS", help="of the pictures on the sheet")
    check.add_argument("--clip", metavar="FOLDER", help="count captions in the tokens of this CLIP")
    check.add_argument("--bad", metavar="JSON", help="list broken samples for data.leave_out")
    side_help = "pictures with a shorter side below it are to be left out, and no faults"
    check.add_argument("--min-side", type=int, default=0, metavar="N", help=side_help)
    check.add_argument("--limit", type=int, metavar="N", help="look at the first N samples only")
    _add_common(check)
    check.set_defaults(run=_run_check)
    embed = commands.add_parser("embed", help="precompute the CLIP embeddings of a source")
    _add_source(embed)
    embed.add_argument("--leave-out", metavar="JSON", help="file that check --bad wrote")
    embed.add_argument("--clip", required=True, metavar="FOLDER", help="any that unclip.CLIP loads")
    embed.add_argument("--output", required=True, metavar="FOLDER", help="new, or begun before")
    embed.add_argument("--shard-size", type=int, default=4096, metavar="N")
    embed.add_argument("--batch-size", type=int, default=64, metavar="N")
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    embed.add_argument("--rank", type=int, default=rank, help="of this process; default: $RANK")
    embed.add_argument("--world", type=int, default=world, help="processes; default: $WORLD_SIZE")
    embed.add_argument("--device", help="default: a GPU where there is one")
    _add_common(embed)
    embed.set_defaults(run=_run_embed)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of pictures or drawings, .tar or .parquet files ({000..127}: many; any "
        "address of fsspec), hub:owner/name",
    )
    parser.add_argument("--image-column", default="", metavar="NAME", help="of a table")
    parser.add_argument("--caption-column", default="", metavar="NAME")
    parser.add_argument("--split", default="train", help="of a Hugging Face dataset")
    parser.add_argument("--subset", metavar="NAME")
    parser.add_argument("--revision", metavar="NAME")
    parser.add_argument("--streaming", action="store_true", help="read forward, keep nothing")
    parser.add_argument("--index", metavar="FOLDER", help="for indices of shards; default: a cache")
    parser.add_argument("--max-pixels", type=int, default=64_000_000, metavar="N")


def _add_rendering(parser: argparse.ArgumentParser, sizes: list[int]) -> None:
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new, or made before")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=sizes,
        metavar="PIXELS",
        help=f"sides of the pictures (default {sizes[0]}); missing files are added",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N drawings")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; default: all cores")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")


def _run_emoji(options: argparse.Namespace) -> int:
    from .emoji import make_emoji

    report = make_emoji(
        options.output,
        options.sizes,
        options.styles,
        options.limit,
        options.shared_only,
        options.workers,
    )
    return _print_rendered(report, options.format)


def _run_icons(options: argparse.Namespace) -> int:
    from .icons import make_icons

    report = make_icons(options.output, options.sizes, options.limit, options.workers)
    return _print_rendered(report, options.format)


def _print_rendered(report: dict, form: str) -> int:
    if form == "json":
        print(json.dumps(report))
    else:
        done = ", ".join(f"{count} of {size} px" for size, count in report["rendered"].items())
        print(f"{report['folder']}: {report['drawings']} drawings, newly rendered: {done}")
        for name, reason in report["failed"].items():
            print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if report["failed"] else 0


def _open_source(options: argparse.Namespace):
    from .sources.opening import Reading, open_source

    keys = [key for key in Reading.__dataclass_fields__ if hasattr(options, key)]
    return open_source(options.source, Reading(**{key: getattr(options, key) for key in keys}))


def _run_check(options: argparse.Namespace) -> int:
    from .check import check_folder, check_sheet_path, save_sheet
    from .sources.opening import kind_of

    if options.sheet:
        check_sheet_path(options.sheet)
    if options.bad and Path(options.bad).exists():
        raise ValueError(f"--bad: {options.bad} exists; name another file")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {options.limit}")
    if kind_of(options.source) == "drawings":
        report = check_folder(options.source)
        if options.sheet:
            save_sheet(options.source, options.sheet, options.size)
        print(json.dumps(report) if options.format == "json" else _report_text(report))
        return 1 if report["faults"] else 0
    from .drawings import write_whole
    from .sources.leave_out import bad_list
    from .sources.records import HARMLESS
    from .survey import report_lines, save_source_sheet, survey_source

    source = _open_source(options)
    report, bad = survey_source(
        source, options.max_pixels, options.clip, options.limit, options.min_side
    )
    if options.sheet and report["usable"]:
        limits = (options.max_pixels, options.min_side)
        save_source_sheet(source, options.sheet, options.size, *limits)
    if options.bad:
        write_whole(Path(options.bad), json.dumps(bad_list(source, bad), indent=1).encode())
    told = {"source": options.source} | report
    lines = "\n".join([f"{options.source}:", *report_lines(report)])
    print(json.dumps(told) if options.format == "json" else lines)
    return 1 if set(report["faults"]) - HARMLESS else 0


def _run_embed(options: argparse.Namespace) -> int:
    import torch

    from .embed import embed_source

    source = _open_source(options)
    device = options.device
    if device is None:
        local_rank = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    report = embed_source(
        source,
        options.clip,
        options.output,
        options.shard_size,
        options.batch_size,
        options.rank,
        options.world,
        device,
        options.max_pixels,
    )
    if options.format == "json":
        print(json.dumps(report))
        return 0
    faults = ", ".join(f"{count} {reason}" for reason, count in report["faults"].items())
    print(
        f"{report['folder']}: {report['samples']} pictures in {report['written']} new shards, "
        f"{report['kept']} shards were there; left out: {faults or 'none'}"
    )
    print("finished" if report["finished"] else "other processes have shards to write yet")
    return 0


def _report_text(report: dict) -> str:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"

    lines = [
        f"{report['folder']}: {report['drawings']} drawings of {report['concepts']} concepts",
        f"shared concepts: {report['shared_concepts']}",
        f"held out: {report['held_out_drawings']} drawings, {report['held_out_pairs']} pairs",
        f"styles: {listed(report['by_style'])}",
        f"families: {listed(report['by_family'])}",
        f"categories: {listed(report['by_category'])}",
        f"files by size: {listed(report['files_by_size'])}",
    ]
    lengths = report["captions"]
    if lengths["count"]:
        letters, words = lengths["letters"], lengths["words"]
        lines.append(
            f"captions: {lengths['count']}; letters {letters['min']} to {letters['max']} "
            f"(mean {letters['mean']}), words {words['min']} to {words['max']} "
            f"(mean {words['mean']})"
        )
    for reason, found in report["faults"].items():
        lines.append(f"fault: {reason}: {found['count']} ({', '.join(found['examples'])})")
    lines.append("faults: none" if not report["faults"] else "some files are at fault")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
