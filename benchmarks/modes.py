"""What fewer steps cost: modes of a model beside its many-step mode, in quality and in time.

    python benchmarks/modes.py --data data/emoji --judge judge/emoji
    python benchmarks/modes.py --data data/emoji --judge judge/emoji --only many default reuse-2

Every mode draws the same captions with the same seeds at 64 pixels. The judge, a CLIP that belongs
to no model, finds each caption among a hundred (R@1), and says how far the pictures lie from real
ones (CMMD). A mode is as good where the interval of its difference, captions drawn again in pairs,
reaches 0. Seconds are those of one picture of 1024 pixels, medians of --runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from unclip import UnCLIPPipeline
from unclip.metrics.cmmd import cmmd
from unclip.metrics.intervals import paired_difference
from unclip.pipeline.folder import check_folder
from unclip_sample.evaluation.bench import Bench, with_interval
from unclip_sample.evaluation.judge import Judge
from unclip_sample.evaluation.sources import Example, open_data
from unclip_sample.evaluation.studio import Studio

UPSAMPLERS = ("upsampler_256", "upsampler_1024")


def mode(prior=None, decoder=None, sampler=None, upsamplers=(None, None), **stage) -> dict:
    """Arguments of the pipeline: steps by stage, and settings of the decoder."""
    chosen = {"scheduler": sampler, **stage}
    steps = {"prior": prior, "decoder": decoder, **dict(zip(UPSAMPLERS, upsamplers, strict=True))}
    return {
        **{f"{name}_num_inference_steps": value for name, value in steps.items()},
        "stages": {"decoder": {key: value for key, value in chosen.items() if value is not None}},
    }


MODES = {
    # Ancestral sampling throughout, and DDIM with the paper's lists in the upsamplers.
    "many": mode(64, 100, "ddpm", ("ddim27", "ddim15")),
    "default": mode(),
    **{
        f"{sampler}-{steps}": mode(25, steps, sampler)
        for sampler in ("dpm++", "unipc", "ddim")
        for steps in (30, 20, 14, 10, 7)
    },
    **{f"prior-{steps}": mode(steps) for steps in (50, 12, 6)},
    **{f"reuse-{steps}": mode(reuse=steps) for steps in (2, 3)},
    "interval": mode(guidance_interval=(200, 900)),
}
NUM_REDRAWN = 400  # times that captions are drawn again for an interval of CMMD


def pictures(pipe: UnCLIPPipeline, examples: list[Example], bench: Bench, arguments: dict):
    """One picture [64, 64, 3] uint8 of each caption, sixteen at a time."""
    drawn: list[np.ndarray] = []
    for start in range(0, len(examples), 16):
        captions = [example.caption for example in examples[start : start + 16]]
        seeds = [bench.seed_of(caption, 0) for caption in captions]
        images = pipe(captions, seeds=seeds, size=64, **arguments).images
        drawn += [np.asarray(image) for image in images]
    return drawn


def cmmd_difference(z: torch.Tensor, other: torch.Tensor, real: torch.Tensor) -> tuple:
    """CMMD of z less that of the other, each [N, D], and its interval over captions."""
    generator = torch.Generator().manual_seed(0)

    def difference(rows: torch.Tensor) -> float:
        return cmmd(z[rows], real) - cmmd(other[rows], real)

    draws = sorted(
        difference(torch.randint(len(z), (len(z),), generator=generator))
        for _ in range(NUM_REDRAWN)
    )
    ends = draws[int(0.025 * NUM_REDRAWN)], draws[int(0.975 * NUM_REDRAWN)]
    return (difference(torch.arange(len(z))), *ends)


def seconds_of(pipe: UnCLIPPipeline, arguments: dict, runs: int) -> float:
    """Median seconds of one picture, as large as the model draws."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        pipe("a red apple", seeds=0, **arguments)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Print a row for each mode as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="drawings of 64 pixels")
    parser.add_argument("--judge", required=True, help="folder of a CLIP")
    parser.add_argument("--model", help="folder of a model; the embedded one unless given")
    parser.add_argument("--styles", nargs="+", help="of the captions; the data's unless given")
    parser.add_argument("--captions", type=int, default=96)
    parser.add_argument("--only", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--runs", type=int, default=3, help="0 measures no seconds")
    args = parser.parse_args()
    folder = check_folder(args.model)
    pipe = UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    judge = Judge.load(args.judge, pipe, folder, "cpu")
    source = open_data(args.data, 64, args.styles)
    studio = Studio(pipe, folder.name, "", Path("."), 64)
    bench = Bench(studio, judge, source, 0, {"modes": args.captions})
    examples = bench.choose(bench.best_group, "modes")

    rows, seen, verdicts = {}, {}, {}
    for name in dict.fromkeys(["many", *args.only]):
        arguments = MODES[name]
        seen[name] = judge.see(pictures(pipe, examples, bench, arguments))
        verdicts[name] = bench.verdicts(seen[name], examples)
        found = {key: with_interval(verdicts[name][key]) for key in ("R@1", "CLIP score")}
        found["CMMD"] = cmmd(seen[name], bench.reference)
        for key in ("R@1", "CLIP score"):
            less = paired_difference(verdicts[name][key], verdicts["many"][key])
            found[f"{key} less that of many"] = list(less)
        found["CMMD less that of many"] = cmmd_difference(seen[name], seen["many"], bench.reference)
        if args.runs:
            found["seconds"] = seconds_of(pipe, arguments, args.runs)
        rows[name] = found
        print(name, json.dumps(found), file=sys.stderr, flush=True)
    for found in rows.values():
        if args.runs:
            found["times as fast as many"] = rows["many"]["seconds"] / found["seconds"]
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
