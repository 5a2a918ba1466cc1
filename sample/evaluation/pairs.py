"""How well pictures fit their captions, beside what real pictures reach: pairs and compositions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unclip.metrics.attributes import background_colour, sides_agree
from unclip.metrics.similarity import chosen_among, clip_score
from unclip_sample.evaluation import protocol
from unclip_sample.evaluation.bench import Bench, with_interval
from unclip_sample.evaluation.protocol import Composition
from unclip_sample.evaluation.results import Cell, Column, Gallery, Section, Table
from unclip_sample.evaluation.sources import Example, styled_caption
from unclip_sample.evaluation.studio import Drawn
from unclip_train.data.captions import counted_phrase, noun_phrase, on_background
from unclip_train.data.vocabulary import BACKGROUNDS

KINDS = {
    "drawn": "drawn by the model",
    "own": "drawn from the real picture's z_img",
    "real": "real (the ceiling)",
}
OWN_NOTE = (
    "What is drawn from the real picture's own z_img asks no prior: what it gains is the prior's "
    "to win, what it still lacks is the decoder's."
)
NUM_SHOWN = 16
NUM_IN_A_ROW = 8
KIND = Column("pictures", "text")
RECALLS = [Column("R@1", "share", better="higher"), Column("R@5", "share", better="higher")]
SCORE = Column("CLIP score", better="higher")
STYLE = Column("style right", "share", better="higher")
CMMD = Column("CMMD", digits=2, better="lower")
COUNT = Column("pictures", "count")

QUESTIONS = {
    "heldout": "Concepts in a style they were never drawn in: neither the model nor the judge saw "
    "these drawings in training, only the concepts in other styles. Does the judge find "
    "the caption of each picture among 100 of the same style, 20 of them of the same category?",
    "seen": "The same question for pairs that may have been trained on: the distance to held-out "
    "pairs is what is remembered rather than understood.",
    "pairs": "Does the judge find the caption of each picture among 100 of the data set?",
}
TITLES = {"heldout": "Held-out pairs", "seen": "Seen pairs", "pairs": "Captioned pictures"}


def pairs(bench: Bench, group: str) -> Section:
    """One drawn picture for each caption of a group, beside the real one."""
    examples = bench.choose(group, group)
    real = [example.pixels() for example in examples]
    drawn, pixels = compared(bench, [e.caption for e in examples], real, group)
    z = {kind: bench.judge.see(pixels[kind]) for kind in KINDS}
    said = {kind: judged(bench, z[kind], examples) for kind in KINDS}
    columns = [Column("", "text"), COUNT, *RECALLS, SCORE]
    columns += [STYLE] if bench.source.styles else []
    table = Table("", [*columns, CMMD], [_row(bench, kind, z[kind], said[kind]) for kind in said])
    section = Section(group, TITLES[group], QUESTIONS[group], [table])
    if len(bench.source.styles) > 1:
        section.tables.append(by_style(said, examples, bench.source.styles))
    section.galleries.append(_beside(bench, examples, [d.path for d in drawn], real))
    section.records = [
        record(e.caption, bench.seed_of(e.caption, 0), d.path, said["drawn"], i)
        for i, (e, d) in enumerate(zip(examples, drawn, strict=True))
    ]
    section.notes.append(
        "The real pictures are the ceiling: what the judge makes of the artists' own work. A drawn "
        "picture above it would say more about the judge than about the model. CMMD compares with "
        f"{len(bench.reference)} real pictures for training (unbiased, scale 1000). {OWN_NOTE}"
    )
    return section


def compared(
    bench: Bench, captions: Sequence[str], real: list[np.ndarray], label: str
) -> tuple[list[Drawn], dict[str, list[np.ndarray]]]:
    """What is drawn of captions, and pictures [S, S, 3] uint8 of these by KINDS."""
    drawn = bench.draw([bench.sample(caption) for caption in captions], label)
    samples = [
        bench.sample(caption, condition="z_img", z_img=z)
        for caption, z in zip(captions, bench.own_z_img(real), strict=True)
    ]
    own = bench.draw(samples, f"{label}, real z_img")
    pixels = {"drawn": [d.pixels for d in drawn], "own": [d.pixels for d in own], "real": real}
    return drawn, pixels


def judged(bench: Bench, z: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
    """The judge's verdicts, and whether it finds the style."""
    said = bench.verdicts(z, examples)
    if len(bench.source.styles) > 1:
        said["style right"] = style_right(bench, z, examples)
    return said


