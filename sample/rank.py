"""unclip-rank: CLIP on files: rank pictures by a text, classify them, or search a folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_sample.cli import check_device
from unclip_sample.outputs import OutputError, check_writable, plan_outputs
from unclip_sample.request import RequestError
from unclip_sample.running import exit_status
from unclip_sample.words import Parser, count

if TYPE_CHECKING:
    from unclip_sample.index import Viewer

EXAMPLES = """examples:
  unclip-rank pictures --text "a red apple" drawn/
  unclip-rank classify --text apple --text pear --template "a {}, noto style" a.png b.png
  unclip-rank search photos/ --text "a dog on a beach" --top 20 --sheet found.png
  unclip-rank search photos/ --like dog.jpg

Scores are cosines of CLIP embeddings, from -1 to 1. The search keeps what it has seen of a folder
in the user's cache and looks again only at what has changed.
"""


# The words


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = Parser(
        "unclip-rank",
        description="Let CLIP look at picture files.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    pictures = commands.add_parser("pictures", help="order pictures by how well they fit a text")
    pictures.add_argument("paths", nargs="+", metavar="PATH", help="picture, or folder of them")
    pictures.add_argument("--text", required=True, metavar="TEXT")
    add_showing(pictures)
    pictures.set_defaults(run=run_pictures)
    classify = commands.add_parser("classify", help="say which of some texts a picture fits best")
    classify.add_argument("paths", nargs="+", metavar="PATH", help="picture, or folder of them")
    classify.add_argument(
        "--text", dest="texts", action="append", required=True, metavar="TEXT", help="two or more"
    )
    classify.add_argument(
        "--template", default="{}", metavar="TEXT", help='put each text for {}: "a photo of a {}"'
    )
    classify.set_defaults(run=run_classify)
    search = commands.add_parser("search", help="find pictures of a folder; remembers what it saw")
    search.add_argument("folder", metavar="FOLDER")
    what = search.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", metavar="TEXT")
    what.add_argument("--like", metavar="PICTURE", help="find pictures that resemble this one")
    search.add_argument("--index", metavar="FILE", help="of what was seen; in the user's cache")
    add_showing(search)
    search.set_defaults(run=run_search)
    for command in (pictures, classify, search):
        add_common(command)
    return parser


def add_showing(parser: argparse.ArgumentParser) -> None:
    """Options of what is shown of an order."""
    parser.add_argument("--top", type=count, default=10, metavar="N", help="how many; default 10")
    parser.add_argument("--sheet", metavar="FILE.png", help="write the best ones on one picture")
    parser.add_argument("--overwrite", action="store_true", help="replace the sheet if it exists")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every command."""
    parser.add_argument("--clip", metavar="FOLDER", help="a CLIP, or a model; the embedded one")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the report")
    parser.add_argument("--threads", type=count, metavar="N", help="of the CPU")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when done, 2 for a mistake in the words, 1 for a run that failed."""
    args = parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):  # a file's name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    return exit_status("unclip-rank", lambda: args.run(args), args.debug)


# The work


def run_pictures(args: argparse.Namespace) -> int:
    """Order the pictures by their cosine with the text."""
    from unclip_sample.encoder import embed_texts
    from unclip_sample.index import viewer_of

    check_text("--text", args.text)
    check_sheet(args)
    paths = expand(args.paths)
    clip, facts = load(args)
    z_img, paths, unreadable = look_at_all(viewer_of(clip, facts["model_hash"]), paths, args)
    results = ordered(z_img, embed_texts(clip, [args.text]), paths, args.top)
    return report({"text": args.text, **facts}, results, unreadable, args)


def run_search(args: argparse.Namespace) -> int:
    """Bring the folder's index up to date, and order its pictures by text or picture."""
    from unclip_sample import index
    from unclip_sample.encoder import embed_texts

    if args.text is not None:
        check_text("--text", args.text)
    check_sheet(args)
    folder = Path(args.folder)
    if not folder.is_dir():
        raise RequestError(f"FOLDER: {folder} is no folder; give one that holds pictures")
    if args.index:
        index.check_place(Path(args.index))
    clip, facts = load(args)
    viewer = index.viewer_of(clip, facts["model_hash"])
    z = embed_texts(clip, [args.text]) if args.like is None else embed_like(viewer, args.like)
    path = Path(args.index) if args.index else usual_place(index.default_path(folder, viewer))
    found, done = index.update(path, folder, viewer, bar(args))
    if not found.files and not done.unreadable:
        raise RequestError(f"FOLDER: {folder} holds no pictures")
    paths = [folder / name for name in found.files]
    unreadable = {str(folder / name): reason for name, reason in done.unreadable.items()}
    asked = {"text": args.text} if args.like is None else {"like": args.like}
    counts = {"new": done.new, "kept": done.kept, "removed": done.removed}
    results = ordered(found.z, z, paths, args.top)
    return report({**asked, **facts, "index": counts}, results, unreadable, args)


