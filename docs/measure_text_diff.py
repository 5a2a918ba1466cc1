"""Measure whether text diffs go where they are led: a judge's score of 20 pairs of captions.

    python docs/measure_text_diff.py --judge runs/judge --output strips.png

Each pair is a picture of the first caption led to the second by five even steps of theta, x_T
fixed. The judge, a CLIP that the model never saw, scores every frame against the second caption
(cosine), the mean of --num-seeds pictures. A line of JSON for each pair; at the end the share of
pairs whose score rises from every frame to the next, the share that ends higher than it began, and
the mean gain with its 95 % interval over pairs; and all frames as strips in one PNG, two pairs a
row.
"""

from __future__ import annotations

import json

import torch
from measuring import add_drawing_words, judged, parser_of, quiet_pipeline

from unclip import CLIP
from unclip.metrics.intervals import bootstrap_interval
from unclip.pipeline.output import finished
from unclip_sample.frames import sheet

PAIRS = (
    ("a red apple", "a green apple"),
    ("a red heart", "a blue heart"),
    ("a red heart", "a yellow heart"),
    ("a green heart", "a purple heart"),
    ("a red circle", "a green circle"),
    ("a blue circle", "an orange circle"),
    ("a blue square", "a red square"),
    ("a blue book", "a green book"),
    ("a grinning face", "a crying face"),
    ("a smiling face", "an angry face"),
    ("a cat face", "a dog face"),
    ("a horse face", "a unicorn"),
    ("a full moon", "a crescent moon"),
    ("a sun", "a cloud"),
    ("a lemon", "a tangerine"),
    ("a rose", "a sunflower"),
    ("a red wine glass", "a beer mug"),
    ("a closed umbrella", "an umbrella with rain drops"),
    ("a red automobile", "a blue car"),
    ("a locked padlock", "an unlocked padlock"),
)


def rises(values: list[float]) -> bool:
    """Whether every value is larger than the one before."""
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def summary(found: list[list[float]], num_seeds: int) -> dict[str, object]:
    """The figures of all pairs from the scores of each."""
    gains = torch.tensor([values[-1] - values[0] for values in found])
    return {
        "pairs": len(found),
        "pictures_a_frame": num_seeds,
        "share_that_rises": round(sum(map(rises, found)) / len(found), 3),
        "share_that_ends_higher": round((gains > 0).double().mean().item(), 3),
        "mean_gain": round(gains.mean().item(), 4),
        "interval": [round(end, 4) for end in bootstrap_interval(gains)],
    }


def main() -> None:
    """Draw the strips, print the scores of every pair and the figures of all."""
    parser = parser_of(__doc__)
    parser.add_argument("--judge", required=True, help="folder of a CLIP")
    parser.add_argument("--num-pairs", type=int, default=len(PAIRS))
    parser.add_argument("--num-frames", type=int, default=5)
    parser.add_argument("--max-theta", type=float, default=0.4)
    parser.add_argument("--guidance", type=float, help="of the decoder; the model's unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-seeds", type=int, default=1, help="pictures of every frame")
    add_drawing_words(parser)
    args = parser.parse_args()
    pipeline = quiet_pipeline(args)
    judge = CLIP.from_pretrained(args.judge)
    style = f", {args.style} style" if args.style else ""
    strips, found = [], []
    for first, second in PAIRS[: args.num_pairs]:
        drawn = []
        for seed in range(args.seed, args.seed + args.num_seeds):
            diff = pipeline.text_diff(
                first + style,
                second + style,
                base=first + style,
                num_frames=args.num_frames,
                max_theta=args.max_theta,
                guidance_scale=args.guidance,
                decoder_num_inference_steps=args.steps,
                seeds=seed,
                size=64,
                output_type="pt",
            )
            drawn.append(judged(judge, diff.images, second + style))
            strips += finished(diff.images * 2 - 1, "pil") if seed == args.seed else []
        found.append(torch.stack(drawn).mean(dim=0).tolist())
        rounded = [round(value, 4) for value in found[-1]]
        line = {"from": first, "to": second, "scores": rounded, "rises": rises(found[-1])}
        print(json.dumps(line), flush=True)
    print(json.dumps(summary(found, args.num_seeds)))
    if args.output:
        sheet(strips, 2 * args.num_frames).save(args.output)


if __name__ == "__main__":
    main()
