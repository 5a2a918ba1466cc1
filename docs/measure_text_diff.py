"""Measure whether text diffs go where they are led: a judge's score of 20 pairs of captions.

    python docs/measure_text_diff.py --judge runs/judge --output strips.png

Each pair is a picture of the first caption led to the second by five even steps of theta, x_T
fixed. The judge, a CLIP that the model never saw, scores every frame against the second caption
(cosine). A line of JSON for each pair, the share of pairs whose score rises from every frame to
the next at the end, and all frames as strips in one PNG.
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip import CLIP, UnCLIPPipeline
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


def scores(judge: CLIP, pictures: Tensor, caption: str) -> list[float]:
    """The judge's cosine of each picture [N, 3, S, S] in [0, 1] with a caption."""
    with torch.no_grad():
        z_txt = judge.encode_text([caption]).z_txt
        z_img = judge.encode_image(pictures * 2 - 1)
    return F.cosine_similarity(z_img, z_txt).tolist()


def rises(values: list[float]) -> bool:
    """Whether every value is larger than the one before."""
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def main() -> None:
    """Draw the strips, print the scores of every pair and the share of pairs that rise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", required=True, help="folder of a CLIP")
    parser.add_argument("--model", help="folder of a model; the embedded one unless given")
    parser.add_argument("--style", default="noto", help="added to each caption; '' for none")
    parser.add_argument("--num-pairs", type=int, default=len(PAIRS))
    parser.add_argument("--num-frames", type=int, default=5)
    parser.add_argument("--max-theta", type=float, default=0.4)
    parser.add_argument("--guidance", type=float, help="of the decoder; the model's unless given")
    parser.add_argument("--steps", type=int, help="of the decoder; the model's unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="PNG of the strips")
    args = parser.parse_args()
    pipeline = UnCLIPPipeline.from_pretrained(args.model, device=args.device)
    pipeline.set_progress_bar_config(disable=True)
    judge = CLIP.from_pretrained(args.judge)
    style = f", {args.style} style" if args.style else ""
    strips, num_rising = [], 0
    for first, second in PAIRS[: args.num_pairs]:
        diff = pipeline.text_diff(
            first + style,
            second + style,
            base=first + style,
            num_frames=args.num_frames,
            max_theta=args.max_theta,
            guidance_scale=args.guidance,
            decoder_num_inference_steps=args.steps,
            seeds=args.seed,
            size=64,
            output_type="pt",
        )
        found = scores(judge, diff.images, second + style)
        num_rising += rises(found)
        rounded = [round(value, 4) for value in found]
        line = {"from": first, "to": second, "scores": rounded, "rises": rises(found)}
        print(json.dumps(line), flush=True)
        strips += finished(diff.images * 2 - 1, "pil")
    count = min(args.num_pairs, len(PAIRS))
    print(json.dumps({"pairs": count, "share_that_rises": round(num_rising / count, 3)}))
    if args.output:
        sheet(strips, args.num_frames).save(args.output)


if __name__ == "__main__":
    main()
