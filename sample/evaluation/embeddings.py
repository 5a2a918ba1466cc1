"""What z_img is for: the prior's against others, one decoded often, few components of it, words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unclip.metrics.diversity import mean_pairwise_distance
from unclip.metrics.similarity import clip_score, prior_cosines, probabilities_among
from unclip_sample.encoder import logit_scale
from unclip_sample.evaluation.bench import Bench, finding, with_interval
from unclip_sample.evaluation.protocol import choose
from unclip_sample.evaluation.results import (
    Cell,
    Column,
    Finding,
    Gallery,
    Plot,
    Section,
    Table,
)
from unclip_sample.evaluation.sources import Example
from unclip_sample.evaluation.studio import Drawn, Sample
from unclip_sample.evaluation.sweeps import CMMD, DIVERSITY, RECALL, SCORE, series_of
from unclip_train.data.captions import noun_phrase

CONDITIONS = {
    "caption": "the caption alone",
    "z_txt": "z_txt in place of z_img",
    "prior": "the prior's z_img",
    "z_img": "z_img of the real picture",
}
COMPONENTS = (20, 30, 40, 80, 120, 160, 200, 320)
NUM_FIT = 2000
NUM_VARIATIONS = 7
NUM_LETTERED = 4


# --- the prior's z_img against others --------------------------------------------------------


def ablation(bench: Bench) -> Section:
    """Pictures without a z_img, from z_txt, and from the prior's   (unCLIP, figure 8)."""
    examples = bench.choose(bench.best_group, "ablation")
    section = Section(
        "ablation",
        "What the prior is for",
        "The same captions and seeds, the decoder given nothing beside the caption, the caption's "
        "own embedding, the prior's z_img, and (beyond the paper) the real picture's.",
    )
    real = [example.pixels() for example in examples]
    z_real = bench.own_z_img(real)
    drawn, said, rows = {}, {}, []
    for condition, name in CONDITIONS.items():
        given = z_real if condition == "z_img" else [None] * len(examples)
        samples = [
            bench.sample(e.caption, condition=condition, z_img=z)
            for e, z in zip(examples, given, strict=True)
        ]
        drawn[condition] = bench.draw(samples, name)
        z = bench.judge.see([d.pixels for d in drawn[condition]])
        said[condition] = bench.verdicts(z, examples)
        rows.append([name, *map(with_interval, said[condition].values()), bench.cmmd(z)])
    z = bench.judge.see(real)
    rows.append(["real pictures", *map(with_interval, bench.verdicts(z, examples).values())])
    rows[-1].append(bench.cmmd(z))
    columns = [Column("the decoder is given", "text"), RECALL]
    columns += [Column("R@5", "share", better="higher"), SCORE, CMMD]
    section.tables.append(Table("", columns, rows))
    section.tables += _prior_table(bench, drawn["prior"], z_real, examples)
    section.findings = _ablation_findings(said)
    headings = [*CONDITIONS.values(), "real"]
    shown = [
        (e.caption, [*(drawn[c][i].path for c in CONDITIONS), bench.keep(real[i])])
        for i, e in enumerate(examples[:6])
    ]
    section.galleries.append(Gallery("One caption and one seed in each row", headings, shown))
    return section


def _prior_table(
    bench: Bench, drawn: Sequence[Drawn], z_real: Tensor, examples: Sequence[Example]
) -> list[Table]:
    if len(examples) < 2:
        return []
    z_txt = bench.studio.pipeline.encode([e.caption for e in examples]).z_txt.float().cpu()
    cosines = prior_cosines(torch.stack([d.z_img for d in drawn]), z_real, z_txt)
    columns = [
        Column("to the real z_img", better="higher"),
        Column("to another picture's"),
        Column("to z_txt"),
        Column("of the real z_img to z_txt"),
    ]
    cells = [with_interval(cosines[name]) for name in ("image", "unrelated", "text", "truth")]
    note = (
        "By the model's own CLIP. The first should be high and far above the second, which an "
        "average picture gets for nothing; the third should come near the fourth."
    )
    return [Table("Cosines of the prior's z_img", columns, [cells], note)]


