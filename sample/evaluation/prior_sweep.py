"""How the prior is sampled: what steps and samplers make of its embeddings, before any picture.

Shapes: N captions, K seeds, D CLIP embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.metrics.diversity import mean_pairwise_distance
from unclip.metrics.intervals import paired_difference
from unclip.pipeline.schedulers import scheduler_for
from unclip_sample.evaluation.bench import Bench, with_interval
from unclip_sample.evaluation.results import Cell, Column, Plot, Section, Table
from unclip_sample.evaluation.sources import caption_without_style
from unclip_sample.evaluation.sweeps import series_of
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
    captions = [example.caption for example in examples]
    open_captions = [caption_without_style(example) for example in examples]
    nearness: dict[str, list[Tensor]] = {sampler: [] for sampler in SAMPLERS}
    spread: dict[str, list[Tensor]] = {sampler: [] for sampler in SAMPLERS}
    for sampler in SAMPLERS:
        for steps in STEPS:
            z = embeddings(bench, captions, sampler, steps)
            nearness[sampler].append(F.cosine_similarity(z, z_real[:, None], dim=-1).mean(dim=1))
            distances = map(
                mean_pairwise_distance, embeddings(bench, open_captions, sampler, steps)
            )
            spread[sampler].append(torch.tensor([*distances], dtype=torch.float64))
    rows: list[list[Cell]] = [
        [sampler, steps, with_interval(near), with_interval(far)]
        for sampler in SAMPLERS
        for steps, near, far in zip(STEPS, nearness[sampler], spread[sampler], strict=True)
    ]
    columns = [Column("sampler", "text"), Column("steps", "count")]
    columns += [Column(name, better="higher") for name in (NEARNESS, SPREAD)]
    section = Section(
        "prior",
        "Steps and samplers of the prior",
        "How many steps of the prior are enough, and by which sampler? Are its embeddings near "
        "those of the real pictures, and as different from seed to seed as with many steps?",
        [Table("", columns, rows)],
        plots=[
            _plot("Nearness to the real picture by steps", NEARNESS, nearness),
            _plot("Spread of one caption's embeddings by steps", SPREAD, spread),
        ],
    )
    section.notes.append(
        f"{len(examples)} captions, {NUM_SEEDS} seeds of each. Spread: mean of 1 - cos over pairs "
        "of embeddings of one caption, which names no style; both cosines are the model's own "
        f"CLIP's. {_enough(spread)}"
    )
    return section


def embeddings(bench: Bench, captions: Sequence[str], sampler: str, steps: int) -> Tensor:
    """What the prior draws of captions from NUM_SEEDS seeds each, [N, K, D]."""
    pipeline = bench.studio.pipeline
    text = pipeline.encode(captions)
    scheduler = scheduler_for(pipeline.prior, sampler)
    seeds = [bench.seed_of(caption, number) for caption in captions for number in range(NUM_SEEDS)]
    z_img = [
        pipeline.sample_prior(
            text.select(rows // NUM_SEEDS),
            [seeds[row] for row in rows],
            guidance_scale=pipeline.config.default_guidance["prior"],
            steps=steps,
            num_candidates=1,
            scheduler=scheduler,
        )
        for rows in torch.arange(len(seeds)).split(AT_ONCE)
    ]
    return torch.cat(z_img).float().cpu().unflatten(0, (len(captions), NUM_SEEDS))


def _plot(title: str, label: str, values: dict[str, list[Tensor]]) -> Plot:
    """Values [N] by steps, a line for each sampler."""
    series = [
        series_of(sampler, STEPS, [with_interval(v) for v in by_steps])
        for sampler, by_steps in values.items()
    ]
    return Plot(title, "steps", label, series, log_x=True)


def _enough(spread: dict[str, list[Tensor]]) -> str:
    """For each sampler that comes to it, the fewest steps with the spread of the most by DDPM."""
    wanted = spread["ddpm"][-1]
    fewest = {
        sampler: next(
            (
                n
                for n, s in zip(STEPS, by_steps, strict=True)
                if paired_difference(wanted, s).low <= 0
            ),
            None,
        )
        for sampler, by_steps in spread.items()
    }
    words = [f"{sampler} {steps}" for sampler, steps in fewest.items() if steps is not None]
    return (
        f"Fewest steps whose spread is not measurably below that of {STEPS[-1]} by ddpm (paired, "
        f"95 %): {', '.join(words)}."
    )