def style_right(bench: Bench, z: Tensor, examples: Sequence[Example]) -> Tensor:
    """Whether the caption in the right style fits best among the same in all styles, [N]."""
    styles = bench.source.styles
    captions = [
        f"{noun_phrase(example.drawing.name)}, {style} style"
        for example in examples
        for style in styles
    ]
    z_txt = bench.judge.read(captions).reshape(len(examples), len(styles), -1)
    wanted = torch.tensor([styles.index(example.style) for example in examples])
    return (chosen_among(z, z_txt) == wanted).double()


def _row(bench: Bench, kind: str, z: Tensor, said: dict[str, Tensor]) -> list[Cell]:
    cells: list[Cell] = [KINDS[kind], len(z), *map(with_interval, said.values())]
    if bench.source.styles and "style right" not in said:
        cells.append(None)
    return [*cells, bench.cmmd(z)]


def by_style(
    said: dict[str, dict[str, Tensor]], examples: Sequence[Example], styles: Sequence[str]
) -> Table:
    """R@1 and style of each style alone."""
    columns = [Column("style", "text"), COUNT]
    columns += [Column(f"R@1, {kind}", "share", better="higher") for kind in ("drawn", "real")]
    columns += [Column(f"style, {kind}", "share", better="higher") for kind in ("drawn", "real")]
    rows: list[list[Cell]] = []
    for style in styles:
        index = [i for i, example in enumerate(examples) if example.style == style]
        cells: list[Cell] = [style, len(index)]
        for measure in ("R@1", "style right"):
            cells += [with_interval(said[kind][measure][index]) for kind in ("drawn", "real")]
        rows.append(cells)
    return Table("By style", columns, [row for row in rows if row[1]])


def _beside(
    bench: Bench, examples: Sequence[Example], drawn: Sequence[str], real: Sequence[np.ndarray]
) -> Gallery:
    """The first pictures above the real ones; the order is random, so none is picked."""
    paths = [bench.keep(pixels) for pixels in real[:NUM_SHOWN]]
    names = [example.caption for example in examples[:NUM_SHOWN]]
    rows: list[tuple[str, list[str | None]]] = []
    captions: list[list[str]] = []
    for start in range(0, len(paths), NUM_IN_A_ROW):
        part = slice(start, min(start + NUM_IN_A_ROW, len(paths)))
        rows += [("drawn", list(drawn[part])), ("real", list(paths[part]))]
        captions += [[""] * len(paths[part]), names[part]]
    return Gallery(f"The first {len(paths)}, not picked", [], rows, captions=captions)


def record(
    caption: str, seed: int, path: str, said: dict[str, Tensor], index: int
) -> dict[str, Any]:
    """The values of one picture, by measure."""
    values = {name: round(float(column[index]), 6) for name, column in said.items()}
    return {"caption": caption, "seed": seed, "picture": path, "values": values}


# --- compositions ----------------------------------------------------------------------------


def compositions(bench: Bench) -> Section:
    """Captions of several facts: a background's colour, two things on two sides, a number."""
    question = (
        "Captions that say more than a name. Is the background of the colour that was named (by "
        "its pixels)? Are the left and the right thing both there, each half judged alone? Is the "
        "number right, among one, two and three?"
    )
    section = Section("compositions", "Compositions", question)
    count, seed = bench.sizes["compositions"], bench.seed
    for make, measure, title, extra in (
        (protocol.on_backgrounds, _backgrounds, "A coloured background", ["colour right"]),
        (protocol.side_by_side, _sides, "Two things side by side", ["both in R@5", "order right"]),
        (protocol.counted, _counts, "Two or three of a thing", ["number right"]),
    ):
        asked = make(bench.source, count, seed)
        if asked:
            _compose(bench, section, asked, measure, title, extra)
    section.notes.append(
        "Side by side, R@1 and R@5 are of the halves, each ranked among 100 single things, and the "
        "mean of both; the order is right where left with left and right with right agree better "
        "than crosswise (half of all by chance). Of three numbers a third is right by chance. "
        + OWN_NOTE
    )
    return section


