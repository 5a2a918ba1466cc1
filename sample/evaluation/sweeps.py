"""What a setting does to pictures: guidance, the decoder's steps and sampler, prior candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unclip.metrics.diversity import mean_pairwise_distance
from unclip.metrics.intervals import paired_difference
from unclip.metrics.similarity import clip_score, prior_cosines
from unclip_sample.evaluation.bench import Bench, finding, mean_by, with_interval
from unclip_sample.evaluation.results import (
    Cell,
    Column,
    Finding,
    Gallery,
    Plot,
    Section,
    Series,
    Table,
)
from unclip_sample.evaluation.sources import Example
from unclip_sample.evaluation.studio import Drawn

GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
USUAL = 3.0
NUM_SEEDS = 4
STEPS = (5, 10, 20, 30, 50)
SAMPLERS = ("ddpm", "ddim", "dpm++", "unipc", "euler", "heun")
CANDIDATES = (1, 2, 4, 8)
MODES = {"fixed": "one z_img of each caption", "many": "a z_img of its own for each picture"}
RECALL = Column("R@1", "share", better="higher")
SCORE = Column("CLIP score", better="higher")
CMMD = Column("CMMD", digits=2, better="lower")
FID = Column("FID", digits=2, better="lower")
DIVERSITY = Column("diversity", better="higher")


def series_of(name: str, x: Sequence[float], cells: Sequence[Cell], labels=()) -> Series:
    """Cells over x as a line; intervals where all have them."""
    values = [c["value"] if isinstance(c, dict) else c for c in cells]
    kept = [(a, b, c) for a, b, c in zip(x, values, cells, strict=True) if b is not None]
    ends = {
        end: [c[end] for _, _, c in kept] if all(isinstance(c, dict) for _, _, c in kept) else []
        for end in ("low", "high")
    }
    return Series(name, [a for a, _, _ in kept], [b for _, b, _ in kept], **ends, labels=[*labels])


# --- guidance --------------------------------------------------------------------------------


def guidance(bench: Bench) -> Section:
    """The decoder's guidance against CMMD, CLIP score and diversity   (unCLIP, figures 9 to 11)."""
    examples = bench.choose(bench.best_group, "guidance")
    section = Section(
        "guidance",
        "Guidance",
        "What the decoder's guidance buys, and what it costs: from one z_img of a caption, as the "
        "paper's figure 9 draws it, and from a new z_img of the prior for each picture.",
    )
    drawn = {mode: _guided(bench, examples, mode) for mode in MODES}
    measured = {
        mode: {scale: _measured(bench, drawn[mode][scale], examples) for scale in GUIDANCES}
        for mode in MODES
    }
    columns = [Column("z_img", "text"), Column("guidance", digits=1), RECALL, SCORE, DIVERSITY]
    rows: list[list[Cell]] = []
    cells: dict[str, list[list[Cell]]] = {mode: [] for mode in MODES}
    for mode in MODES:
        for scale in GUIDANCES:
            said, distance = measured[mode][scale][0], bench.cmmd(measured[mode][scale][1])
            row = [with_interval(said[name]) for name in ("R@1", "CLIP score", "diversity")]
            cells[mode].append([*row, distance])
            rows.append([MODES[mode], scale, *row, distance])
            if bench.extract is not None:
                rows[-1].append(bench.fid([d.pixels for d in drawn[mode][scale]]))
    columns += [CMMD, *([FID] if bench.extract else [])]
    section.tables.append(Table("", columns, rows))
    section.plots = _guidance_plots(cells)
    section.findings = _guidance_findings(measured)
    section.galleries = [_guidance_gallery(drawn["fixed"], examples)]
    section.notes.append(
        f"{len(examples)} captions, {NUM_SEEDS} pictures of each at each scale, the same seeds at "
        "all scales. Diversity is the mean of 1 - cos over pairs of pictures of one caption, by "
        f"the judge. CMMD is of {len(examples) * NUM_SEEDS} pictures, which is few: compare its "
        "points with each other alone."
    )
    return section


def _guided(bench: Bench, examples: Sequence[Example], mode: str) -> dict[float, list[Drawn]]:
    drawn = {}
    for scale in GUIDANCES:
        samples = []
        for example in examples:
            fixed = bench.seed_of(example.caption, 0) if mode == "fixed" else None
            samples += [
                bench.sample(example.caption, number, prior_seed=fixed, guidance=scale)
                for number in range(NUM_SEEDS)
            ]
        drawn[scale] = bench.draw(samples, f"guidance {scale:g}, {mode} z_img")
    return drawn