def _ablation_findings(said: dict[str, dict[str, Tensor]]) -> list[Finding]:
    score = {condition: values["CLIP score"] for condition, values in said.items()}
    return [
        finding(
            "With the prior's z_img pictures fit their captions better than with z_txt in its "
            "place (section 5.1, figure 8).",
            "CLIP score with the prior's z_img less that with z_txt",
            score["prior"],
            score["z_txt"],
        ),
        finding(
            "With the prior's z_img they fit better than from the caption alone (figure 8).",
            "CLIP score with the prior's z_img less that of the caption alone",
            score["prior"],
            score["caption"],
        ),
    ]


# --- one z_img, decoded often ----------------------------------------------------------------


def variations(bench: Bench) -> Section:
    """The z_img of real pictures, each decoded from several seeds   (unCLIP, figure 3)."""
    examples = bench.choose(bench.best_group, "variations", "variations")
    real = [example.pixels() for example in examples]
    z_real = bench.own_z_img(real)
    drawn = [
        bench.draw(_variants(bench, f"{e.id}", z, NUM_VARIATIONS), "variations")
        for e, z in zip(examples, z_real, strict=True)
    ]
    z_drawn = [bench.judge.see([d.pixels for d in row]) for row in drawn]
    z_seen = bench.judge.see(real)
    own = torch.stack([(z @ z_seen[i]).mean() for i, z in enumerate(z_drawn)])
    others = torch.stack([_mean_to_others(z, z_seen, i) for i, z in enumerate(z_drawn)])
    first = torch.stack(
        [((z @ z_seen.T).argmax(1) == i).double().mean() for i, z in enumerate(z_drawn)]
    )
    spread = torch.tensor([mean_pairwise_distance(z) for z in z_drawn])
    columns = [
        Column("cosine to its own real picture", better="higher"),
        Column("to the others"),
        Column("own picture found first", "share", better="higher"),
        DIVERSITY,
    ]
    cells = [with_interval(values) for values in (own, others, first, spread)]
    section = Section(
        "variations",
        "One z_img, decoded often",
        "Each row: a real picture, and what the decoder makes of its z_img without any caption, "
        "from one seed after another. What stays the same is what z_img holds; what changes is "
        "what it leaves open.",
        [Table("", columns, [cells])],
    )
    rows = [
        (example.caption, [bench.keep(pixels), *(d.path for d in row)])
        for example, pixels, row in zip(examples[:8], real, drawn, strict=False)
    ]
    section.galleries.append(Gallery("", ["real"], rows))
    section.findings.append(
        finding(
            "Variations keep what a picture shows and change what it leaves open (figure 3).",
            "cosine to the real picture less that to other real pictures, by the judge",
            own,
            others,
        )
    )
    section.notes.append(
        f"Found first: among {len(examples)} real pictures, by the judge, of all variations. "
        "Pictures are drawn from fresh noise; the paper begins from the inverted noise of the "
        "picture, which keeps more of its layout."
    )
    return section


def _variants(bench: Bench, key: str, z_img: Tensor, count: int) -> list[Sample]:
    """One z_img from several seeds, without a caption."""
    return [
        Sample("", bench.seed_of("variation", key, number), "z_img", z_img=z_img)
        for number in range(count)
    ]


def _mean_to_others(z: Tensor, z_seen: Tensor, own: int) -> Tensor:
    """Mean cosine of z [K, D] to all of z_seen [N, D] but one."""
    others = torch.arange(len(z_seen)) != own
    return (z @ z_seen[others].T).mean() if others.any() else torch.tensor(0.0)


# --- few principal components of z_img -------------------------------------------------------


