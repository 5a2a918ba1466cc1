"""UnCLIPPipeline: a caption becomes z_txt, z_img, a small picture, and larger ones.

Shapes: B pictures, D CLIP embedding, S pixels a side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer

from unclip.diffusion.samplers import sampler_name
from unclip.diffusion.sampling import Steps, timesteps_for
from unclip.models.clip import CLIP, OPENAI_MEAN, OPENAI_STD, TextEncoding
from unclip.models.decoder import Decoder
from unclip.models.prior import Prior
from unclip.models.upsampler import Upsampler
from unclip.pipeline import arguments, stages
from unclip.pipeline.arguments import GUIDED, STAGES
from unclip.pipeline.call import Conditions, best_of, with_advice
from unclip.pipeline.editing import Editing
from unclip.pipeline.edits import Edit
from unclip.pipeline.latents import LatentOperations
from unclip.pipeline.loading import NETWORKS, read_network
from unclip.pipeline.memory import Memory, brought
from unclip.pipeline.order import Order, check_order
from unclip.pipeline.output import UnCLIPOutput, finished, settings_of
from unclip.pipeline.published.hub import push
from unclip.pipeline.published.sources import read_model
from unclip.pipeline.saving import write_clip, write_folder, write_index, write_network
from unclip.pipeline.schedulers import DEFAULT_SAMPLERS, chosen_scheduler, scheduler_for
from unclip.pipeline.settings import StageSettings

OnStep = Callable[["UnCLIPPipeline", int, int, dict], Mapping[str, Tensor] | None]


class UnCLIPPipeline(LatentOperations, Editing, Memory, DiffusionPipeline):
    """unCLIP (DALL-E 2): CLIP, a prior, a decoder and two upsamplers, each with its scheduler.

    The prior and CLIP are kept in float32, so that rounding never picks another picture; the
    decoder and the upsamplers take the dtype that they are given or moved to.

    Args:
        clip, tokenizer: CLIP's two towers and its tokenizer.
        prior: may be None where z_img is given with every call.
        decoder: draws the smallest pictures.
        upsampler_256, upsampler_1024: each draws pictures of four times the side; may be None.
        prior_scheduler, ...: a diffusers scheduler for each of them.
        image_mean, image_std, normalize: what CLIP expects of pixels, see unclip.CLIP.
        default_steps: steps by stage, for calls that name none.
        default_guidance: scales by stage ("prior", "decoder"), or a number for the decoder.

    Raises:
        ValueError: for parts that do not fit each other, by name.
    """

    model_cpu_offload_seq = "clip->prior->decoder->upsampler_256->upsampler_1024"
    _optional_components = [
        *("prior", "prior_scheduler"),
        *("upsampler_256", "upsampler_256_scheduler"),
        *("upsampler_1024", "upsampler_1024_scheduler"),
    ]

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: CLIPTokenizer,
        decoder: Decoder,
        decoder_scheduler: SchedulerMixin,
        prior: Prior | None = None,
        prior_scheduler: SchedulerMixin | None = None,
        upsampler_256: Upsampler | None = None,
        upsampler_256_scheduler: SchedulerMixin | None = None,
        upsampler_1024: Upsampler | None = None,
        upsampler_1024_scheduler: SchedulerMixin | None = None,
        image_mean: Sequence[float] = OPENAI_MEAN,
        image_std: Sequence[float] = OPENAI_STD,
        normalize: bool = True,
        default_steps: Mapping[str, Steps] | None = None,
        default_guidance: Mapping[str, float] | float | None = None,
    ):
        super().__init__()
        self.register_modules(
            clip=clip,
            tokenizer=tokenizer,
            prior=prior,
            decoder=decoder,
            upsampler_256=upsampler_256,
            upsampler_1024=upsampler_1024,
            prior_scheduler=prior_scheduler,
            decoder_scheduler=decoder_scheduler,
            upsampler_256_scheduler=upsampler_256_scheduler,
            upsampler_1024_scheduler=upsampler_1024_scheduler,
        )
        steps = arguments.resolve_steps("default_steps", default_steps)
        self.register_to_config(
            image_mean=list(image_mean),
            image_std=list(image_std),
            normalize=normalize,
            default_steps=steps,
            default_guidance=arguments.resolve_guidance(default_guidance),
        )
        arguments.check_fit(self.components)
        for stage in STAGES:
            if self.components[stage] is not None:
                name = f"default_steps[{stage!r}]"
                arguments.check_steps(name, steps[stage], self.components, stage)
        self.text_and_image_encoder()  # refuses a tokenizer that is not the model's
        self._settle()

    def _settle(self) -> None:
        """Bring every network to the precision and memory layout that suit it."""
        for network in (self.clip, self.prior):
            if network is not None:
                nn.Module.float(network)
        for network in (self.decoder, self.upsampler_256, self.upsampler_1024):
            if network is not None:  # 5 to 10 % quicker on a CPU
                nn.Module.to(network, memory_format=torch.channels_last)
        for name in ("clip", *STAGES):
            if self.components[name] is not None:
                self.components[name].eval()

    # --- from folders, to folders, to devices -------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        variant: str | None = None,
        clip: str | Path | None = None,
        prior: str | Path | None = None,
        upsampler_1024: str | Path | None = None,
    ) -> UnCLIPPipeline:
        """Read a model that save_pretrained wrote or that others published; the embedded one.

        path: a folder, or a name of the Hugging Face hub ("kakaobrain/karlo-v1-alpha"); without
        it, the embedded model. docs/checkpoints.md lists the layouts. variant: the word in the
        names of a published model's files ("fp16"). clip, prior, upsampler_1024: folders, files
        or names of parts that take the place of the model's own; "embedded" is the last upsampler
        of the embedded model.

        Strict, running nothing that stands in the files: see loading.py.

        Raises:
            FileNotFoundError: when the folder or a file of it is missing.
            ModelFileError: a ValueError that names the file in which something is wrong.
        """
        check_dtype(dtype)
        pipeline = cls(**read_model(path, dtype, variant, clip, prior, upsampler_1024))
        return pipeline if device is None else pipeline.to(device)

    @classmethod
    def from_stages(
        cls,
        clip: CLIP | str | Path,
        decoder: Decoder | str | Path,
        prior: Prior | str | Path | None = None,
        upsampler_256: Upsampler | str | Path | None = None,
        upsampler_1024: Upsampler | str | Path | None = None,
        default_steps: Mapping[str, Steps] | None = None,
        default_guidance: Mapping[str, float] | float | None = None,
        samplers: Mapping[str, str] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> UnCLIPPipeline:
        """Join networks, or the folders that training wrote, into a pipeline.

        samplers: names by stage ("ddpm", "ddim", "unipc", ...), where they should not be those of
        DEFAULT_SAMPLERS. The schedulers follow each network's config.
        """
        check_dtype(dtype)
        given = dict(zip(STAGES, (prior, decoder, upsampler_256, upsampler_1024), strict=True))
        samplers = DEFAULT_SAMPLERS | dict(samplers or {})
        parts: dict[str, Any] = {}
        for stage, network in given.items():
            if isinstance(network, str | Path):
                kind = torch.float32 if stage == "prior" else dtype
                network = read_network(NETWORKS[stage], Path(network), kind)
            parts[stage] = network
            parts[f"{stage}_scheduler"] = network and scheduler_for(network, samplers[stage])
        clip = clip if isinstance(clip, CLIP) else CLIP.from_pretrained(clip)
        return cls(
            clip=clip.model,
            tokenizer=clip.tokenizer,
            image_mean=clip.image_mean.flatten().tolist(),
            image_std=clip.image_std.flatten().tolist(),
            normalize=clip.normalize,
            default_steps=default_steps,
            default_guidance=default_guidance,
            **parts,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        max_shard_size: int | str = "15MB",
        overwrite: bool = False,
    ) -> None:
        """Write everything that from_pretrained needs: safetensors and JSON, whole or not at all.

        dtype: of the stored weights, that of the networks unless given.

        Raises:
            FileExistsError: when the folder is not empty and overwrite is not set, or when it
                holds what is no model.
            FloatingPointError: for weights that are not finite.
        """
        write_folder(Path(folder), overwrite, lambda new: self._write(new, dtype, max_shard_size))

    def _write(self, folder: Path, dtype: torch.dtype | None, max_shard_size: int | str) -> None:
        parts = self.components
        settings = {key: self.config[key] for key in ("default_steps", "default_guidance")}
        write_index(folder, {name: tuple(self.config[name]) for name in parts}, settings)
        with stages.TOKENIZING:
            write_clip(self.text_and_image_encoder(), folder / "clip", dtype, max_shard_size)
        for stage in STAGES:
            if parts[stage] is not None:
                write_network(parts[stage], folder / stage, dtype, max_shard_size)
                parts[f"{stage}_scheduler"].save_pretrained(folder / f"{stage}_scheduler")

    def push_to_hub(self, name: str, license: str, **settings) -> str:
        """Upload this model to the Hugging Face hub, with a model card; see published/hub.py."""
        return push(self, name, license, **settings)

    def to(self, *args, **kwargs) -> UnCLIPPipeline:
        """Move all networks to a device, and the decoder and the upsamplers to a dtype."""
        device, dtype = split_move(args, kwargs)
        if device is not None:
            super().to(device)
        for network in (self.decoder, self.upsampler_256, self.upsampler_1024):
            if network is not None and dtype is not None:
                nn.Module.to(network, dtype)
        return self

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
    def measure_score_norms(
        self,
        captions: Sequence[str] = ("",) * 64,
        z_img: Tensor | None = None,
        num_timesteps: int = 64,
        seed: int = 0,
    ) -> list[float]:
        """Estimate E ||eps_hat||^2 / d of the prior at even timesteps, for the sampler "analytic".

        z_img: [N, D] of pictures that the N captions fit; the prior draws them unless given. What
        is found is kept in the prior's scheduler, and saved with it.
        """
        if self.prior is None:
            raise ValueError("captions: this model has no prior")
        text = self.encode(captions)
        seeds = [seed + index for index in range(len(captions))]
        if z_img is None:
            scheduler = scheduler_for(self.prior, "ddpm")
            drawn = self._stage("prior", None, None, scheduler)
            z_img = stages.sample_prior(drawn, text, text, seeds, 1.0, 1)
        norms = stages.score_norms(
            self._stage("prior", None, None), text, z_img, seeds, num_timesteps
        )
        self.prior_scheduler.register_to_config(score_norms=norms)
        return norms

    # --- drawing ------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float | None = None,
        prior_guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        size: int | None = None,
        prior_num_inference_steps: Steps | None = None,
        decoder_num_inference_steps: Steps | None = None,
        upsampler_256_num_inference_steps: Steps | None = None,
        upsampler_1024_num_inference_steps: Steps | None = None,
        num_prior_candidates: int = 2,
        image: Any = None,
        image_embeds: Tensor | None = None,
        text_embeds: TextEncoding | None = None,
        stages: Mapping[str, StageSettings | dict] | None = None,
        best_of: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: int | list[int] | None = None,
        max_batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStep | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("x_t",),
        interrupt: threading.Event | None = None,
        edit: Edit | None = None,
    ) -> UnCLIPOutput | tuple:
        """Draw pictures of captions, or variations of pictures.

        prompt: one caption or several; may be left out where text_embeds, image or image_embeds
            lead, which are what encode() gives, pictures, and z_img [N, D].
        negative_prompt: takes the place of the empty text that guidance leads away from.
        guidance_scale, prior_guidance_scale: 0 ignores the caption, 1 does not guide.
        size: pixels a side, the model's largest unless given; 512 is averaged from 1024.
        ..._num_inference_steps: a number, "fast27", "ddimN", or a descending list of timesteps.
        num_prior_candidates: embeddings the prior draws, of which the nearest to z_txt is kept.
        stages: all that can be said of single stages, see StageSettings; it goes before the others.
        best_of: pictures drawn for each prompt; the num_images_per_prompt that CLIP ranks highest
            are kept, and finished by the later stages.
        seeds, generator: one seed n for n, n+1, n+2, ..., or one for each picture that is drawn; or
            what draws them. A picture depends on its caption, settings and seed alone.
        max_batch_size: pictures at a time, where memory is short.
        output_type: "pil", "np", "pt" or "latent".
        callback_on_step_end, interrupt: see call.Report; a set interrupt raises Interrupted.
        edit: pictures to begin from or to keep in part; inpaint() and its like hand it over.

        Raises ValueError for a bad argument, by name, before anything runs; FloatingPointError for
        a value that is not finite, with stage and step; torch.OutOfMemoryError with advice.
        """
        order = check_order(self.components, self.config, locals())
        output = self._finish(order, *self._draw(order, self._conditions(order)))
        return output if return_dict else output.to_tuple()

    def _conditions(self, order: Order) -> Conditions:
        """Captions, negative captions and z_img [B, D] of every picture."""
        order.report.check()
        rows = torch.tensor(order.subjects)
        text = self.encode(order.captions) if order.text is None else order.text
        negatives = {stage: self.encode(texts) for stage, texts in order.negatives.items()}
        conditions = Conditions(
            text.select(rows),
            {stage: negative.select(rows) for stage, negative in negatives.items()},
            order.seeds,
            order.x_T,
            edit=None if order.edit is None else order.edit.select(order.subjects),
        )
        if order.pictures:
            z_img = self.encode_images(order.pictures)[rows]
        elif order.embeddings is not None:
            z_img = order.embeddings[rows]
        else:
            batches = conditions.batches(order.max_batch_size)
            z_img = torch.cat([self._draw_stage("prior", order, batch) for batch in batches])
        return replace(conditions, z_img=z_img)

    def _draw(
        self, order: Order, conditions: Conditions
    ) -> tuple[Conditions, list[Tensor], Tensor | None]:
        """The conditions of the pictures that are kept, every stage's [B, 3, S, S], and scores."""
        drawn: list[Tensor] = []
        scores = None
        for stage in order.stages:
            order.report.check()
            batches = conditions.batches(order.max_batch_size)
            drawn.append(torch.cat([self._draw_stage(stage, order, batch) for batch in batches]))
            if order.num_drawn > order.num_kept and stage == self._ranked_at(order):
                scores = self._scores(drawn[-1], conditions.text)
                kept = best_of(scores, order.num_drawn, order.num_kept)
                conditions, scores = conditions.select(kept), scores[kept]
                drawn = [x[kept] for x in drawn]
            conditions = replace(conditions, x_low=drawn[-1])
        return conditions, drawn, scores

    def _draw_stage(self, stage: str, order: Order, batch: Conditions) -> Tensor:
        """What one stage makes of a batch, on the CPU; with advice where memory runs out."""
        chosen, seeds = order.settings[stage], batch.seeds
        settings: dict[str, Any] = {
            "steps": chosen.steps,
            "on_step": order.report.on_step(batch),
            "scheduler": chosen.scheduler,
            "x_T": batch.x_T.get(stage),
        }
        if stage in GUIDED:
            settings["guidance_interval"] = chosen.guidance_interval
            settings["guidance_rescale"] = chosen.guidance_rescale
        if batch.edit is not None and stage in order.stages:
            network, side = self.components[stage], order.stages[stage]
            settings |= batch.edit.beginning(stage, network, side, seeds)

        def draw() -> Tensor:
            if stage not in GUIDED:
                return self.upsample(batch.x_low, seeds, stage, **settings).cpu()
            scale, negative = chosen.guidance_scale, batch.negatives[stage]
            if stage == "decoder":
                drawn = self.sample_decoder(
                    batch.z_img, batch.text, seeds, negative, scale, **settings
                )
            else:
                settings["num_candidates"] = order.num_candidates
                drawn = self.sample_prior(batch.text, seeds, negative, scale, **settings)
            return drawn.cpu()

        return with_advice(draw, stage, len(seeds), self.components[stage].dtype)

    def _ranked_at(self, order: Order) -> str:
        """The first stage whose pictures are as large as what CLIP sees, or the last."""
        seen = self.clip.config.vision_config.image_size
        return next(
            (stage for stage, side in order.stages.items() if side >= seen), list(order.stages)[-1]
        )

    def _scores(self, x: Tensor, text: TextEncoding) -> Tensor:
        """The cosine [B] of CLIP's embeddings of pictures [B, 3, S, S] and of their captions."""
        z_img = self.encode_images(x.split(1)).cpu()
        return F.cosine_similarity(z_img, text.z_txt.cpu(), dim=-1)

    def _finish(
        self, order: Order, conditions: Conditions, drawn: list[Tensor], scores: Tensor | None
    ) -> UnCLIPOutput:
        """The pictures in the size and the form that were asked for."""
        self.maybe_free_model_hooks()
        *earlier, x = drawn
        if order.size < x.shape[-1]:
            x = F.interpolate(x.float(), (order.size, order.size), mode="area")
        x = x if conditions.edit is None else conditions.edit.kept(x)
        return UnCLIPOutput(
            finished(x, order.output_type),
            conditions.z_img.cpu(),
            conditions.seeds,
            {x_low.shape[-1]: finished(x_low, order.output_type) for x_low in earlier},
            settings_of(order),
            conditions.text,
            scores,
        )

    # --- the stages, each usable alone --------------------------------------------------------

    def text_and_image_encoder(self) -> CLIP:
        """The clip and the tokenizer of this pipeline as an unclip.CLIP."""
        statistics = {key: self.config[key] for key in ("image_mean", "image_std", "normalize")}
        clip = CLIP(brought(self.clip), self.tokenizer, **statistics)
        return clip.placed(stages.execution_device(self.clip))

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> TextEncoding:
        """Captions to z_txt, text states, mask and tokens; see stages.encode."""
        return stages.encode(self.text_and_image_encoder(), captions)

    @torch.no_grad()
    def encode_images(self, pictures: Iterable[Tensor]) -> Tensor:
        """Pictures, each [1, 3, S, S] in [-1, 1], to z_img [B, D]."""
        return stages.encode_images(self.text_and_image_encoder(), pictures)

    @torch.no_grad()
    def sample_prior(
        self,
        text: TextEncoding,
        seeds: Sequence[int],
        negative: TextEncoding | None = None,
        guidance_scale: float = 1.0,
        steps: Steps | None = None,
        num_candidates: int = 2,
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
        return stages.sample_prior(stage, text, negative, seeds, guidance_scale, num_candidates)

    @torch.no_grad()
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

    def initial_noise(self, stage: str, seeds: Sequence[int], num_candidates: int = 2) -> Tensor:
        """The x_T from which a stage begins for these seeds, which StageSettings.latents may be.

        Returns:
            [B, 3, S, S], and [K, B, D] for the K candidates of the prior; float32 on the CPU.
        """
        arguments.check_choice("stage", stage, STAGES)
        config = self.components[stage].config
        if stage != "prior":
            return stages.initial_noise(stage, (3, config.size, config.size), seeds)
        streams = stages.candidate_streams(stage, num_candidates)
        shape = (config.embedding_dim,)
        return torch.stack([stages.initial_noise(stream, shape, seeds) for stream in streams])

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
            changed = on_step(self, step, timesteps[step], {"stage": name, "x_t": x_t})
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


def check_dtype(dtype: Any) -> None:
    """Refuse a dtype that networks cannot be in."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype: give torch.float32, bfloat16 or float16, not {dtype!r}")


def split_move(args: tuple, kwargs: dict) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and the dtype of a call of to(device), to(dtype) or to(device, dtype)."""
    unknown = set(kwargs) - {"device", "dtype", "silence_dtype_warnings"}
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif value is not None:
            device = value
    if unknown or len(args) > 2:
        raise ValueError("to: give a device, a dtype or both")
    if dtype is not None:
        check_dtype(dtype)
    return None if device is None else torch.device(device), dtype
