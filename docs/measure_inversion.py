"""Measure how well drawings come back from their latents: PSNR, and the spread of x_T.

    python docs/measure_inversion.py --data data/emoji --num-drawings 50

Held-out drawings of 64 pixels on white are inverted by DDIM with their z_img and the empty text
(guidance 1, float32, no clipping) and decoded again with eta 0. A line of JSON for each number of
steps: PSNR in dB of pixels in [0, 1], as floats, and the standard deviation of x_T, which is 1 for
noise that the decoder would be given.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch
from measuring import parser_of, quiet_pipeline
from torch import Tensor

from unclip import UnCLIPPipeline
from unclip_train.data.compose import over, read_picture
from unclip_train.data.drawings import evaluation_drawings, load_drawings
from unclip_train.data.vocabulary import BACKGROUNDS

PEAK_DB = 150.0  # what float32 can tell apart; a picture that comes back to the bit has no PSNR


def held_out_drawings(data: str, style: str | None, count: int) -> Tensor:
    """Some held-out drawings on white, [N, 3, 64, 64] in [0, 1], the same at every call."""
    drawings = [d for d in evaluation_drawings(load_drawings(data)) if style in (None, d.style)]
    order = np.random.default_rng(0).permutation(len(drawings))[:count]
    white = BACKGROUNDS["white"]
    pixels = [over(read_picture(drawings[i].path(64), 64), white) for i in order]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def psnr(found: Tensor, true: Tensor) -> Tensor:
    """-10 log10 of the mean squared error of each picture [N, 3, S, S] in [0, 1]."""
    error = (found - true).double().square().mean(dim=(1, 2, 3))
    return (-10 * error.log10()).clamp(max=PEAK_DB)


def measure(
    pipeline: UnCLIPPipeline, pictures: Tensor, steps: int, refinements: int, batch_size: int
) -> dict[str, float]:
    """The figures of one number of steps."""
    start, figures, spreads = time.perf_counter(), [], []
    for batch in pictures.split(batch_size):
        latents = pipeline.invert(
            batch, decoder_num_inference_steps=steps, num_refinements=refinements
        )
        again = pipeline.decode(
            *latents, decoder_num_inference_steps=steps, seeds=0, size=64, output_type="pt"
        )
        figures.append(psnr(again.images, batch))
        spreads.append(latents.x_T.std(dim=(1, 2, 3)))
    figures, spreads = torch.cat(figures), torch.cat(spreads)
    return {
        "steps": steps,
        "refinements": refinements,
        "drawings": len(pictures),
        "psnr_db": round(figures.mean().item(), 2),
        "psnr_db_lowest": round(figures.min().item(), 2),
        "share_from_30_db": round((figures >= 30).double().mean().item(), 3),
        "x_T_std": round(spreads.mean().item(), 3),
        "x_T_std_lowest": round(spreads.min().item(), 3),
        "x_T_std_highest": round(spreads.max().item(), 3),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Print the figures of every number of steps and of refinements."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--style", help="noto, twemoji, fluent or flat; all unless given")
    parser.add_argument("--num-drawings", type=int, default=50)
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50, 100, 250])
    parser.add_argument("--refinements", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--batch-size", type=int, default=10)
    args = parser.parse_args()
    pipeline = quiet_pipeline(args)
    pictures = held_out_drawings(args.data, args.style, args.num_drawings)
    for refinements in args.refinements:
        for steps in args.steps:
            figures = measure(pipeline, pictures, steps, refinements, args.batch_size)
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
