"""Pictures drawn once: each lies in a file named by all that it depends on.

A run that is called again, or that asks for what another section asked for, reads the file. Several
processes (`accelerate launch`) draw a part each and then read the others' files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unclip.pipeline.settings import scales_of
from unclip_sample.png import read_png, save_png

PICTURES = "pictures"
CONDITIONS = ("prior", "z_txt", "caption", "z_img")


@dataclass(frozen=True)
class Sample:
    """A picture to draw. What is None is as the model has it.

    condition: what the decoder is given of a picture, beside the caption: "prior", the prior's
        z_img (of prior_seed where its noise is not that of the picture's seed); "z_txt", the
        caption's embedding in its place; "caption", nothing; "z_img", the one given here, [D].
    """

    caption: str
    seed: int
    condition: str = "prior"
    prior_seed: int | None = None
    z_img: Tensor | None = field(default=None, compare=False)
    guidance: float | None = None
    steps: int | None = None
    sampler: str | None = None
    num_candidates: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn: its path within the folder, [S, S, 3] uint8, its z_img [D]."""

    path: str
    pixels: np.ndarray = field(repr=False)
    z_img: Tensor = field(repr=False)


@dataclass
class Processes:
    """This process among those that draw together."""

    index: int = 0
    count: int = 1
    state: Any = None

    @classmethod
    def join(cls) -> Processes:
        """The processes that a launcher started; alone without one."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())  # without, it sees one process
        return cls(state.process_index, state.num_processes, state)

    @property
    def is_main(self) -> bool:
        """Whether this one writes the report."""
        return self.index == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()


class Studio:
    """Draws samples with a pipeline into folder/pictures, and reads what lies there.

    Args:
        pipeline: an UnCLIPPipeline.
        model, digest: name and hash of its folder.
        folder: of the report.
        size: pixels a side.
        batch_size: pictures at once. 1 gives the same pixels whatever else is drawn; in larger
            batches sums may be rounded otherwise, by a level here and there.
    """

    def __init__(
        self,
        pipeline: Any,
        model: str,
        digest: str,
        folder: Path,
        size: int,
        batch_size: int = 8,
        processes: Processes | None = None,
        quiet: bool = False,
    ):
        self.pipeline, self.model, self.digest = pipeline, model, digest
        self.folder, self.size, self.batch_size = folder, size, batch_size
        self.processes, self.quiet = processes or Processes(), quiet
        self.num_drawn = 0
        self.own_scheduler = pipeline.decoder_scheduler
        self.samplers = {stage: pipeline.sampler(stage) for stage in ("prior", "decoder")}

    def has_sampler(self, name: str) -> bool:
        """Whether the decoder can be sampled so."""
        try:
            self._use(name)
        except (KeyError, ValueError):
            return False
        return True

    def _use(self, sampler: str) -> None:
        """Give the decoder a sampler: its own scheduler, or another by name."""
        if sampler == self.samplers["decoder"]:
            self.pipeline.decoder_scheduler = self.own_scheduler
        else:
            self.pipeline.use_sampler("decoder", sampler)

    def resolved(self, sample: Sample) -> Sample:
        """The sample with the model's defaults filled in, so that equal pictures have one name."""
        config = self.pipeline.config
        usual, has_words = config.default_guidance, bool(sample.caption)
        scales = scales_of("decoder", sample.guidance, None, usual, has_words)
        given = {
            "guidance": float(scales["guidance_scale"]),
            "steps": config.default_steps["decoder"] if sample.steps is None else sample.steps,
            "sampler": sample.sampler or self.samplers["decoder"],
            "prior_seed": sample.seed if sample.prior_seed is None else sample.prior_seed,
            "num_candidates": sample.num_candidates or config.default_candidates,
            "size": self.size if sample.size is None else sample.size,
        }
        if sample.condition != "prior":
            given |= {"prior_seed": None, "num_candidates": None}
        return replace(sample, **given)

    def key(self, sample: Sample) -> str:
        """20 hexadecimal digits of the model, the caption, the seed and all settings."""
        given = None if sample.z_img is None else _digest(sample.z_img)
        config = self.pipeline.config
        usual = {
            "image_guidance": config.default_guidance.get("image"),
            "guidance_interval": config.default_guidance_interval,
        }
        facts = {name: value for name, value in usual.items() if value is not None}
        facts |= {
            "model": self.digest,
            "size": sample.size,
            "dtype": str(self.pipeline.decoder.dtype),
            "z_img": given,
            **{name: getattr(sample, name) for name in SETTINGS},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]

    def path(self, sample: Sample) -> Path:
        """Where the picture of a resolved sample lies."""
        key = self.key(sample)
        return self.folder / PICTURES / key[:2] / f"{key}.png"

    def draw(self, samples: Iterable[Sample], label: str = "") -> list[Drawn]:
        """The pictures of samples, in their order; what is not there yet is drawn."""
        asked = [self.resolved(sample) for sample in samples]
        paths = [self.path(sample) for sample in asked]
        unique = list(dict(zip(paths, asked, strict=True)).items())
        mine = unique[self.processes.index :: self.processes.count]
        self._draw_missing(mine, label)
        self.processes.wait()
        self._draw_missing(unique, label)  # what another process could not
        return [self.read(path) for path in paths]

    def read(self, path: Path) -> Drawn:
        """A picture that was drawn before."""
        record = read_png(path)
        z_img = torch.frombuffer(bytearray.fromhex(record["z_img"]), dtype=torch.float32)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        return Drawn(path.relative_to(self.folder).as_posix(), pixels, z_img)

    def _draw_missing(self, wanted: Sequence[tuple[Path, Sample]], label: str) -> None:
        missing = [(path, sample) for path, sample in wanted if not path.exists()]
        groups: dict[tuple, list[tuple[Path, Sample]]] = defaultdict(list)
        for path, sample in missing:
            settings = (sample.condition, sample.guidance, sample.steps, sample.sampler)
            groups[(*settings, sample.num_candidates, sample.size)].append((path, sample))
        hidden = True if self.quiet or not self.processes.is_main else None
        with tqdm(total=len(missing), desc=label, unit="picture", disable=hidden) as bar:
            for group in groups.values():
                for start in range(0, len(group), self.batch_size):
                    batch = group[start : start + self.batch_size]
                    self._draw_batch([path for path, _ in batch], [sample for _, sample in batch])
                    bar.update(len(batch))

    def _draw_batch(self, paths: list[Path], samples: list[Sample]) -> None:
        first, pipeline = samples[0], self.pipeline
        self._use(first.sampler)
        output = pipeline(
            [sample.caption for sample in samples],
            seeds=[sample.seed for sample in samples],
            image_embeds=self._z_img(samples),
            guidance_scale=first.guidance,
            decoder_num_inference_steps=first.steps,
            size=first.size,
        )
        for path, sample, image, z in zip(
            paths, samples, output.images, output.image_embeds, strict=True
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            record = self._record(sample, output.settings, z)
            save_png(image, path, record, overwrite=True)
        self.num_drawn += len(samples)

    def _z_img(self, samples: list[Sample]) -> Tensor:
        """What the decoder is given in place of a picture's embedding, [B, D]."""
        pipeline, kind = self.pipeline, samples[0].condition
        if kind == "z_img":
            return torch.stack([sample.z_img for sample in samples])
        if kind == "caption":
            return pipeline.decoder.null_z_img(len(samples)).float().cpu()
        text = pipeline.encode([sample.caption for sample in samples])
        if kind == "z_txt":
            return text.z_txt.float().cpu()
        scale = pipeline.config.default_guidance["prior"]
        seeds = [sample.prior_seed for sample in samples]
        candidates = samples[0].num_candidates
        z_img = pipeline.sample_prior(text, seeds, guidance_scale=scale, num_candidates=candidates)
        return z_img.cpu()

    def _record(self, sample: Sample, settings: dict[str, Any], z_img: Tensor) -> dict[str, Any]:
        """How a picture was made, in the words of unclip-sample."""
        asked = {name: getattr(sample, name) for name in SETTINGS}
        return {
            "prompt": sample.caption,
            "seed": sample.seed,
            **settings,
            "model": self.model,
            "model_hash": self.digest,
            "z_img": z_img.float().cpu().numpy().tobytes().hex(),
            "evaluation": {key: value for key, value in asked.items() if value is not None},
        }


SETTINGS = (
    *("caption", "seed", "condition", "prior_seed"),
    *("guidance", "steps", "sampler", "num_candidates"),
)


def _digest(z_img: Tensor) -> str:
    return hashlib.sha256(z_img.float().cpu().numpy().tobytes()).hexdigest()[:20]
