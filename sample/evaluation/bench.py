"""What every section is given: the studio, the judge, the data, the seed and the sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unclip.metrics.cmmd import cmmd
from unclip.metrics.frechet import frechet_distance
from unclip.metrics.intervals import (
    bootstrap_interval,
    paired_difference,
    wilson_interval,
)
from unclip.metrics.similarity import clip_score, ranks_among
from unclip_sample.evaluation.judge import Judge
from unclip_sample.evaluation.protocol import choose, distractors_of, keyed_seed, rivals_of
from unclip_sample.evaluation.results import Cell, Finding, verdict_of
from unclip_sample.evaluation.sources import DataSource, Example
from unclip_sample.evaluation.studio import Drawn, Sample, Studio
from unclip_sample.png import save_png

REAL = "real"
NUM_REFERENCE = 500


@dataclass
class Bench:
    """All that a section works with.

    sizes: how many subjects each section takes, by name; see SIZES in words.py.
    extract: features [1, D] of a Pillow image, by Inception where its weights are given: for FID.
    """

    studio: Studio
    judge: Judge
    source: DataSource
    seed: int
    sizes: dict[str, int]
    extract: Callable[[Image.Image], Tensor] | None = None
    say: Callable[[str], None] = field(default=lambda line: None)

    def choose(self, group: str, section: str, *key: object) -> list[Example]:
        """The examples of a group that a section takes."""
        return choose(self.source.groups[group], self.sizes[section], self.seed, *key)

    @property
    def best_group(self) -> str:
        """The group whose captions a model should know: what sweeps are made on."""
        return "seen" if "seen" in self.source.groups else "pairs"

    def seed_of(self, *key: object) -> int:
        """The seed of a picture; the same for every model and setting."""
        return keyed_seed(self.seed, "picture", *key)

    def sample(self, caption: str, number: int = 0, **settings: Any) -> Sample:
        """A caption's picture with its seed; `number` counts several of one caption."""
        return Sample(caption, self.seed_of(caption, number), **settings)

    def draw(self, samples: Sequence[Sample], label: str) -> list[Drawn]:
        """Pictures of samples."""
        return self.studio.draw(samples, label)

    def keep(self, pixels: np.ndarray) -> str:
        """Put a real picture [S, S, 3] uint8 into the report's folder; its path there."""
        digest = hashlib.sha256(pixels.tobytes() + repr(pixels.shape).encode()).hexdigest()[:20]
        path = self.studio.folder / REAL / f"{digest}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(Image.fromarray(pixels), path, None, overwrite=True)
        return path.relative_to(self.studio.folder).as_posix()

    def own_z_img(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures, each [S, S, 3] uint8, to z_img [N, D] by the model's own CLIP."""
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.studio.pipeline.encode_images(x.split(32)).float().cpu()

    # --- what the judge says ---------------------------------------------------------------------

    @cached_property
    def reference(self) -> Tensor:
        """Embeddings [M, D] of real pictures, NUM_REFERENCE at most, that CMMD compares with."""
        known = self.source.groups[self.best_group]
        chosen = choose(known, NUM_REFERENCE, self.seed, "reference")
        return self.judge.see([example.pixels() for example in chosen])

    def cmmd(self, z: Tensor) -> float | None:
        """CMMD, unbiased, of pictures' embeddings [N, D] from real ones; None for a single one."""
        if min(len(z), len(self.reference)) < 2:
            return None
        return cmmd(z, self.reference, unbiased=True)

    def fid(self, pictures: Sequence[np.ndarray]) -> float | None:
        """FID from all real training pictures; None without Inception, or of too few pictures."""
        if self.extract is None:
            return None
        drawn = self._features(pictures)
        if min(len(drawn), len(self.real_features)) <= drawn.shape[1]:
            return None
        return frechet_distance(self.real_features, drawn)

    @cached_property
    def real_features(self) -> Tensor:
        """Inception's features [M, D] of all training pictures."""
        self.say(f"Inception looks at {len(self.source.training):,} training pictures")
        return self._features([example.pixels() for example in self.source.training])

    def _features(self, pictures: Sequence[np.ndarray]) -> Tensor:
        return torch.cat([self.extract(Image.fromarray(pixels)) for pixels in pictures])

    def ranks(
        self, z: Tensor, captions: Sequence[str], distractors: Sequence[Sequence[str]]
    ) -> Tensor:
        """The rank of each picture's caption among its distractors, [N]; 0 is found first."""
        fewest = min(map(len, distractors))
        every = list(dict.fromkeys([*captions, *(c for row in distractors for c in row[:fewest])]))
        row_of = {caption: row for row, caption in enumerate(every)}
        own = torch.tensor([row_of[caption] for caption in captions])
        others = torch.tensor([[row_of[c] for c in row[:fewest]] for row in distractors])
        return ranks_among(z, self.judge.read(every), own, others)

    def plain_distractors(self, examples: Sequence[Example]) -> list[list[str]]:
        """Captions beside each example's: of the same style, NUM_NEAR of the same category."""
        rivals = {style: rivals_of(self.source, style) for style in {e.style for e in examples}}
        return [
            distractors_of(e.caption, e.category, rivals[e.style], self.seed, "distractors")
            for e in examples
        ]

    def verdicts(self, z: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        """What the judge says of one picture an example, by measure: values [N]."""
        captions = [example.caption for example in examples]
        ranks = self.ranks(z, captions, self.plain_distractors(examples))
        return {
            "R@1": (ranks < 1).double(),
            "R@5": (ranks < 5).double(),
            "CLIP score": clip_score(z, self.judge.read(captions)),
        }


def with_interval(values: Tensor | Sequence[float]) -> Cell:
    """A mean with the ends of its 95 % interval; values [N], one a caption.

    Wilson's interval where all values are 0 or 1 (where all are alike, a bootstrap would be sure
    of itself for no reason), else the bootstrap's.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if len(values) == 0:
        return None
    if ((values == 0) | (values == 1)).all():
        low, high = wilson_interval(float(values.sum()), len(values))
    else:
        low, high = bootstrap_interval(values)
    return {"value": float(values.mean()), "low": low, "high": high}


def mean_by(values: Tensor, num_each: int) -> Tensor:
    """Means over pictures of one caption: [N * num_each], caption by caption, to [N]."""
    return values.double().reshape(-1, num_each).mean(dim=1)


def finding(paper: str, here: str, better: Tensor, worse: Tensor) -> Finding:
    """Whether `better` exceeds `worse` on the same captions, [N] each; `here` gets the numbers."""
    difference, low, high = paired_difference(better, worse)
    numbers = f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
    return Finding(paper, f"{here}: {numbers}", verdict_of(low, high))