def _measured(
    bench: Bench, drawn: Sequence[Drawn], examples: Sequence[Example]
) -> tuple[dict[str, Tensor], Tensor]:
    """Verdicts by caption [N], with the diversity of its pictures; and all embeddings."""
    num_each = len(drawn) // len(examples)
    z = bench.judge.see([d.pixels for d in drawn])
    repeated = [example for example in examples for _ in range(num_each)]
    said = {name: mean_by(v, num_each) for name, v in bench.verdicts(z, repeated).items()}
    if num_each > 1:
        distances = [mean_pairwise_distance(part) for part in z.split(num_each)]
        said["diversity"] = torch.tensor(distances, dtype=torch.float64)
    return said, z


def _guidance_plots(cells: dict[str, list[list[Cell]]]) -> list[Plot]:
    plots = []
    for place, title, label in (
        (1, "Fidelity to the caption", "CLIP score"),
        (2, "Diversity of one caption's pictures", "mean 1 - cos"),
        (3, "Distance from real pictures", "CMMD"),
    ):
        series = [
            series_of(MODES[mode], GUIDANCES, [row[place] for row in cells[mode]]) for mode in MODES
        ]
        if all(one.x for one in series):
            plots.append(Plot(title, "guidance", label, series))
    series = [
        Series(
            MODES[mode],
            [row[2]["value"] for row in cells[mode]],
            [row[1]["value"] for row in cells[mode]],
            labels=[f"{scale:g}" for scale in GUIDANCES],
        )
        for mode in MODES
    ]
    plots.append(Plot("Fidelity against diversity", "diversity", "CLIP score", series))
    return plots


def _guidance_findings(measured) -> list[Finding]:
    first, last = GUIDANCES[0], GUIDANCES[-1]
    many, fixed = ({s: measured[mode][s][0] for s in GUIDANCES} for mode in ("many", "fixed"))
    return [
        finding(
            "Guidance makes pictures fit their captions better (section 5.3).",
            f"CLIP score at {USUAL:g} less that at {first:g}",
            many[USUAL]["CLIP score"],
            many[first]["CLIP score"],
        ),
        finding(
            "Guidance costs diversity (section 5.3).",
            f"diversity at {first:g} less that at {last:g}, each picture from its own z_img",
            many[first]["diversity"],
            many[last]["diversity"],
        ),
        finding(
            "What z_img holds does not collapse under guidance (section 5.3, figure 9): pictures "
            "from many z_img stay more diverse than those from one.",
            f"diversity at {last:g} from many z_img less that from one",
            many[last]["diversity"],
            fixed[last]["diversity"],
        ),
    ]


def _guidance_gallery(drawn: dict[float, list[Drawn]], examples: Sequence[Example]) -> Gallery:
    """Rows of one caption each, with one z_img and one seed   (unCLIP, figure 9)."""
    rows = [
        (example.caption, [drawn[scale][number * NUM_SEEDS].path for scale in GUIDANCES])
        for number, example in enumerate(examples[:5])
    ]
    headings = [f"{scale:g}" for scale in GUIDANCES]
    return Gallery("One z_img and one seed in each row", headings, rows)


# --- steps -----------------------------------------------------------------------------------


