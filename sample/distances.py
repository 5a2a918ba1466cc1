"""How far drawn pictures lie from real ones, folder against folder.

By the features of Inception (FID, KID, Inception Score, precision and recall, as published figures
are made) or of a CLIP (CMMD, and the same distances among its embeddings). What is said names the
extractor, the resize and the numbers of pictures: without these three, figures do not compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_sample.cli import check_device, count, seed
from unclip_sample.outputs import OutputError
from unclip_sample.request import RequestError

if TYPE_CHECKING:
    from PIL import Image

    from unclip_sample.inception import Features

KID_SUBSET = 1000
LEAST_FOR_IS = 10  # pictures: one a split


# What is measured


def measure(real: Features, drawn: Features) -> dict[str, Any]:
    """All that the features of real [N, D] and drawn [M, D] pictures allow.

    FID is left out, with the reason, where there are too few pictures for it; the Inception Score
    is that of the drawn pictures.
    """
    from unclip.metrics.frechet import frechet_distance
    from unclip.metrics.inception import inception_score
    from unclip.metrics.kid import kernel_distance_of_subsets
    from unclip.metrics.precision_recall import precision_recall

    x, y = real.features, drawn.features
    said: dict[str, Any] = {}
    try:
        said["FID"] = frechet_distance(x, y)
    except ValueError as error:
        reason = str(error).replace("x:", "real:", 1).replace("y:", "drawn:", 1)
        if "too few" not in reason:
            raise
        said |= {"FID": None, "FID left out": reason}
    size = min(KID_SUBSET, len(x), len(y))
    kid = kernel_distance_of_subsets(x, y, subset_size=size)
    said["KID"] = {"mean": kid.mean, "std": kid.std, "subset_size": size}
    found = precision_recall(x, y)
    said |= {"precision": found.precision, "recall": found.recall}
    if drawn.probabilities is not None and len(y) >= LEAST_FOR_IS:
        score = inception_score(drawn.probabilities)
        said["Inception Score"] = {"mean": score.mean, "std": score.std}
    return said


def measure_clip(real: Features, drawn: Features) -> dict[str, Any]:
    """CMMD beside what measure() finds among CLIP embeddings."""
    from unclip.metrics.cmmd import cmmd

    return {"CMMD": cmmd(real.features, drawn.features), **measure(real, drawn)}


# The pictures


def list_folder(option: str, folder: str, num_most: int | None = None) -> list[Path]:
    """The pictures of a folder, at least 4, which precision and recall need.

    Raises:
        RequestError: when there is no such folder, or it holds fewer.
    """
    from unclip_sample.index import list_pictures

    if not Path(folder).is_dir():
        raise RequestError(f"{option}: {folder} is no folder; name one of pictures")
    names = list_pictures(Path(folder))[:num_most]
    if len(names) < 4:
        raise RequestError(f"{option}: {folder} holds {len(names)} pictures; give at least 4")
    return [Path(folder, name) for name in names]


def opened(option: str, paths: Iterable[Path]) -> Iterator[Image.Image]:
    """Pictures one after another; one that cannot be read stops the run, since it would count."""
    from unclip.pictures import PictureError, open_picture

    for path in paths:
        try:
            with open_picture(path) as picture:
                yield picture
        except (PictureError, OSError) as error:
            raise RequestError(f"{option}: cannot read {path} ({error})") from None


def clip_features(clip: Any, pictures: Iterable[Image.Image], size: int) -> Features:
    """CLIP's embeddings of pictures brought to `size` as for Inception."""
    from unclip_sample.encoder import embed_pictures
    from unclip_sample.inception import Features, square

    return Features(embed_pictures(clip, (square(picture, size) for picture in pictures)), None)


# The words


