"""The command unclip-data: prepare the open picture sets, and check a folder of drawings."""

import argparse
import json
import sys
import traceback

from unclip_train.cli import Parser

STYLES = ("noto", "twemoji", "fluent", "flat")
MORE_STYLES = ("emojione", "streamline")


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
    """The error's message on one line; a missing library is named with the way to get it."""
    if isinstance(error, ModuleNotFoundError):
        return f"the library {error.name} is missing; install it with `pip install 'unclip[data]'`"
    return " ".join(str(error).split())


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments; imports nothing heavy."""
    parser = Parser(prog="unclip-data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    emoji = commands.add_parser("emoji", help="render the open emoji sets into a folder")
    _add_rendering(emoji, sizes=[64])
    emoji.add_argument("--styles", nargs="+", choices=STYLES + MORE_STYLES, default=list(STYLES))
    emoji.add_argument(
        "--shared-only",
        action="store_true",
        help="only concepts that noto, twemoji and fluent all draw, without People & Body",
    )
    emoji.set_defaults(run=_run_emoji)
    icons = commands.add_parser("icons", help="render Material Design Icons into a folder")
    _add_rendering(icons, sizes=[128])
    icons.set_defaults(run=_run_icons)
    check = commands.add_parser("check", help="count what a folder holds and find its faults")
    check.add_argument("folder", metavar="FOLDER")
    check.add_argument("--sheet", metavar="PNG", help="write samples with their captions")
    check.add_argument("--size", type=int, metavar="PIXELS", help="of the pictures on the sheet")
    _add_common(check)
    check.set_defaults(run=_run_check)
    return parser


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


def _run_check(options: argparse.Namespace) -> int:
    from .check import check_folder, save_sheet

    report = check_folder(options.folder)
    if options.sheet:
        save_sheet(options.folder, options.sheet, options.size)
    print(json.dumps(report) if options.format == "json" else _report_text(report))
    return 1 if report["faults"] else 0


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
