"""Curves of runs, from their log.jsonl, as SVG files of docs/training.

    python docs/draw_curves.py runs/emoji/prior runs/emoji/decoder --output docs/training

For every run: the training loss, and what was measured on held-out samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from unclip_sample.evaluation.plots import svg_of
from unclip_sample.evaluation.results import Plot, Series

LOSSES = {
    "loss": "training",
    "validation/loss": "held out, average",
    "validation_plain/loss": "held out, plain",
}
PLOTS = {  # a plot's name -> its y axis, and lines of log.jsonl with what they are called
    "loss": ("loss", LOSSES),
    "loss-by-timestep": (
        "loss, held out",
        {
            f"validation/loss_t{low}-{low + 199}": f"t {low} to {low + 199}"
            for low in range(0, 1000, 200)
        },
    ),
    "cosine": (
        "cosine of the drawn embedding",
        {
            "validation/cosine_image": "with the true one",
            "validation/cosine_shuffled": "with another picture's",
            "validation/cosine_text": "with the caption's",
            "validation/cosine_truth": "(true one with caption)",
        },
    ),
    "psnr": (
        "PSNR (dB), held out",
        {"validation/psnr": "drawn in 4 steps", "validation/psnr_resized": "resized"},
    ),
    "recall": (
        "share found first, held out",
        {"validation/recall_image": "caption of a picture", "validation/recall_text": "picture"},
    ),
}


def series(lines: list[dict], names: dict[str, str]) -> list[Series]:
    """The points of those that the log has."""
    found = []
    for key, name in names.items():
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            found.append(Series(name, *map(list, zip(*points, strict=True))))
    return found


def main() -> None:
    """Write a file for each run and plot that its log has points of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=Path("docs/training"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for name, (label, names) in PLOTS.items():
            found = series(lines, names)
            if found:
                plot = Plot(f"{run.name}: {label}", "updates", label, found)
                path = args.output / f"{run.name}-{name}.svg"
                path.write_text(svg_of(plot, standalone=True) + "\n", "utf-8")
                print(path)


if __name__ == "__main__":
    main()