def usual_place(path: Path) -> Path | None:
    """Where an index is kept that the user has not named; None, with a warning, if it cannot be."""
    try:
        check_writable(path.parent, "the user's cache")
    except OutputError as error:
        print(f"unclip-rank: {error}: nothing is remembered; name an --index", file=sys.stderr)
        return None
    return path


def run_classify(args: argparse.Namespace) -> int:
    """Give each picture the probabilities of the texts."""
    from unclip.metrics.similarity import probabilities_among
    from unclip_sample.encoder import embed_texts, logit_scale
    from unclip_sample.index import viewer_of

    if len(set(args.texts)) < 2 or len(set(args.texts)) < len(args.texts):
        raise RequestError("--text: give two or more texts, each once")
    for text in args.texts:
        check_text("--text", text)
    if args.template.count("{}") != 1:
        raise RequestError(f"--template: give a text with one {{}} in it, not {args.template!r}")
    paths = expand(args.paths)
    clip, facts = load(args)
    z_img, paths, unreadable = look_at_all(viewer_of(clip, facts["model_hash"]), paths, args)
    z_txt = embed_texts(clip, [args.template.replace("{}", text) for text in args.texts])
    shares = probabilities_among(z_img, z_txt, logit_scale(clip)).tolist() if paths else []
    results = []
    for path, row in zip(paths, shares, strict=True):
        order = sorted(zip(args.texts, row, strict=True), key=lambda pair: -pair[1])
        texts = [{"text": text, "probability": share} for text, share in order]
        results.append({"path": str(path), "texts": texts})
    return report({**facts, "template": args.template}, results, unreadable, args)