def components(bench: Bench) -> Section:
    """Pictures from the first principal components of z_img   (unCLIP, figure 7)."""
    from unclip.pipeline.principal_components import PrincipalComponents

    fit = choose(bench.source.training, NUM_FIT, bench.seed, "components")
    principal = PrincipalComponents.fit(bench.own_z_img([example.pixels() for example in fit]))
    counts = [count for count in COMPONENTS if count <= principal.num_components]
    counts = counts or [principal.num_components]
    examples = bench.choose(bench.best_group, "components", "variations")
    real = [example.pixels() for example in examples]
    z_own, z_seen = bench.own_z_img(real), bench.judge.see(real)
    rows, by_count, drawn = [], [], {}
    for count in [*counts, 0]:
        z = principal.project(z_own, count) if count else z_own
        samples = [
            Sample("", bench.seed_of("variation", e.id, 0), "z_img", z_img=row)
            for e, row in zip(examples, z, strict=True)
        ]
        drawn[count] = bench.draw(samples, f"{count or 'all'} components")
        seen = bench.judge.see([d.pixels for d in drawn[count]])
        by_count.append((seen * z_seen).sum(1))
        kept = principal.explained(count) if count else 1.0
        found = ((seen @ z_seen.T).argmax(1) == torch.arange(len(seen))).double()
        cells = [with_interval(v) for v in (clip_score(z, z_own), by_count[-1], found)]
        rows.append([str(count or "all"), kept, *cells])
    columns = [Column("components", "text"), Column("variance", "share")]
    columns += [Column("cosine to the whole z_img"), Column("picture to the real one")]
    columns.append(Column("real one found first", "share", better="higher"))
    section = Section(
        "components",
        "Few components of z_img",
        "Real pictures from the first principal components of their z_img alone, all of a row from "
        "one seed: what does the embedding keep first?",
        [Table("", columns, rows)],
    )
    x = [*counts, bench.studio.pipeline.decoder.config.embedding_dim]
    series = [series_of("cosine", x, [row[3] for row in rows])]
    label = "cosine to the real picture"
    section.plots.append(Plot("Likeness by components", "components", label, series, log_x=True))
    names = [*map(str, counts), "all", "real"]
    shown = [
        (e.caption, [*(drawn[count][i].path for count in [*counts, 0]), bench.keep(real[i])])
        for i, e in enumerate(examples[:6])
    ]
    section.galleries.append(Gallery("", names, shown))
    section.findings.append(
        finding(
            "Few components keep the coarse of a picture, more of them its details (figure 7).",
            f"cosine to the real picture with {counts[-1]} components less that with {counts[0]}",
            by_count[len(counts) - 1],
            by_count[0],
        )
    )
    section.notes.append(
        f"Components of {len(fit)} training pictures' z_img; the embedding has {x[-1]} numbers."
    )
    return section


# --- words written onto pictures -------------------------------------------------------------


def lettering(bench: Bench) -> Section:
    """Real pictures with another thing's name written on them   (unCLIP, figure 6).

    CLIP is asked, zero-shot among the names of all things taken, what each picture shows.
    """
    examples = _unlike(bench.choose(bench.best_group, "lettering", "lettering"))
    names = [e.drawing.name if e.drawing else e.caption for e in examples]
    words = [names[(i + 1) % len(names)] for i in range(len(names))]
    classes = [
        noun_phrase(name) if e.drawing else name for name, e in zip(names, examples, strict=True)
    ]
    plain = [example.pixels() for example in examples]
    written = [write_on(pixels, word) for pixels, word in zip(plain, words, strict=True)]
    kinds = {"plain": plain, "with a word": written}
    drawn = {kind: _lettered(bench, kind, kinds[kind], examples) for kind in kinds}
    own_txt = bench.studio.pipeline.encode(classes).z_txt.float().cpu()
    scale = logit_scale(bench.studio.pipeline.text_and_image_encoder())
    rows: list[list[Cell]] = []
    shares: dict[str, tuple[Tensor, Tensor]] = {}
    judge_txt = bench.judge.read(classes)
    for kind, pictures in kinds.items():
        by_model = probabilities_among(bench.own_z_img(pictures), own_txt, scale)
        seen = bench.judge.see([d.pixels for row in drawn[kind] for d in row])
        by_judge = probabilities_among(seen, judge_txt, bench.judge.logit_scale)
        by_judge = by_judge.reshape(len(examples), -1, len(classes)).mean(1)
        for who, probabilities in (
            ("real, by the model's CLIP", by_model),
            ("drawn from it, by the judge", by_judge),
        ):
            shares[f"{kind} {who}"] = _thing_and_word(probabilities)
            rows.append([f"{kind}: {who}", *map(with_interval, shares[f"{kind} {who}"])])
    columns = [Column("picture", "text"), Column("P(the thing)", "share", better="higher")]
    columns.append(Column("P(the word)", "share", better="lower"))
    section = Section(
        "lettering",
        "Words written on pictures",
        "A word on a picture can make CLIP see the thing that the word names. Does it here, and do "
        "pictures drawn from such a z_img follow the word or the thing?",
        [Table("", columns, rows)],
    )
    section.galleries.append(_lettering_gallery(bench, kinds, drawn, names, words))
    section.findings = _lettering_findings(shares)
    section.notes.append(
        f"Probabilities among the {len(classes)} things of this section. {NUM_LETTERED} "
        "pictures are drawn of each z_img, without a caption."
    )
    return section