def steps(bench: Bench) -> Section:
    """The decoder's steps against quality, for each sampler."""
    examples = bench.choose(bench.best_group, "steps")
    section = Section(
        "steps",
        "Steps and samplers",
        "How many steps of the decoder are enough, and by which sampler? Every picture of a "
        "caption comes from the same z_img and the same seed.",
    )
    said: dict[str, dict[int, dict[str, Tensor]]] = {}
    cells: dict[str, list[list[Cell]]] = {}
    drawn: dict[str, list[list[Drawn]]] = {}
    fitting = [sampler for sampler in SAMPLERS if bench.studio.has_sampler(sampler)]
    for sampler in fitting:
        said[sampler], cells[sampler], drawn[sampler] = {}, [], []
        for count in STEPS:
            samples = [bench.sample(e.caption, steps=count, sampler=sampler) for e in examples]
            pictures = bench.draw(samples, f"{sampler}, {count} steps")
            found, z = _measured(bench, pictures, examples)
            said[sampler][count] = found
            row = [with_interval(found[name]) for name in ("R@1", "CLIP score")]
            cells[sampler].append([*row, bench.cmmd(z)])
            drawn[sampler].append(pictures)
    columns = [Column("sampler", "text"), Column("steps", "count"), RECALL, SCORE, CMMD]
    rows: list[list[Cell]] = [
        [sampler, count, *row]
        for sampler in fitting
        for count, row in zip(STEPS, cells[sampler], strict=True)
    ]
    section.tables.append(Table("", columns, rows))
    for place, label in ((1, "CLIP score"), (2, "CMMD")):
        series = [series_of(s, STEPS, [row[place] for row in cells[s]]) for s in fitting]
        if all(one.x for one in series):
            section.plots.append(Plot(f"{label} by steps", "steps", label, series, log_x=True))
    section.galleries.append(_steps_gallery(drawn, examples[0].caption))
    section.notes.append(_enough(said))
    return section


def _steps_gallery(drawn: dict[str, list[list[Drawn]]], caption: str) -> Gallery:
    rows = [(s, [pictures[0].path for pictures in drawn[s]]) for s in drawn]
    return Gallery(caption, [f"{count} steps" for count in STEPS], rows)


def _enough(said: dict[str, dict[int, dict[str, Tensor]]]) -> str:
    """For each sampler, the fewest steps not measurably worse than the most."""
    words = []
    for sampler, by_steps in said.items():
        scores = {count: found["CLIP score"] for count, found in by_steps.items()}
        words.append(f"{sampler} {fewest_steps(scores, scores[STEPS[-1]])}")
    return (
        f"Fewest steps whose CLIP score is not measurably below that of {STEPS[-1]} (paired, "
        f"95 %): {', '.join(words)}."
    )


def fewest_steps(by_steps: Mapping[int, Tensor], wanted: Tensor) -> int | None:
    """The fewest steps whose values [N] are not measurably below those wanted (paired, 95 %)."""
    enough = (n for n, values in by_steps.items() if paired_difference(wanted, values).low <= 0)
    return next(enough, None)


# --- candidates of the prior -----------------------------------------------------------------


def candidates(bench: Bench) -> Section:
    """How many embeddings the prior should choose among   (unCLIP, section 2.2: two)."""
    examples = bench.choose(bench.best_group, "candidates")
    section = Section(
        "candidates",
        "Candidates of the prior",
        "The prior draws several z_img and keeps the one nearest to the caption's embedding; the "
        "paper draws two. What do more of them give?",
    )
    z_real = bench.own_z_img([example.pixels() for example in examples])
    z_txt = bench.studio.pipeline.encode([e.caption for e in examples]).z_txt.float().cpu()
    said, rows = {}, []
    for count in CANDIDATES:
        samples = [bench.sample(e.caption, num_candidates=count) for e in examples]
        drawn = bench.draw(samples, f"{count} candidates")
        said[count], _ = _measured(bench, drawn, examples)
        z_hat = torch.stack([d.z_img for d in drawn])
        said[count]["text"] = clip_score(z_hat, z_txt)
        if len(examples) > 1:
            said[count]["image"] = prior_cosines(z_hat, z_real, z_txt)["image"]
        names = ("text", "image", "CLIP score", "R@1")
        cells = [with_interval(said[count][n]) if n in said[count] else None for n in names]
        rows.append([count, *cells])
    columns = [Column("candidates", "count"), Column("cos(z_img, z_txt)", better="higher")]
    columns += [Column("cos(z_img, real z_img)", better="higher"), SCORE, RECALL]
    section.tables.append(Table("", columns, rows))
    series = [series_of("CLIP score", CANDIDATES, [row[3] for row in rows])]
    section.plots.append(
        Plot("CLIP score by candidates", "candidates", "CLIP score", series, log_x=True)
    )
    section.findings.append(
        finding(
            "Of two z_img the one with the larger z_img . z_txt is the better (section 2.2).",
            "CLIP score with two candidates less that with one",
            said[2]["CLIP score"],
            said[1]["CLIP score"],
        )
    )
    section.notes.append(
        "The two cosines are the model's own CLIP's, which chooses among the candidates; the CLIP "
        "score and R@1 are the judge's."
    )
    return section