def load(args: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    """The CLIP of --clip, and what a report says of it."""
    from unclip_sample.encoder import find_clip, load_clip

    folder = find_clip(args.clip)
    import torch

    from unclip.pipeline.folder import model_hash

    if args.threads:
        torch.set_num_threads(args.threads)
    clip = load_clip(folder, check_device(args.device))
    return clip, {"clip": folder.name, "model_hash": model_hash(folder)}


def expand(paths: list[str]) -> list[Path]:
    """The pictures that files and folders stand for, each once, in the order given."""
    from unclip_sample.index import list_pictures

    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found |= dict.fromkeys(path / name for name in list_pictures(path))
        elif path.exists():
            found[path] = None
        else:
            raise RequestError(f"PATH: {path} does not exist")
    if not found:
        raise RequestError(f"PATH: no pictures in {', '.join(paths)}")
    return list(found)


def look_at_all(
    viewer: Viewer, paths: list[Path], args: argparse.Namespace
) -> tuple[Any, list[Path], dict[str, str]]:
    """Embeddings [N, D] of the files that can be read, these files, and why others cannot."""
    import torch

    from unclip_sample import index

    done, rows, readable = index.Report(), [index.empty(viewer).z], []
    for path in bar(args)(paths):
        z_img = index.look_at(viewer, path, str(path), done)
        if z_img is not None:
            rows.append(z_img)
            readable.append(path)
    return torch.cat(rows), readable, done.unreadable


def embed_like(viewer: Viewer, path: str) -> Any:
    """The embedding [1, D] of the picture of --like."""
    from unclip_sample import index

    done = index.Report()
    z_img = index.look_at(viewer, Path(path), path, done)
    if z_img is None:
        raise RequestError(f"--like: cannot read {path} ({done.unreadable[path]})")
    return z_img


def ordered(z_img: Any, z: Any, paths: list[Path], top: int) -> list[dict[str, Any]]:
    """The paths with the highest cosines, best first; equal ones in the order of their names."""
    from unclip.metrics.similarity import clip_score

    if not paths:
        return []
    scores = clip_score(z_img, z.expand(len(z_img), -1)).tolist()
    order = sorted(zip(scores, map(str, paths), strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [{"path": path, "score": score} for score, path in order[:top]]


# What is said


def report(
    facts: dict[str, Any],
    results: list[dict[str, Any]],
    unreadable: dict[str, str],
    args: argparse.Namespace,
) -> int:
    """Print the results, and on stderr the files that cannot be read; 1 when none could."""
    if getattr(args, "sheet", None) and results:
        write_sheet(results, args)
    if args.format == "json":
        broken = [{"path": path, "reason": reason} for path, reason in unreadable.items()]
        print(json.dumps({**facts, "results": results, "unreadable": broken}, indent=2))
    else:
        for line in text_lines(results):
            print(line)
        for path, reason in unreadable.items():
            shown = path.encode("utf-8", "backslashreplace").decode()
            print(f"unclip-rank: cannot read {shown}: {reason}", file=sys.stderr)
    if unreadable:
        total = len(unreadable)
        print(f"unclip-rank: {total} {'file' if total == 1 else 'files'} unread", file=sys.stderr)
    return 0 if results else 1


def text_lines(results: list[dict[str, Any]]) -> Iterable[str]:
    """Results for people, a line each; of a classified picture a line for each text."""
    for number, result in enumerate(results, start=1):
        if "score" in result:
            yield f"{number:4d}  {result['score']:7.4f}  {result['path']}"
            continue
        yield result["path"]
        for text in result["texts"]:
            yield f"  {text['probability']:7.2%}  {text['text']}"


def write_sheet(results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The pictures in their order, each over its score and name."""
    from unclip.pictures import open_picture, to_rgb
    from unclip_sample.contact_sheet import contact_sheet, fit
    from unclip_sample.png import save_png

    pictures, labels = [], []
    for number, result in enumerate(results, start=1):
        with open_picture(result["path"]) as picture:
            pictures.append(fit(to_rgb(picture), 176))
        labels.append(f"{number}  {result['score']:.3f}  {Path(result['path']).name}")
    save_png(contact_sheet(pictures, labels), args.sheet, None, overwrite=args.overwrite)


def check_sheet(args: argparse.Namespace) -> None:
    """Refuse a sheet that could not be written, before any work is done."""
    if args.sheet is None:
        return
    if Path(args.sheet).suffix.lower() != ".png":
        raise OutputError(f"--sheet: give FILE.png, not {args.sheet!r}")
    try:
        plan_outputs(args.sheet, 1, args.overwrite)
    except OutputError as error:
        raise OutputError(str(error).replace("--output", "--sheet", 1)) from None
    if not Path(args.sheet).absolute().parent.is_dir():
        raise OutputError(f"--sheet: there is no folder {Path(args.sheet).parent}")


def check_text(option: str, text: str) -> None:
    """Refuse a text that says nothing."""
    if not text.strip():
        raise RequestError(f"{option} is empty: say what to look for")


def bar(args: argparse.Namespace) -> Any:
    """A progress bar around what is read: on a terminal, unless --quiet."""
    from tqdm import tqdm

    disable = True if args.quiet else None  # None: silent where stderr is no terminal
    return lambda items: tqdm(items, desc="looking", unit="picture", disable=disable, leave=False)


if __name__ == "__main__":
    sys.exit(main())
