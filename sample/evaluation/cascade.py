"""Whether the largest pictures have the edges of real ones, and the colours of the smallest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unclip.metrics.cascade import LEAST_SIDE, NUM_OCTAVES, colour_shift, gradient_spectrum
from unclip.metrics.intervals import bootstrap_interval
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
    "as real ones, less is blurred, more is grain. Periods a side; the interval is over captions."
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
    section.tables += edges(pictures[largest], real_pictures(examples, largest))
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


def edges(drawn: Tensor, real: Tensor | None) -> list[Table]:
    """How sharp drawn pictures are beside real ones, by octave; nothing without real ones."""
    if real is None or drawn.shape[1] < LEAST_SIDE:
        return []
    ours, theirs = gradient_spectrum(drawn), gradient_spectrum(real)  # [N, K]
    # one caption's drawing may have more edges than its real one: compare the sums
    weights = theirs / theirs.mean(dim=0)
    ratio = (ours / theirs * weights).double()
    rows: list[list[Cell]] = []
    for k in range(NUM_OCTAVES):
        top = drawn.shape[1] // 2 ** (k + 1)
        low, high = bootstrap_interval(ratio[:, k])
        cell = {"value": float(ratio[:, k].mean()), "low": low, "high": high}
        rows.append([f"{top // 2} to {top}", cell])
    return [Table("Edges", [Column("frequency", "text"), Column("drawn / real")], rows, EDGES_NOTE)]


def stacked(pictures: list[np.ndarray]) -> Tensor:
    """Pictures, each [S, S, 3] uint8, as [N, S, S, 3]."""
    return torch.from_numpy(np.stack(pictures))
