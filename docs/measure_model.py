"""Measure how often CLIP finds the right caption for a drawn picture (R@1, R@5 among 100).

    python docs/measure_model.py --data data/emoji --num-pairs 110

Captions are "<name>, <style> style" of concepts that all families draw; each picture is ranked
against its own caption and 99 of other concepts. The judge is the model's own CLIP, which is no
independent judge: read the figures beside those of the real drawings, which it grades too.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from torch import Tensor

from unclip import UnCLIPPipeline
from unclip_train.data.compose import BACKGROUNDS, over, read_picture
from unclip_train.data.drawings import Drawing, evaluation_drawings, load_drawings

NUM_CAPTIONS = 100


def caption(drawing: Drawing) -> str:
    """The plain caption of a drawing."""
    return f"{drawing.name}, {drawing.style} style"


def recall(z_img: Tensor, z_txt: Tensor, drawings: list[Drawing]) -> dict[str, float]:
    """R@1 and R@5 of pictures [N, D] among the captions [N, D] of all drawings."""
    scores = z_img @ z_txt.T
    rng = np.random.default_rng(0)
    ranks = []
    for i, drawing in enumerate(drawings):
        others = [j for j, other in enumerate(drawings) if other.concept != drawing.concept]
        chosen = rng.choice(others, NUM_CAPTIONS - 1, replace=False)
        ranks.append(int((scores[i, chosen] > scores[i, i]).sum()))
    ranks = np.array(ranks)
    return {"R@1": float((ranks == 0).mean()), "R@5": float((ranks < 5).mean())}


def real_pictures(drawings: list[Drawing]) -> Tensor:
    """The artists' drawings on white, [N, 3, 64, 64] in [-1, 1]."""
    white = BACKGROUNDS["white"]
    pixels = np.stack([over(read_picture(d.path(64), 64), white) for d in drawings])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def drawn_pictures(pipeline: UnCLIPPipeline, drawings: list[Drawing]) -> Tensor:
    """What the model draws for the same captions, [N, 3, 64, 64] in [-1, 1]."""
    drawn = []
    for start in range(0, len(drawings), 10):
        captions = [caption(drawing) for drawing in drawings[start : start + 10]]
        seeds = list(range(start, start + len(captions)))
        drawn.append(pipeline(captions, size=64, seeds=seeds, output_type="pt").images * 2 - 1)
    return torch.cat(drawn)


def main() -> None:
    """Print the figures of seen and of held-out pairs as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--model", help="folder of a model; the embedded one unless given")
    parser.add_argument("--num-pairs", type=int, default=150, help="seen, and held-out, at most")
    args = parser.parse_args()
    pipeline = UnCLIPPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    drawings = load_drawings(args.data)
    held_out = evaluation_drawings(drawings)
    seen = [drawing for drawing in drawings if drawing.shared and not drawing.held_out]
    rng = np.random.default_rng(0)
    for name, pairs in (("seen", seen), ("held out", held_out)):
        count = min(args.num_pairs, len(pairs))
        chosen = [pairs[i] for i in rng.choice(len(pairs), count, replace=False)]
        z_txt = pipeline.encode([caption(drawing) for drawing in chosen]).z_txt
        for kind, pictures in (
            ("real", real_pictures(chosen)),
            ("drawn", drawn_pictures(pipeline, chosen)),
        ):
            z_img = pipeline.encode_images(pictures.split(1))
            figures = recall(z_img, z_txt, chosen)
            print(json.dumps({"pairs": name, "pictures": kind, "number": count, **figures}))


if __name__ == "__main__":
    main()