def _compose(bench, section, asked: list[Composition], measure, title: str, extra: list[str]):
    """Measure one kind of composition and add what it gives to the section."""
    real = [c.picture for c in asked]
    drawn, pictures = compared(bench, [c.caption for c in asked], real, title.lower())
    said = {kind: measure(bench, pixels, asked) for kind, pixels in pictures.items()}
    columns = [Column("", "text"), COUNT, *RECALLS]
    columns += [Column(name, "share", better="higher") for name in extra]
    columns.append(SCORE)
    names = [column.name for column in columns[2:]]
    rows: list[list[Cell]] = [
        [label, len(asked), *(with_interval(said[kind][name]) for name in names)]
        for kind, label in KINDS.items()
    ]
    section.tables.append(Table(title, columns, rows))
    shown = range(min(NUM_IN_A_ROW, len(asked)))
    rows_shown = [
        ("drawn", [drawn[i].path for i in shown]),
        ("real", [bench.keep(asked[i].picture) for i in shown]),
    ]
    captions = [[""] * len(shown), [asked[i].caption for i in shown]]
    section.galleries.append(Gallery(title, [], rows_shown, captions=captions))
    section.records += [
        record(c.caption, bench.seed_of(c.caption, 0), d.path, said["drawn"], i)
        for i, (c, d) in enumerate(zip(asked, drawn, strict=True))
    ]


def _found(bench: Bench, z: Tensor, asked: Sequence[Composition], words) -> dict[str, Tensor]:
    """R@1, R@5 and CLIP score where words(drawing, composition) is the caption of a rival."""
    captions, distractors = [], []
    for one in asked:
        rivals = {
            words(e.drawing, one): e.category
            for e in bench.source.everything
            if e.style == one.things[0].style
        }
        own, category = words(one.things[0], one), one.things[0].category
        captions.append(own)
        key = (bench.seed, "distractors")
        distractors.append(protocol.distractors_of(own, category, list(rivals.items()), *key))
    ranks = bench.ranks(z, captions, distractors)
    score = clip_score(z, bench.judge.read(captions))
    return {"R@1": (ranks < 1).double(), "R@5": (ranks < 5).double(), "CLIP score": score}


def _backgrounds(bench: Bench, pictures, asked: Sequence[Composition]) -> dict[str, Tensor]:
    said = _found(
        bench,
        bench.judge.see(pictures),
        asked,
        lambda d, c: styled_caption(d, on_background(noun_phrase(d.name), c.background)),
    )
    colours = [background_colour(torch.from_numpy(p.copy()), BACKGROUNDS) for p in pictures]
    right = [float(c == one.background) for c, one in zip(colours, asked, strict=True)]
    return {**said, "colour right": torch.tensor(right, dtype=torch.float64)}


def _sides(bench: Bench, pictures, asked: Sequence[Composition]) -> dict[str, Tensor]:
    z_halves = bench.judge.see_halves(pictures)
    z_txt, found = [], []
    for side, z in enumerate(z_halves):
        things = [Composition(one.caption, one.picture, (one.things[side],)) for one in asked]
        found.append(_found(bench, z, things, lambda d, c: styled_caption(d)))
        z_txt.append(bench.judge.read([styled_caption(one.things[0]) for one in things]))
    left, right = found
    whole = bench.judge.see(pictures)
    return {
        "R@1": (left["R@1"] + right["R@1"]) / 2,
        "R@5": (left["R@5"] + right["R@5"]) / 2,
        "both in R@5": left["R@5"] * right["R@5"],
        "order right": sides_agree(*z_halves, *z_txt).double(),
        "CLIP score": clip_score(whole, bench.judge.read([one.caption for one in asked])),
    }


def _counts(bench: Bench, pictures, asked: Sequence[Composition]) -> dict[str, Tensor]:
    z = bench.judge.see(pictures)
    said = _found(bench, z, asked, lambda d, c: styled_caption(d, counted_phrase(d.name, c.count)))
    every = [caption for one in asked for caption in protocol.count_captions(one.things[0])]
    z_txt = bench.judge.read(every).reshape(len(asked), len(protocol.COUNTS), -1)
    wanted = torch.tensor([protocol.COUNTS.index(one.count) for one in asked])
    return {**said, "number right": (chosen_among(z, z_txt) == wanted).double()}
