"""UnCLIPPipeline: a caption becomes z_txt, z_img, a small picture, and larger ones.

Shapes: B pictures, D CLIP embedding, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer

from unclip.diffusion.sampling import Steps, make_scheduler, timesteps_for
from unclip.models.clip import CLIP, OPENAI_MEAN, OPENAI_STD, TextEncoding
from unclip.models.decoder import Decoder
from unclip.models.prior import Prior
from unclip.models.upsampler import Upsampler
from unclip.pipeline import arguments, stages
from unclip.pipeline.arguments import STAGES, Order, check_order
from unclip.pipeline.editing import Editing
from unclip.pipeline.edits import Edit
from unclip.pipeline.latents import LatentOperations
from unclip.pipeline.loading import NETWORKS, read_network
from unclip.pipeline.output import UnCLIPOutput, finished
from unclip.pipeline.published.sources import read_model
from unclip.pipeline.saving import write_clip, write_folder, write_index, write_network

# Ancestral sampling for the prior and the decoder, DDIM for the upsamplers (DALL-E 2, appendix C).
DEFAULT_SAMPLERS = {
    "prior": "ddpm",
    "decoder": "ddpm",
    "upsampler_256": "ddim",
    "upsampler_1024": "ddim",
}
SAMPLER_NAMES = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm++",
}

OnStep = Callable[["UnCLIPPipeline", int, int, dict], Mapping[str, Tensor] | None]


class UnCLIPPipeline(LatentOperations, Editing, DiffusionPipeline):
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
    ) -> UnCLIPPipeline:
        """Read a model that save_pretrained wrote or that others published; the embedded one.

        path: a folder, or a name of the Hugging Face hub ("kakaobrain/karlo-v1-alpha"); without
        it, the embedded model. docs/checkpoints.md lists the layouts. variant: the word in the
        names of a published model's files ("fp16").

        Strict, running nothing that stands in the files: see loading.py.

        Raises:
            FileNotFoundError: when the folder or a file of it is missing.
            ModelFileError: a ValueError that names the file in which something is wrong.
        """
        check_dtype(dtype)
        pipeline = cls(**read_model(path, dtype, variant))
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

        samplers: "ddpm", "ddim" or "dpm++" by stage, where it should not be that of
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
        name = type(self.components[f"{stage}_scheduler"]).__name__
        return SAMPLER_NAMES.get(name, name)

    def use_sampler(self, stage: str, sampler: str) -> None:
        """Give a stage another sampler: "ddpm", "ddim" or "dpm++"."""
        arguments.check_choice("stage", stage, STAGES)
        if self.components[stage] is None:
            raise ValueError(f"stage: this model has no {stage}")
        setattr(self, f"{stage}_scheduler", scheduler_for(self.components[stage], sampler))

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
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: int | list[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStep | None = None,
        edit: Edit | None = None,
    ) -> UnCLIPOutput | tuple:
        """Draw pictures of captions, or variations of pictures.

        prompt: one caption or several; may be left out where image or image_embeds lead.
        negative_prompt: takes the place of the empty text that guidance leads away from.
        guidance_scale, prior_guidance_scale: 0 ignores the caption, 1 does not guide.
        size: pixels a side; the largest that the model draws, unless given. Half of an
            upsampler's side (512) is averaged from its whole picture.
        ..._num_inference_steps: a number, "fast27", "ddimN", or a descending list of timesteps.
        num_prior_candidates: embeddings the prior draws, of which the nearest to z_txt is kept.
        image: Pillow images or a tensor [N, 3, H, W] in [0, 1] whose z_img is drawn.
        image_embeds: z_img [N, D] to draw.
        seeds: a list with one for each picture, or n for n, n+1, n+2, ...
        generator: draws the seeds instead; one for all or a list. Without either the system does.
        output_type: "pil", "np" or "pt".
        callback_on_step_end: called with (pipeline, step, t, {"stage", "x_t"}) after each step;
            an "x_t" that it returns takes the place of that one. What it raises ends the call.
        edit: pictures to begin from or to keep in part; inpaint() and its like hand it over.

        A picture depends on its caption, settings and seed alone: not on the others of the call,
        and no stage's noise on another stage's steps.

        Raises:
            ValueError: for a bad argument, by name, before anything runs.
            FloatingPointError: where a value is not finite, with stage and step.
        """
        given = locals()
        order = self._order(given)
        text, negative, z_img = self._conditions(order, num_prior_candidates, callback_on_step_end)
        *earlier, x = self._draw(order, text, negative, z_img, callback_on_step_end, edit)
        if order.size < x.shape[-1]:
            x = F.interpolate(x.float(), (order.size, order.size), mode="area")
        x = x if edit is None else edit.kept(x)
        low_res = {x_low.shape[-1]: finished(x_low, output_type) for x_low in earlier}
        settings = self._settings(order, num_prior_candidates)
        images = finished(x, output_type)
        output = UnCLIPOutput(images, z_img.cpu(), order.seeds, low_res, settings)
        return output if return_dict else output.to_tuple()

    def _order(self, given: dict[str, Any]) -> Order:
        """The checked arguments of a call, defaults filled in."""
        arguments.check_choice("output_type", given["output_type"], arguments.OUTPUT_TYPES)
        arguments.check_callback(given["callback_on_step_end"])
        arguments.check_count("num_prior_candidates", given["num_prior_candidates"])
        asked = {stage: given[f"{stage}_num_inference_steps"] for stage in STAGES}
        scales = {"decoder": given["guidance_scale"], "prior": given["prior_guidance_scale"]}
        same = ("prompt", "negative_prompt", "image", "image_embeds", "num_images_per_prompt")
        return check_order(
            self.components,
            steps={**self.config.default_steps, **present(asked)},
            guidance={**self.config.default_guidance, **present(scales)},
            **{name: given[name] for name in (*same, "size", "generator", "seeds")},
        )

    def _settings(self, order: Order, num_prior_candidates: int) -> dict[str, Any]:
        """What a call did, but for captions and seeds, in words that JSON can hold."""
        led = bool(order.pictures) or order.embeddings is not None
        names = [*([] if led else ["prior"]), *order.stages]
        settings = {
            "stages": names,
            "steps": {name: order.steps[name] for name in names},
            "guidance": {name: order.guidance[name] for name in names if name in order.guidance},
            "sampler": {name: self.sampler(name) for name in names},
            "size": order.size,
        }
        return settings if led else {**settings, "num_prior_candidates": num_prior_candidates}

    def _conditions(
        self, order: Order, num_candidates: int, on_step: OnStep | None
    ) -> tuple[TextEncoding, TextEncoding, Tensor]:
        """Caption, negative caption and z_img [B, D] of every picture."""
        repeats, seeds = order.num_repeats, order.seeds
        text = self.encode(order.captions).repeat_interleave(repeats)
        negative = self.encode(order.negatives).repeat_interleave(repeats)
        if order.pictures:
            z_img = self.encode_images(order.pictures).repeat_interleave(repeats, dim=0)
        elif order.embeddings is not None:
            z_img = order.embeddings.repeat_interleave(repeats, dim=0)
        else:
            scale, steps = order.guidance["prior"], order.steps["prior"]
            z_img = self.sample_prior(text, seeds, negative, scale, steps, num_candidates, on_step)
        return text, negative, z_img

    def _draw(
        self,
        order: Order,
        text: TextEncoding,
        negative: TextEncoding,
        z_img: Tensor,
        on_step: OnStep | None,
        edit: Edit | None = None,
    ) -> list[Tensor]:
        """The pictures [B, 3, S, S] of every stage that draws."""
        drawn: list[Tensor] = []
        for stage, side in order.stages.items():
            settings = {"steps": order.steps[stage], "on_step": on_step}
            if edit is not None:
                settings |= edit.beginning(stage, self.components[stage], side, order.seeds)
            if stage == "decoder":
                scale = order.guidance[stage]
                x = self.sample_decoder(z_img, text, order.seeds, negative, scale, **settings)
            else:
                x = self.upsample(drawn[-1], order.seeds, stage, **settings)
            drawn.append(x)
        return drawn

    # --- the stages, each usable alone --------------------------------------------------------

    def text_and_image_encoder(self) -> CLIP:
        """The clip and the tokenizer of this pipeline as an unclip.CLIP."""
        statistics = {key: self.config[key] for key in ("image_mean", "image_std", "normalize")}
        return CLIP(self.clip, self.tokenizer, **statistics).to(self.clip.device)

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
    ) -> Tensor:
        """Captions to z_img [B, D], always in float32; see stages.sample_prior."""
        check_rows(seeds, text.z_txt)
        negative = self._or_empty(negative, len(seeds))
        stage = self._stage("prior", steps, on_step)
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


def scheduler_for(network: Prior | Decoder | Upsampler, sampler: str) -> SchedulerMixin:
    """The scheduler that a network was trained for, with the sampler asked for."""
    config = network.config
    return make_scheduler(
        sampler,
        config.schedule,
        config.get("prediction", "x_0"),
        learned_variance=bool(config.get("learned_variance", False)),
        clip_range=config.get("clip_range", 1.0),
        num_train_timesteps=config.num_train_timesteps,
    )


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not None."""
    return {key: value for key, value in values.items() if value is not None}


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
