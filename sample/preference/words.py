"""The words by which a preference page is made and its votes are read."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from unclip_sample.outputs import OutputError, check_writable
from unclip_sample.preference.page import QUESTIONS
from unclip_sample.request import RequestError
from unclip_sample.words import count, seed


def add_page(parser: argparse.ArgumentParser) -> None:
    """Options of the word that makes a page."""
    parser.add_argument("folders", nargs=2, metavar="FOLDER", help="pictures of the same names")
    parser.add_argument("--output", required=True, metavar="FILE.html", help="page for the voters")
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=["quality", "caption"])
    parser.add_argument(
        "--captions", metavar="FILE", help="JSON, by picture's name; else what the PNGs say"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of order and sides")
    parser.add_argument("--limit", type=count, metavar="N", help="pairs at most")
    parser.add_argument("--size", type=count, default=512, metavar="N", help="pixels at most")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that exists")
    parser.set_defaults(run=run_page)


def add_votes(parser: argparse.ArgumentParser) -> None:
    """Options of the word that reads votes."""
    parser.add_argument("key", metavar="KEY", help="FILE.key.json that was written with the page")
    parser.add_argument("votes", nargs="+", metavar="VOTES", help="what the page gave each voter")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the report")
    parser.set_defaults(run=run_votes)


def run_page(args: argparse.Namespace) -> int:
    """Write the page, and beside it the key that tells who is who."""
    from unclip_sample.preference.page import key_text, make_page, read_captions
    from unclip_sample.writing import write_whole

    page = Path(args.output)
    if page.suffix.lower() != ".html":
        raise OutputError(f"--output: give FILE.html, not {args.output!r}")
    key_path = page.with_suffix(".key.json")
    for path in (page, key_path):
        if os.path.lexists(path) and not args.overwrite:
            raise OutputError(f"--output: {path} exists; name another or add --overwrite")
    check_writable(page.parent)
    captions = None if args.captions is None else read_captions(Path(args.captions))
    first, second = map(Path, args.folders)
    content, key = make_page(
        first, second, args.questions, captions, args.seed, args.limit, args.size
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(key_path, key_text(key).encode(), args.overwrite)
    write_whole(page, content.encode(), args.overwrite)
    print(f"wrote {page} for the voters ({len(key.pairs)} pairs), and {key_path} for you alone")
    return 0


def run_votes(args: argparse.Namespace) -> int:
    """Print how often the first was taken, with 95 % intervals."""
    from unclip_sample.preference import votes

    for path in map(Path, args.votes):
        if not path.is_file():
            raise RequestError(f"VOTES: {path} does not exist")
    key = votes.read_key(Path(args.key))
    rows = votes.win_rates(list(map(Path, args.votes)), key)
    print(votes.as_json(rows, key) if args.format == "json" else votes.table(rows, key))
    return 0
