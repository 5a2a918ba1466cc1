"""Whether pictures are new and unlike: nearest in training, several seeds, random captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unclip.metrics.diversity import mean_pairwise_distance
from unclip.metrics.similarity import chosen_among
from unclip_sample.evaluation.bench import Bench, with_interval
from unclip_sample.evaluation.protocol import choose, keyed_rng, read_rgba
from unclip_sample.evaluation.results import Cell, Column, Gallery, Section, Table
from unclip_sample.evaluation.sources import Example, caption_without_style, fingerprint_of
from unclip_sample.evaluation.sweeps import DIVERSITY
from unclip_train.data.compose import (
    caption_scene,
    choose_background,
    mean_colour,
    random_scene,
)

NUM_SEEDS = 16
NUM_GRID_COLUMNS = 10
PLAIN_SHARE = 0.7  # of the random captions that name a single thing


# --- nearest training pictures ---------------------------------------------------------------


def nearest(bench: Bench) -> Section:
    """Drawn pictures of held-out pairs beside the training pictures most like them."""
    group = "heldout" if "heldout" in bench.source.groups else "pairs"
    examples = bench.choose(group, "nearest")
    drawn = bench.draw([bench.sample(e.caption) for e in examples], "nearest")
    training = [e for e in bench.source.training if e.id not in {x.id for x in examples}]
    z_training = embeddings_of(bench, training)
    z_drawn = bench.judge.see([d.pixels for d in drawn])
    z_real = bench.judge.see([e.pixels() for e in examples])
    to_drawn, index = (z_drawn @ z_training.T).max(dim=1)
    to_real, _ = (z_real @ z_training.T).max(dim=1)
    columns = [Column("pictures", "text"), Column("cosine to the nearest training picture")]
    rows: list[list[Cell]] = [
        ["drawn by the model", with_interval(to_drawn)],
        ["real, as far from training", with_interval(to_real)],
    ]
    section = Section(
        "nearest",
        "Nearest training pictures",
        "Is a picture drawn, or remembered? Beside each drawn picture, the training picture that "
        "the judge finds most like it, and the real one that the model never saw.",
        [Table("", columns, rows)],
    )
    shown = range(min(8, len(examples)))
    nearest_paths = [bench.keep(training[int(index[i])].pixels()) for i in shown]
    section.galleries.append(
        Gallery(
            "",
            [],
            [
                ("drawn", [drawn[i].path for i in shown]),
                ("nearest in training", nearest_paths),
                ("real, never seen", [bench.keep(examples[i].pixels()) for i in shown]),
            ],
            captions=[
                [examples[i].caption for i in shown],
                [f"{training[int(index[i])].id} ({float(to_drawn[i]):.2f})" for i in shown],
                [""] * len(shown),
            ],
        )
    )
    section.notes.append(
        f"Among {len(training):,} training pictures. A model that copies lies nearer to training "
        "than real pictures that it never saw; likeness of concept alone brings both near, since "
        "the other artists' drawings of the concept are in training."
    )
    return section


def embeddings_of(bench: Bench, examples: Sequence[Example]) -> Tensor:
    """The judge's z_img [N, D] of real pictures, kept in the report's folder."""
    from safetensors.torch import load_file, save_file

    mark = fingerprint_of([bench.judge.digest, *(e.id for e in examples)])
    size = bench.source.size
    path = (
        bench.studio.folder / "embeddings" / f"{mark}-{size}-{bench.source.fingerprint}.safetensors"
    )
    if path.is_file():
        return load_file(path)["z_img"]
    bench.say(f"the judge looks at {len(examples):,} training pictures")
    parts = [
        bench.judge.see([e.pixels() for e in examples[start : start + 256]])
        for start in range(0, len(examples), 256)
    ]
    z = torch.cat(parts)
    if bench.studio.processes.is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}")
        save_file({"z_img": z.contiguous()}, staged)
        Path(staged).replace(path)
    return z


# --- several seeds ---------------------------------------------------------------------------


def diversity(bench: Bench) -> Section:
    """Pictures of one caption from several seeds, with and without a style."""
    examples = concepts(bench, "diversity")
    styles = bench.source.styles
    asked = {"no style named": [caption_without_style(e) for e in examples]}
    if styles:
        asked["the style named"] = [e.caption for e in examples]
    spread: dict[str, Tensor] = {}
    rows: list[list[Cell]] = []
    drawn = {}
    for kind, captions in asked.items():
        samples = [bench.sample(c, number) for c in captions for number in range(NUM_SEEDS)]
        drawn[kind] = bench.draw(samples, kind)
        z = bench.judge.see([d.pixels for d in drawn[kind]])
        spread[kind] = torch.tensor([mean_pairwise_distance(p) for p in z.split(NUM_SEEDS)])
        cells: list[Cell] = [kind, with_interval(spread[kind])]
        rows.append([*cells, _num_styles(bench, z, examples) if len(styles) > 1 else None])
    if len(styles) > 1:
        rows.append(["real drawings in all styles", with_interval(_real_spread(bench, examples))])
        rows[-1].append(float(len(styles)))
    columns = [Column("captions", "text"), DIVERSITY]
    columns.append(Column("styles among the pictures", digits=1))
    section = Section(
        "diversity",
        "Diversity over seeds",
        f"{NUM_SEEDS} pictures of one caption, each from its own seed through prior and decoder. "
        "A caption that names no style leaves the style open.",
        [Table("", columns, rows)],
    )
    for kind, captions in asked.items():
        shown = [
            (caption, [d.path for d in drawn[kind][i * NUM_SEEDS : (i + 1) * NUM_SEEDS]])
            for i, caption in enumerate(captions[:5])
        ]
        section.galleries.append(Gallery(kind.capitalize(), [], shown))
    section.notes.append(
        "Diversity: mean of 1 - cos over pairs of pictures of one caption, by the judge. Styles: "
        "how many different ones the judge sees among the pictures of one caption."
    )
    return section


def concepts(bench: Bench, section: str) -> list[Example]:
    """The examples that a section takes where each is to be of another concept."""
    group = bench.source.groups[bench.best_group]
    kept: dict[str, Example] = {}
    for example in choose(group, len(group), bench.seed, section):
        kept.setdefault(caption_without_style(example), example)
    return list(kept.values())[: bench.sizes[section]]


def _num_styles(bench: Bench, z: Tensor, examples: Sequence[Example]) -> Cell:
    """How many styles the judge sees among a caption's pictures."""
    styles = bench.source.styles
    counts = []
    for example, part in zip(examples, z.split(NUM_SEEDS), strict=True):
        captions = [f"{caption_without_style(example)}, {style} style" for style in styles]
        z_txt = bench.judge.read(captions).expand(len(part), -1, -1)
        found = chosen_among(part, z_txt)
        counts.append(float(len(set(found[found >= 0].tolist()))))
    return with_interval(counts)


