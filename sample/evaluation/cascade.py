"""Whether the largest pictures have the edges of real ones, and the colours of the smallest."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.metrics.cascade import LEAST_SIDE, NUM_OCTAVES, colour_shift, gradient_spectrum
from unclip.metrics.intervals import paired_ratio
from unclip_sample.evaluation.bench import Bench, with_interval
from unclip_sample.evaluation.results import Cell, Column, Gallery, Section, Table
from unclip_sample.evaluation.sources import Example, example_of

QUESTION = (
    "The same captions and seeds at every size. Do the upsamplers keep the colours of the small "
    "picture, and are the edges of the largest as sharp as those of real drawings of its size?"
)
SHIFT = Column("colour shift, mean", digits=2, better="lower")
MOST = Column("largest", digits=2, better="lower")
EDGES_NOTE = (
    "Amplitude of the gradient's magnitude by octave of frequency, drawn over real; 1 is as sharp "
    "as real ones, less is blurred, more is grain. Periods a side; the interval is over captions. "
    "What is enlarged from real pictures shows what the upsamplers alone do."
)


def cascade(bench: Bench) -> Section:
    """Colour shift between the sizes that a model draws, and the edges of the largest."""
    examples = bench.choose(bench.best_group, "cascade")
    drawn = {
        side: bench.draw([bench.sample(e.caption, size=side) for e in examples], f"cascade {side}")
        for side in sides_of(bench)
    }
    pictures = {side: stacked([d.pixels for d in row]) for side, row in drawn.items()}
    smallest, largest = min(drawn), max(drawn)
    rows: list[list[Cell]] = []
    for side in sorted(drawn)[1:]:
        shift = colour_shift(pictures[smallest], pictures[side])
        rows.append([f"{smallest} to {side}", with_interval(shift), float(shift.max())])
    section = Section("cascade", f"From {smallest} to {largest} pixels", QUESTION)
    if rows:
        columns = [Column("of 256 levels", "text"), SHIFT, MOST]
        section.tables.append(Table("Colours", columns, rows))
    if (real := real_pictures(examples, largest)) is not None and largest >= LEAST_SIDE:
        compared = {"drawn": pictures[largest]} | enlarged(bench, examples, sorted(drawn))
        section.tables.append(edges(compared, real))
    shown = range(min(6, len(examples)))
    section.galleries.append(
        Gallery(
            "",
            [],
            [(f"{side} pixels", [drawn[side][i].path for i in shown]) for side in sorted(drawn)],
        )
    )
    return section


def sides_of(bench: Bench) -> list[int]:
    """The sizes that the model's stages draw, whatever size the report is of."""
    from unclip.pipeline.arguments import check_size

    return sorted(check_size(None, bench.studio.pipeline.components).values())


def real_pictures(examples: list[Example], side: int) -> Tensor | None:
    """The real drawings [N, S, S, 3] of this size; None where one of them was not rendered."""
    if any(e.drawing is None or not e.drawing.path(side).is_file() for e in examples):
        return None
    return stacked([example_of(e.drawing, side).pixels() for e in examples])


def enlarged(bench: Bench, examples: list[Example], sides: list[int]) -> dict[str, Tensor]:
    """Real pictures of the smaller sides, where there are, made as large as the largest.

    By what they are enlarged from, as a column of edges() says it: [N, S, S, 3] each.
    """
    *smaller, largest = sides
    seeds = [bench.seed_of(example.caption, 0) for example in examples]
    made = {}
    for side in smaller:
        real = real_pictures(examples, side)
        if real is None:
            continue
        images = [Image.fromarray(pixels.numpy()) for pixels in real]
        large = bench.studio.pipeline.upscale(images, size=largest, seeds=seeds).images
        made[f"real of {side}"] = stacked([np.asarray(image.convert("RGB")) for image in large])
    return made


def edges(compared: dict[str, Tensor], real: Tensor) -> Table:
    """How sharp pictures [N, S, S, 3] are beside real ones of the same captions, by octave."""
    theirs = gradient_spectrum(real)  # [N, K]
    ours = [gradient_spectrum(pictures) for pictures in compared.values()]
    rows: list[list[Cell]] = []
    for k in range(NUM_OCTAVES):
        top = real.shape[1] // 2 ** (k + 1)
        ratios = [paired_ratio(spectrum[:, k], theirs[:, k]) for spectrum in ours]
        cells = [{"value": r.ratio, "low": r.low, "high": r.high} for r in ratios]
        rows.append([f"{top // 2} to {top}", *cells])
    columns = [Column("frequency", "text"), *(Column(f"{name} / real") for name in compared)]
    return Table("Edges", columns, rows, EDGES_NOTE)


def stacked(pictures: list[np.ndarray]) -> Tensor:
    """Pictures, each [S, S, 3] uint8, as [N, S, S, 3]."""
    return torch.from_numpy(np.stack(pictures))