def add_distances(parser: argparse.ArgumentParser) -> None:
    """Options of the word that compares two folders."""
    parser.add_argument("--real", required=True, metavar="FOLDER", help="the reference set, whole")
    parser.add_argument("--drawn", required=True, metavar="FOLDER", help="pictures of a model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--inception", metavar="FILE.pth", help="weights; as published figures need")
    which.add_argument("--clip", metavar="FOLDER", help="a CLIP, or a model; the embedded one")
    parser.add_argument("--size", type=count, default=256, metavar="N", help="of pictures; 256")
    parser.add_argument("--num", type=count, metavar="N", help="drawn pictures at most")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the report")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--threads", type=count, metavar="N", help="of the CPU")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    parser.set_defaults(run=run_distances)


def add_coco_captions(parser: argparse.ArgumentParser) -> None:
    """Options of the word that draws the captions of COCO-30k."""
    parser.add_argument("--annotations", required=True, metavar="captions_val2014.json")
    parser.add_argument("--output", required=True, metavar="FILE.txt", help="a caption a line")
    parser.add_argument("--num", type=count, default=30_000, metavar="N", help="30000")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the choice")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    parser.set_defaults(run=run_coco_captions)


def run_distances(args: argparse.Namespace) -> int:
    """Compare the folders and say how."""
    real, drawn = list_folder("--real", args.real), list_folder("--drawn", args.drawn, args.num)
    device = check_device(args.device)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    look, compare, facts = looker(args, device)
    x = look(opened("--real", bar(real, "real", args)))
    y = look(opened("--drawn", bar(drawn, "drawn", args)))
    said = {**compare(x, y), **facts, "num_real": len(real), "num_drawn": len(drawn)}
    print(json.dumps(said, indent=2) if args.format == "json" else "\n".join(text_lines(said)))
    return 0


def looker(
    args: argparse.Namespace, device: Any
) -> tuple[Callable[[Iterable], Features], Callable[[Features, Features], dict], dict[str, str]]:
    """What looks at pictures, what compares, and what is said of both."""
    from unclip_sample import inception

    if args.inception is not None:
        extractor = inception.load_inception(Path(args.inception), device)
        facts = {"extractor": inception.NAME, "resize": inception.RESIZE.format(size=args.size)}
        return lambda pictures: inception.extract(extractor, pictures, args.size), measure, facts
    from unclip.pipeline.folder import model_hash
    from unclip_sample.encoder import find_clip, load_clip

    folder = find_clip(args.clip)
    clip = load_clip(folder, device)
    resize = f"central square, antialiased bicubic to {args.size}; the CLIP's own after it"
    facts = {"extractor": f"CLIP {model_hash(folder)}", "resize": resize}
    return lambda pictures: clip_features(clip, pictures, args.size), measure_clip, facts


def run_coco_captions(args: argparse.Namespace) -> int:
    """Write the captions of COCO-30k, for unclip-sample --prompts."""
    from unclip_sample.coco import choose_captions, read_captions
    from unclip_sample.writing import write_whole

    captions = choose_captions(read_captions(Path(args.annotations)), args.num, args.seed)
    try:
        write_whole(Path(args.output), "".join(f"{c}\n" for c in captions).encode(), False)
    except OSError as error:
        raise OutputError(f"--output: cannot write {args.output} ({error.strerror})") from None
    print(f"wrote {len(captions)} captions to {args.output}")
    return 0


def text_lines(said: dict[str, Any]) -> Iterator[str]:
    """The report for people, a line a figure."""
    for name, value in said.items():
        if isinstance(value, dict):
            spread = f"{value['mean']:.6g} +- {value['std']:.2g}"
            rest = [f"{key} {v}" for key, v in value.items() if key not in ("mean", "std")]
            yield f"{name}: {', '.join([spread, *rest])}"
        elif value is not None:
            yield f"{name}: {f'{value:.6g}' if isinstance(value, float) else value}"


def bar(paths: Sequence[Path], name: str, args: argparse.Namespace) -> Iterable[Path]:
    """A progress bar, on a terminal, unless --quiet."""
    from tqdm import tqdm

    disable = True if args.quiet else None
    return tqdm(paths, desc=name, unit="picture", disable=disable, leave=False, file=sys.stderr)