def _real_spread(bench: Bench, examples: Sequence[Example]) -> list[float]:
    """Diversity of the artists' own drawings of each concept, where there are several."""
    spreads = []
    for example in examples:
        same = [
            e.pixels()
            for e in bench.source.everything
            if e.drawing.concept == example.drawing.concept
        ]
        if len(same) > 1:
            spreads.append(mean_pairwise_distance(bench.judge.see(same)))
    return spreads


# --- random captions -------------------------------------------------------------------------


def grid(bench: Bench) -> Section:
    """Pictures of random captions, none of them picked."""
    captions = random_captions(bench, bench.sizes["grid"])
    drawn = bench.draw([bench.sample(caption) for caption in captions], "random captions")
    rows, below = [], []
    for start in range(0, len(drawn), NUM_GRID_COLUMNS):
        part = slice(start, start + NUM_GRID_COLUMNS)
        rows.append(("", [d.path for d in drawn[part]]))
        below.append(captions[part])
    gallery = Gallery("", [], rows, captions=below)
    return Section(
        "grid",
        f"{len(captions)} random captions",
        "Captions drawn at random, as training makes them (with places, numbers, backgrounds, and "
        "now and then no style). Each is drawn once, and all are shown.",
        galleries=[gallery],
    )


def random_captions(bench: Bench, count: int) -> list[str]:
    """Different captions of the data source, keyed by the seed."""
    group = bench.source.groups[bench.best_group]
    examples = choose(group, len(group), bench.seed, "grid")
    captions: dict[str, None] = {}
    for number, example in enumerate(examples):
        captions[_random_caption(bench, example, examples[number - 1])] = None
        if len(captions) == count:
            break
    return list(captions)


def _random_caption(bench: Bench, example: Example, other: Example) -> str:
    if example.drawing is None:
        return example.caption
    rng = keyed_rng(bench.seed, "caption", example.id)
    scene = random_scene(rng, PLAIN_SHARE)
    things = [example.drawing, *([other.drawing] if scene.kind == "pair" else [])]
    means = [mean_colour(read_rgba(thing, bench.source.size)) for thing in things]
    return caption_scene(choose_background(scene, means, rng), things, rng)
