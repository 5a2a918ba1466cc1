"""The stages of a pipeline, each usable alone, as methods of UnCLIPPipeline.

Shapes: B pictures, K candidates of the prior, D CLIP embedding, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor
from tqdm.auto import tqdm

from unclip.diffusion.samplers import sampler_name
from unclip.diffusion.timesteps import Steps, timesteps_for
from unclip.models.clip import CLIP, TextEncoding
from unclip.pipeline import arguments, stages
from unclip.pipeline.arguments import STAGES
from unclip.pipeline.decoding import check_whole
from unclip.pipeline.memory import brought, in_turn
from unclip.pipeline.schedulers import chosen_scheduler, scheduler_for

# callback(pipeline, step, t, values) -> values to replace, if any
OnStep = Callable[[Any, int, int, dict], Mapping[str, Tensor] | None]


class SingleStages:
    """CLIP, the prior, the decoder and the upsamplers, one at a time, and their samplers."""

    def text_and_image_encoder(self) -> CLIP:
        """The clip and the tokenizer of this pipeline as an unclip.CLIP."""
        statistics = {key: self.config[key] for key in ("image_mean", "image_std", "normalize")}
        clip = CLIP(brought(self.clip), self.tokenizer, **statistics)
        return clip.placed(stages.execution_device(self.clip))

    @torch.no_grad()
    @in_turn
    def encode(self, captions: str | Sequence[str]) -> TextEncoding:
        """A caption or several to z_txt [N, D], text states, mask and tokens; see stages.encode.

        Raises:
            ValueError: for what is no text, or no text at all.
        """
        captions = arguments.check_texts("captions", captions)
        return stages.encode(self.text_and_image_encoder(), captions)

    @torch.no_grad()
    @in_turn
    def encode_images(self, pictures: Iterable[Tensor]) -> Tensor:
        """Pictures, each [1, 3, S, S] in [-1, 1], to z_img [B, D]."""
        return stages.encode_images(self.text_and_image_encoder(), pictures)

    @torch.no_grad()
    @in_turn
    def sample_prior(
        self,
        text: TextEncoding,
        seeds: Sequence[int],
        negative: TextEncoding | None = None,
        guidance_scale: float = 1.0,
        steps: Steps | None = None,
        num_candidates: int | None = None,
        on_step: OnStep | None = None,
        x_T: Tensor | None = None,
        **beginning: Any,
    ) -> Tensor:
        """Captions to z_img [B, D], always in float32; see stages.sample_prior.

        x_T: noise [K, B, D] of K candidates; beginning: other fields of stages.Stage.
        """
        check_rows(seeds, text.z_txt)
        negative = self._or_empty(negative, len(seeds))
        x_T = None if x_T is None else x_T.flatten(0, 1)
        stage = self._stage("prior", steps, on_step, x_T=x_T, **beginning)
        count = arguments.check_candidates(num_candidates, self.config, "num_candidates")
        return stages.sample_prior(stage, text, negative, seeds, guidance_scale, count)

    @torch.no_grad()
    @in_turn
    def sample_decoder(
        self,
        z_img: Tensor,
        text: TextEncoding,
        seeds: Sequence[int],
        negative: TextEncoding | None = None,
        guidance_scale: float = 3.0,
        steps: Steps | None = None,
        on_step: OnStep | None = None,
        **beginning: Any,
    ) -> Tensor:
        """z_img [B, D] and captions to [B, 3, 64, 64] in [-1, 1]; see stages.sample_decoder.

        beginning: fields of stages.Stage that say where sampling begins: x_T, eta, loop, known.
        """
        check_rows(seeds, z_img, text.z_txt)
        negative = self._or_empty(negative, len(seeds))
        stage = self._stage("decoder", steps, on_step, **beginning)
        return stages.sample_decoder(stage, z_img, text, negative, seeds, guidance_scale)

    @torch.no_grad()
    @in_turn
    def upsample(
        self,
        x_low: Tensor,
        seeds: Sequence[int],
        stage: str = "upsampler_256",
        steps: Steps | None = None,
        on_step: OnStep | None = None,
        tile_size: int | None = None,
        tile_overlap: int = 0,
        **beginning: Any,
    ) -> Tensor:
        """[B, 3, S, S] in [-1, 1] to [B, 3, 4 S, 4 S], by tiles if wanted; see stages.upsample."""
        check_rows(seeds, x_low)
        ready = self._stage(stage, steps, on_step, **beginning)
        return stages.upsample(ready, x_low, seeds, tile_size, tile_overlap)

    def initial_noise(
        self, stage: str, seeds: Sequence[int], num_candidates: int | None = None
    ) -> Tensor:
        """The x_T from which a stage begins for these seeds, which StageSettings.latents may be.

        Returns:
            [B, 3, S, S], and [K, B, D] for the K candidates of the prior; float32 on the CPU.
        """
        arguments.check_choice("stage", stage, STAGES)
        config = self.components[stage].config
        if stage != "prior":
            return stages.initial_noise(stage, (3, config.size, config.size), seeds)
        count = arguments.check_candidates(num_candidates, self.config, "num_candidates")
        streams = stages.candidate_streams(stage, count)
        shape = (config.embedding_dim,)
        return torch.stack([stages.initial_noise(stream, shape, seeds) for stream in streams])

    def sampler(self, stage: str) -> str:
        """The name of a stage's sampler; of a scheduler that has none, that of its class."""
        return sampler_name(self.components[f"{stage}_scheduler"])

    def use_sampler(self, stage: str, sampler: str | SchedulerMixin) -> None:
        """Give a stage another sampler by name ("ddim", "dpm++", "unipc", ...), or a scheduler."""
        arguments.check_choice("stage", stage, STAGES)
        network, own = self.components[stage], self.components[f"{stage}_scheduler"]
        if network is None:
            raise ValueError(f"stage: this model has no {stage}")
        chosen = chosen_scheduler("sampler", stage, network, own, sampler)
        setattr(self, f"{stage}_scheduler", chosen)

    @torch.no_grad()
    @in_turn
    def measure_score_norms(
        self,
        captions: str | Sequence[str] = ("",) * 64,
        z_img: Tensor | None = None,
        num_timesteps: int = 64,
        seed: int = 0,
    ) -> list[float]:
        """Estimate E ||eps_hat||^2 / d of the prior at even timesteps, for the sampler "analytic".

        z_img: [N, D] of pictures that the N captions fit; the prior draws them unless given.
        num_timesteps: two at least, the first and the last. What is found is kept in the prior's
        scheduler, and saved with it.

        Raises:
            ValueError: for a bad argument, by name, and for a model without a prior.
        """
        if self.prior is None:
            raise ValueError("captions: this model has no prior")
        captions = arguments.check_texts("captions", captions)
        check_whole("num_timesteps", num_timesteps, 2, self.prior.config.num_train_timesteps)
        text = self.encode(captions)
        seeds = [seed + index for index in range(len(captions))]
        if z_img is None:
            scheduler = scheduler_for(self.prior, "ddpm")
            drawn = self._stage("prior", None, None, scheduler)
            z_img = stages.sample_prior(drawn, text, text, seeds, 1.0, 1)
        elif len(z_img) != len(captions):
            raise ValueError(f"z_img: give {len(captions)} rows, one a caption, not {len(z_img)}")
        norms = stages.score_norms(
            self._stage("prior", None, None), text, z_img, seeds, num_timesteps
        )
        self.prior_scheduler.register_to_config(score_norms=norms)
        return norms

    def _or_empty(self, negative: TextEncoding | None, batch_size: int) -> TextEncoding:
        """The negative captions, or the empty text for each picture."""
        return self.encode([""]).expand(batch_size) if negative is None else negative

    def _stage(
        self,
        name: str,
        steps: Steps | None,
        on_step: OnStep | None,
        scheduler: SchedulerMixin | None = None,
        **beginning: Any,
    ) -> stages.Stage:
        """A stage of this pipeline, ready to be sampled; beginning are other fields of Stage."""
        scheduler = scheduler or self.components[f"{name}_scheduler"]
        steps = self.config.default_steps[name] if steps is None else steps
        timesteps = timesteps_for(steps, scheduler)

        def report(step: int, t_next: int, x_t: Tensor) -> Tensor | None:
            values = {"stage": name, "num_steps": len(timesteps), "x_t": x_t}
            changed = on_step(self, step, timesteps[step], values)
            return changed.get("x_t") if isinstance(changed, Mapping) else None

        return stages.Stage(
            name,
            self.components[name],
            scheduler,
            steps,
            on_step=report if on_step else None,
            progress=lambda indices: self._bar(name, indices),
            **beginning,
        )

    def _bar(self, stage: str, indices: Sequence[int]) -> Iterable[int]:
        """A progress bar on a terminal, none elsewhere, as set_progress_bar_config says."""
        settings = getattr(self, "_progress_bar_config", {})
        return tqdm(indices, **{"desc": stage, "disable": None, **settings})


def check_rows(seeds: Sequence[int], *tensors: Tensor) -> None:
    """Refuse batches that have not a row for each seed."""
    for tensor in tensors:
        if len(tensor) != len(seeds):
            raise ValueError(f"seeds: {len(seeds)} are given for a batch of {len(tensor)}")
