"""The command unclip-data: prepare the open picture sets, and check a folder of drawings."""

import argparse
import json
import sys
import traceback

STYLES = ("noto", "twemoji", "fluent", "flat")


def main(arguments: list[str] | None = None) -> int:
    """Run `unclip-data`; 0 when it went well, 1 when the run failed, 2 for the user's fault."""
    options = build_parser().parse_args(arguments)
    try:
        report = options.run(options)
    except (ValueError, FileNotFoundError, RuntimeError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"unclip-data {options.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, FileNotFoundError)) else 1
    except KeyboardInterrupt:
        print(f"unclip-data {options.command}: stopped; run it again to go on", file=sys.stderr)
        return 1
    return report


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments; imports nothing heavy."""
    parser = argparse.ArgumentParser(prog="unclip-data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    emoji = commands.add_parser("emoji", help="render the open emoji sets into a folder")
    _add_rendering(emoji, sizes=[64])
    emoji.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    emoji.add_argument(
        "--shared-only",
        action="store_true",
        help="only concepts that noto, twemoji and fluent all draw, without People & Body",
    )
    emoji.set_defaults(run=_run_emoji)
    return parser


def _add_rendering(parser: argparse.ArgumentParser, sizes: list[int]) -> None:
    parser.add_argument("--output", required=True, metavar="FOLDER", help="new, or made before")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=sizes, metavar="PIXELS", help=f"default {sizes}"
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


def _print_rendered(report: dict, form: str) -> int:
    if form == "json":
        print(json.dumps(report))
    else:
        done = ", ".join(f"{count} of {size} px" for size, count in report["rendered"].items())
        print(f"{report['folder']}: {report['drawings']} drawings, newly rendered: {done}")
        for name, reason in report["failed"].items():
            print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
