"""Measure what best-of-n gains: CLIP's score of the kept picture, by the model's CLIP and a judge.

    python docs/measure_best_of.py --judge judge/emoji --output docs/guide/best-of.png

For each caption 16 pictures are drawn and scored by the model's own CLIP, as best_of does. Best of
k is the mean over the 16 / k groups of k in the order they were drawn, so that every picture counts
for every k. A line of JSON for each k: the mean score of what is kept and its gain over best of 1,
with the bootstrap's 95 % interval over captions, drawn in pairs. A judge that took no part in the
choice says whether the gain is one in the eyes of others. The PNG shows, a row for each of some
captions: the first picture drawn, then the best of 4 and of 16, then the last of 16.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from measuring import add_drawing_words, judged, parser_of, quiet_pipeline
from torch import Tensor

from unclip import CLIP
from unclip.metrics.intervals import bootstrap_interval, paired_difference
from unclip.pipeline.output import finished
from unclip_sample.frames import sheet

CAPTIONS = (
    *("a red apple", "a banana", "a lemon", "a red heart", "a blue heart", "a sunflower"),
    *("a smiling face", "a crying face", "a cat face", "a dog face", "a panda", "a penguin"),
    *("a rocket", "an airplane", "a sailboat", "a red car", "a bicycle", "a house"),
    *("a star", "a full moon", "a snowman", "an umbrella", "a book", "a birthday cake"),
)
NUM_DRAWN = 16
NUM_KEPT = (1, 2, 4, 8, 16)


def chosen_scores(own: Tensor, others: Tensor, k: int) -> Tensor:
    """others [16] of the pictures that own [16] puts first in each group of k, averaged."""
    groups = own.view(-1, k)
    rows = torch.arange(len(groups)) * k + groups.argmax(dim=1)
    return others[rows].mean()


def figures(own: Tensor, judges: Tensor | None) -> list[dict[str, object]]:
    """The figures of every k from scores [N, 16], in the order of drawing."""
    lines = []
    for k in NUM_KEPT:
        line: dict[str, object] = {"best_of": k, "captions": len(own)}
        for name, scores in (("clip", own), ("judge", judges)):
            if scores is None:
                continue
            kept, first = (
                torch.stack([chosen_scores(a, b, n) for a, b in zip(own, scores, strict=True)])
                for n in (k, 1)
            )
            line[name] = round(kept.mean().item(), 4)
            line[f"{name}_interval"] = [round(end, 4) for end in bootstrap_interval(kept)]
            gain = paired_difference(kept, first)
            line[f"{name}_gain"] = [round(value, 4) for value in gain]
        lines.append(line)
    return lines


def main() -> None:
    """Draw and score, print the figures, and write the pictures."""
    parser = parser_of(__doc__)
    parser.add_argument("--judge", help="folder of a CLIP that takes no part in the choice")
    parser.add_argument("--captions", nargs="+", default=list(CAPTIONS))
    parser.add_argument("--batch-size", type=int, default=NUM_DRAWN)
    parser.add_argument("--rows", type=int, default=6, help="captions that the PNG shows")
    add_drawing_words(parser)
    args = parser.parse_args()
    pipeline = quiet_pipeline(args)
    judge = None if args.judge is None else CLIP.from_pretrained(args.judge)
    style = f", {args.style} style" if args.style else ""
    own, others, rows = [], [], []
    for caption in args.captions:
        drawn = pipeline(
            caption + style,
            decoder_num_inference_steps=args.steps,
            num_images_per_prompt=NUM_DRAWN,
            max_batch_size=args.batch_size,
            seeds=0,
            size=64,
            output_type="pt",
        )
        pictures = drawn.images
        z_img = pipeline.encode_images((pictures * 2 - 1).split(1))  # as best_of scores them
        scores = F.cosine_similarity(z_img, drawn.text_embeds.z_txt)
        own.append(scores)
        if judge is not None:
            others.append(judged(judge, pictures, caption + style))
        print(json.dumps({"caption": caption, "clip": [round(s.item(), 4) for s in scores]}))
        shown = [0, scores[:4].argmax().item(), scores.argmax().item(), scores.argmin().item()]
        rows += finished(pictures[shown] * 2 - 1, "pil") if len(own) <= args.rows else []
    for line in figures(torch.stack(own), torch.stack(others) if others else None):
        print(json.dumps(line), flush=True)
    if args.output:
        sheet(rows, 4).save(args.output)


if __name__ == "__main__":
    main()
