"""How far drawn pictures lie from real ones, folder against folder.

By the features of Inception (FID, KID, Inception Score, precision and recall, as published figures
are made) or of a CLIP (CMMD, and FID's and KID's distances among its embeddings). What is said
names the extractor, the resize and the numbers of pictures: without these three, figures do not
compare. What a network has seen of a folder is kept in the user's cache, so that a run which is
stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_sample.cli import check_device
from unclip_sample.outputs import OutputError
from unclip_sample.request import RequestError
from unclip_sample.words import count, seed

if TYPE_CHECKING:
    from torch import Tensor

    from unclip_sample.index import Viewer

KID_SUBSET = 1000
LEAST_FOR_IS = 10  # pictures: one a split
LEAST_PICTURES = 4  # precision and recall look for the third neighbour


# What is measured


def measure(real: Tensor, drawn: Tensor, frechet: str, kernel: str) -> dict[str, Any]:
    """What the features of real [N, D] and drawn [M, D] pictures allow.

    frechet, kernel: what the two distances are called: FID and KID are names for Inception's. The
    first is left out, with the reason, where there are too few pictures for it.
    """
    from unclip.metrics.frechet import frechet_distance
    from unclip.metrics.kid import kernel_distance_of_subsets
    from unclip.metrics.precision_recall import precision_recall

    said: dict[str, Any] = {}
    try:
        said[frechet] = frechet_distance(real, drawn)
    except ValueError as error:
        if "too few" not in str(error):
            raise
        reason = str(error).replace("x:", "real:", 1).replace("y:", "drawn:", 1)
        said |= {frechet: None, f"{frechet} left out": reason}
    size = min(KID_SUBSET, len(real) // 2, len(drawn) // 2)  # halves, so that the spread says much
    kid = kernel_distance_of_subsets(real, drawn, subset_size=size)
    said[kernel] = {"mean": kid.mean, "std": kid.std, "subset_size": size}
    found = precision_recall(real, drawn)
    return {**said, "precision": found.precision, "recall": found.recall}


def measure_inception(real: Tensor, drawn: Tensor) -> dict[str, Any]:
    """FID, KID, precision and recall, and the drawn pictures' IS; both [N, 2048 + 1008]."""
    import torch

    from unclip.metrics.inception import inception_score
    from unclip_sample.inception import features_and_probabilities

    (x, _), (y, probabilities) = map(features_and_probabilities, (real, drawn))
    said = measure(x, y, "FID", "KID")
    if len(y) >= LEAST_FOR_IS:
        # Files stand in the order of their names; a split must not be a kind of picture.
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        score = inception_score(probabilities[order])
        said["Inception Score"] = {"mean": score.mean, "std": score.std}
    return said


def measure_clip(real: Tensor, drawn: Tensor) -> dict[str, Any]:
    """CMMD, as published and without bias, and the distances of FID and KID; both [N, D]."""
    from unclip.metrics.cmmd import cmmd

    said = {"CMMD": cmmd(real, drawn), "CMMD unbiased": cmmd(real, drawn, unbiased=True)}
    return said | measure(real, drawn, "Frechet distance", "kernel distance")


# The pictures


def look_at_folder(option: str, folder: str, viewer: Viewer, args: argparse.Namespace) -> Tensor:
    """What a viewer says of all pictures of a folder, [N, width], N >= 4; remembered for next time.

    Raises:
        RequestError: when there is no such folder, it holds fewer pictures, or one of them cannot
            be read, which would change what is measured.
    """
    from unclip_sample import index

    if not Path(folder).is_dir():
        raise RequestError(f"{option}: {folder} is no folder; name one of pictures")
    path = index.default_path(Path(folder), viewer)
    found, done = index.update(path, Path(folder), viewer, bar(option, args))
    if done.unreadable:
        name, reason = next(iter(done.unreadable.items()))
        more = f"; {len(done.unreadable)} in all" if len(done.unreadable) > 1 else ""
        raise RequestError(f"{option}: cannot read {Path(folder, name)} ({reason}){more}")
    if len(found.files) < LEAST_PICTURES:
        raise RequestError(
            f"{option}: {folder} holds {len(found.files)} pictures; give {LEAST_PICTURES} or more"
        )
    return found.z


# The words


def add_distances(parser: argparse.ArgumentParser) -> None:
    """Options of the word that compares two folders."""
    parser.add_argument("--real", required=True, metavar="FOLDER", help="the reference set, whole")
    parser.add_argument("--drawn", required=True, metavar="FOLDER", help="pictures of a model")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--inception", metavar="FILE.pth", help="weights; as published figures need")
    which.add_argument("--clip", metavar="FOLDER", help="a CLIP, or a model; the embedded one")
    parser.add_argument(
        "--size", type=count, default=256, metavar="N", help="of pictures before Inception; 256"
    )
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
    device = check_device(args.device)
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    viewer, compare, facts = viewer_asked_for(args, device)
    real = look_at_folder("--real", args.real, viewer, args)
    drawn = look_at_folder("--drawn", args.drawn, viewer, args)
    said = {**compare(real, drawn), **facts, "num_real": len(real), "num_drawn": len(drawn)}
    print(json.dumps(said, indent=2) if args.format == "json" else "\n".join(text_lines(said)))
    return 0


def viewer_asked_for(
    args: argparse.Namespace, device: Any
) -> tuple[Viewer, Callable[[Tensor, Tensor], dict[str, Any]], dict[str, str]]:
    """What looks at pictures, what compares, and what is said of both."""
    from unclip_sample import inception

    if args.inception is not None:
        viewer = inception.inception_viewer(Path(args.inception), args.size, device)
        facts = {"extractor": inception.NAME, "resize": inception.RESIZE.format(size=args.size)}
        return viewer, measure_inception, facts
    from unclip.pipeline.folder import model_hash
    from unclip_sample.encoder import find_clip, load_clip
    from unclip_sample.index import viewer_of

    folder = find_clip(args.clip)
    digest = model_hash(folder)
    facts = {"extractor": f"CLIP {digest}", "resize": "central square, the CLIP's own"}
    return viewer_of(load_clip(folder, device), digest), measure_clip, facts


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


def bar(option: str, args: argparse.Namespace) -> Callable[[Iterable[str]], Iterable[str]]:
    """A progress bar around what is looked at: on a terminal, unless --quiet."""
    from tqdm import tqdm

    name, disable = option.strip("-"), True if args.quiet else None
    return lambda names: tqdm(names, name, unit="picture", disable=disable, leave=False)
