"""How the prior is sampled: what steps and samplers make of its embeddings, before any picture.

Shapes: N captions, K seeds, D CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.metrics.diversity import mean_pairwise_distance
from unclip.models.clip import TextEncoding
from unclip.pipeline.schedulers import scheduler_for
from unclip_sample.evaluation.bench import Bench, with_interval
from unclip_sample.evaluation.results import Cell, Column, Plot, Section, Table
from unclip_sample.evaluation.sources import caption_without_style
from unclip_sample.evaluation.sweeps import fewest_steps, series_of
from unclip_sample.evaluation.variety import concepts

SAMPLERS = ("ddpm", "ddim", "dpm++", "dpm++sde", "unipc")
STEPS = (4, 8, 12, 16, 25, 50)
NUM_SEEDS = 4
AT_ONCE = 64  # embeddings
NEARNESS, SPREAD = "cos(z_img, real z_img)", "spread over seeds"


def prior(bench: Bench) -> Section:
    """The prior's steps and samplers against the real z_img, and against its own spread."""
    examples = concepts(bench, "prior")
    z_real = bench.own_z_img([example.pixels() for example in examples])
    styled = subjects(bench, [example.caption for example in examples])
    unstyled = subjects(bench, [caption_without_style(example) for example in examples])
    cells: dict[str, list[list[Cell]]] = {sampler: [] for sampler in SAMPLERS}
    spread: dict[str, dict[int, Tensor]] = {sampler: {} for sampler in SAMPLERS}
    for sampler in SAMPLERS:
        for steps in STEPS:
            z = drawn(bench, *styled, sampler, steps)
            near = F.cosine_similarity(z, z_real[:, None], dim=-1).mean(dim=1)
            distances = map(mean_pairwise_distance, drawn(bench, *unstyled, sampler, steps))
            far = torch.tensor([*distances], dtype=torch.float64)
            spread[sampler][steps] = far
            cells[sampler].append([sampler, steps, with_interval(near), with_interval(far)])
    columns = [Column("sampler", "text"), Column("steps", "count")]
    columns += [Column(name, better="higher") for name in (NEARNESS, SPREAD)]
    section = Section(
        "prior",
        "Steps and samplers of the prior",
        "How many steps of the prior are enough, and by which sampler? Are its embeddings near "
        "those of the real pictures, and as different from seed to seed as with many steps?",
        [Table("", columns, [row for rows in cells.values() for row in rows])],
        plots=[
            _plot("Nearness to the real picture by steps", NEARNESS, cells, 2),
            _plot("Spread of one caption's embeddings by steps", SPREAD, cells, 3),
        ],
    )
    section.notes.append(
        f"{len(examples)} captions, {NUM_SEEDS} seeds of each. Spread: mean of 1 - cos over pairs "
        "of embeddings of one caption, which names no style; both cosines are the model's own "
        f"CLIP's. {_enough(spread)}"
    )
    return section


def subjects(bench: Bench, captions: Sequence[str]) -> tuple[TextEncoding, list[int]]:
    """Captions NUM_SEEDS times each, and their seeds; both N K long."""
    rows = torch.arange(len(captions)).repeat_interleave(NUM_SEEDS)
    seeds = [bench.seed_of(caption, number) for caption in captions for number in range(NUM_SEEDS)]
    return bench.studio.pipeline.encode(captions).select(rows), seeds


def drawn(bench: Bench, text: TextEncoding, seeds: list[int], sampler: str, steps: int) -> Tensor:
    """What the prior draws of subjects, [N, K, D]."""
    pipeline = bench.studio.pipeline
    scheduler = scheduler_for(pipeline.prior, sampler)
    z_img = [
        pipeline.sample_prior(
            text.select(rows),
            [seeds[row] for row in rows],
            guidance_scale=pipeline.config.default_guidance["prior"],
            steps=steps,
            num_candidates=1,
            scheduler=scheduler,
        )
        for rows in torch.arange(len(seeds)).split(AT_ONCE)
    ]
    return torch.cat(z_img).float().cpu().unflatten(0, (-1, NUM_SEEDS))


def _plot(title: str, label: str, cells: dict[str, list[list[Cell]]], place: int) -> Plot:
    """The cells at a place of the rows by steps, a line for each sampler."""
    series = [series_of(s, STEPS, [row[place] for row in rows]) for s, rows in cells.items()]
    return Plot(title, "steps", label, series, log_x=True)


def _enough(spread: dict[str, dict[int, Tensor]]) -> str:
    """For each sampler that comes to it, the fewest steps with the spread of the most by DDPM."""
    wanted = spread["ddpm"][STEPS[-1]]
    fewest = {sampler: fewest_steps(by_steps, wanted) for sampler, by_steps in spread.items()}
    words = [f"{sampler} {steps}" for sampler, steps in fewest.items() if steps is not None]
    return (
        f"Fewest steps whose spread is not measurably below that of {STEPS[-1]} by ddpm (paired, "
        f"95 %): {', '.join(words)}."
    )