def _unlike(examples: Sequence[Example]) -> list[Example]:
    """The examples with different things: the first of each."""
    kept: dict[str, Example] = {}
    for example in examples:
        kept.setdefault(example.drawing.name if example.drawing else example.caption, example)
    return list(kept.values())


def _lettered(
    bench: Bench, kind: str, pictures: Sequence[np.ndarray], examples: Sequence[Example]
) -> list[list[Drawn]]:
    count = NUM_LETTERED
    samples = [
        sample
        for e, z in zip(examples, bench.own_z_img(pictures), strict=True)
        for sample in _variants(bench, e.id, z, count)
    ]
    drawn = bench.draw(samples, f"lettering, {kind}")
    return [drawn[start : start + count] for start in range(0, len(drawn), count)]


def _thing_and_word(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """P(own name) and P(the next one's), which is written on it; [N, N] to [N] each."""
    return probabilities.diagonal(), probabilities.roll(-1, dims=1).diagonal()


def _lettering_gallery(bench: Bench, kinds, drawn, names, words) -> Gallery:
    rows = []
    for i in range(min(4, len(names))):
        for kind in kinds:
            label = names[i] if kind == "plain" else f"{names[i]}, labelled \u201c{words[i]}\u201d"
            pictures = [bench.keep(kinds[kind][i]), *(d.path for d in drawn[kind][i])]
            rows.append((label, pictures))
    return Gallery("", ["real"], rows)


def _lettering_findings(shares: dict[str, tuple[Tensor, Tensor]]) -> list[Finding]:
    plain, written = "plain real, by the model's CLIP", "with a word real, by the model's CLIP"
    thing, word = shares["with a word drawn from it, by the judge"]
    return [
        finding(
            "A word on a picture makes CLIP see what the word names (figure 6).",
            "P(the word) with the word less that without it, by the model's CLIP",
            shares[written][1],
            shares[plain][1],
        ),
        finding(
            "Pictures drawn from such a z_img still show the thing, not the word (figure 6).",
            "P(the thing) less P(the word) of the pictures drawn, by the judge",
            thing,
            word,
        ),
    ]


def write_on(pixels: np.ndarray, word: str) -> np.ndarray:
    """A picture [S, S, 3] uint8 with a paper label across its middle that carries a word."""
    picture = Image.fromarray(pixels)
    size = picture.width
    draw = ImageDraw.Draw(picture)
    points = size / 4
    font = ImageFont.load_default(points)
    while points > 6 and draw.textlength(word, font=font) > 0.94 * size:
        points -= 0.5
        font = ImageFont.load_default(points)
    left, top, right, bottom = draw.textbbox((size / 2, size / 2), word, font=font, anchor="mm")
    pad = max(1, size // 32)
    box = (left - pad, top - pad, right + pad, bottom + pad)
    draw.rectangle(box, fill="white", outline="black", width=max(1, size // 96))
    draw.text((size / 2, size / 2), word, font=font, fill="black", anchor="mm")
    return np.asarray(picture)
