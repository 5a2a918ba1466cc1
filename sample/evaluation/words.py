"""The words of unclip-eval; nothing here costs time to import."""

from __future__ import annotations

import argparse

from unclip_sample.cli import DTYPES, Parser, count, seed
from unclip_sample.distances import add_coco_captions, add_distances
from unclip_sample.preference.words import add_page, add_votes

# Subjects (captions, real pictures) that a section takes unless --num says otherwise.
SIZES = {
    "heldout": 150,
    "seen": 150,
    "pairs": 150,
    "compositions": 50,
    "guidance": 12,
    "ablation": 60,
    "variations": 12,
    "components": 10,
    "steps": 24,
    "candidates": 60,
    "prior": 48,
    "lettering": 16,
    "nearest": 100,
    "diversity": 10,
    "cascade": 12,
    "grid": 100,
}
LAYOUTS = ("geneval", "t2i-compbench")
EXAMPLES = """examples:
  unclip-eval report --data data/emoji --judge runs/emoji/judge/model --output report/
  unclip-eval report --model my-model --data data/emoji --sections heldout guidance --output report/
  unclip-eval report --data pictures/ --num 50 guidance=8 --output report/
  accelerate launch -m unclip_sample.evaluation.cli report --data data/emoji --output report/
  unclip-eval compare report-a/ report-b/ --output comparison/
  unclip-eval export geneval --prompts evaluation_metadata.jsonl --output geneval/

A report is one HTML file, report.html, beside results.json and the pictures. A run that is called
again draws only what is missing, and keeps sections that it is not asked for.
"""


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = Parser(
        "unclip-eval",
        description="Measure a model on a data source, and show it as one HTML report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add, what in (
        ("report", add_report, "measure a model, and show it as one page"),
        ("compare", add_compare, "two reports, caption by caption"),
        ("export", add_export, "pictures in the folders of GenEval or T2I-CompBench"),
        ("preference", add_page, "a blind page on which people choose"),
        ("votes", add_votes, "what they chose"),
        ("distances", add_distances, "FID and others of two folders of pictures"),
        ("coco-captions", add_coco_captions, "the captions of COCO-30k"),
    ):
        add(commands.add_parser(name, help=what, description=what, allow_abbrev=False))
    return parser


def add_report(parser: argparse.ArgumentParser) -> None:
    """Options of a report."""
    parser.add_argument("--data", metavar="FOLDER", required=True, help="drawings, or pictures")
    parser.add_argument("--judge", metavar="FOLDER", help="a CLIP; the model's own unless given")
    parser.add_argument("--inception", metavar="FILE.pth", help="its weights, for FID by guidance")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="new, or to go on with")
    parser.add_argument(
        "--sections", nargs="+", choices=SIZES, metavar="NAME", help=f"of {', '.join(SIZES)}"
    )
    parser.add_argument(
        "--num", nargs="+", type=size, metavar="N|NAME=N", help="subjects of all, or of a section"
    )
    parser.add_argument(
        "--styles", nargs="+", metavar="STYLE", help="of drawings; all unless given"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of every choice")
    parser.add_argument("--batch-size", type=count, default=8, metavar="N", help="pictures at once")
    add_model(parser)
    add_common(parser)


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Options of a comparison."""
    parser.add_argument("reports", nargs=2, metavar="FOLDER", help="of unclip-eval report")
    parser.add_argument("--output", metavar="FOLDER", help="for comparison.html")
    add_common(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    """Options of an export."""
    parser.add_argument("layout", choices=LAYOUTS, metavar="LAYOUT", help=", ".join(LAYOUTS))
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        required=True,
        help="GenEval's evaluation_metadata.jsonl, or a prompt on each line",
    )
    parser.add_argument("--num-images", type=count, default=4, metavar="N", help="of each prompt")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="new, or to go on with")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the first picture")
    add_model(parser)
    add_common(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options of what draws, and where."""
    parser.add_argument("--model", metavar="FOLDER", help="the embedded model unless given")
    parser.add_argument("--size", type=count, metavar="N", help="pixels a side")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the decoder")
    parser.add_argument("--device", help="cpu, cuda, ...; the launcher's choice, else cpu")
    parser.add_argument("--threads", type=count, metavar="N", help="of the CPU")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every command."""
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="of what is said"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")


def size(text: str) -> tuple[str, int]:
    """N for all sections, as ("", N), or NAME=N for one."""
    name, sign, number = text.rpartition("=")
    if sign and name not in SIZES:
        known = ", ".join(SIZES)
        raise argparse.ArgumentTypeError(f"there is no section {name!r}; there are {known}")
    return name, count(number)


def sizes_of(given: list[tuple[str, int]] | None) -> dict[str, int]:
    """Subjects by section."""
    asked = dict(given or [])
    everywhere = asked.pop("", None)
    sizes = dict.fromkeys(SIZES, everywhere) if everywhere else dict(SIZES)
    return sizes | asked
