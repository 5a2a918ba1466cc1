"""UnCLIPPipeline: a caption becomes z_txt, z_img, a small picture, and larger ones.

What it can do is written in rooms of its own, each a class of methods: storage.py (folders and the
hub), single_stages.py (each stage alone), drawing.py (a call, from its order to its pictures),
latents.py (what can be done with z_img and x_T), editing.py (inpainting and its like) and
memory.py (devices, offloading, compiling).

Shapes: B pictures, D CLIP embedding, S pixels a side.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from unclip.diffusion.timesteps import Steps
from unclip.models.clip import OPENAI_MEAN, OPENAI_STD, TextEncoding
from unclip.models.decoder import Decoder
from unclip.models.layers import quickest_layout
from unclip.models.prior import Prior
from unclip.models.upsampler import Upsampler
from unclip.pipeline import arguments
from unclip.pipeline.advice import refuse_unknown
from unclip.pipeline.arguments import STAGES
from unclip.pipeline.drawing import Drawing
from unclip.pipeline.editing import Editing
from unclip.pipeline.edits import Edit
from unclip.pipeline.latents import LatentOperations
from unclip.pipeline.lora import Lora
from unclip.pipeline.memory import Memory, in_turn
from unclip.pipeline.order import check_order
from unclip.pipeline.output import UnCLIPOutput
from unclip.pipeline.settings import StageSettings
from unclip.pipeline.single_stages import OnStep, SingleStages
from unclip.pipeline.storage import Storage


class UnCLIPPipeline(
    Storage, Lora, SingleStages, Drawing, LatentOperations, Editing, Memory, DiffusionPipeline
):
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
        default_guidance: scales by stage ("prior", "decoder"), or a number for the decoder; "image"
            is the decoder's image_guidance_scale.
        default_guidance_interval: the decoder's guidance_interval of calls that name none.
        default_candidates: num_prior_candidates of calls that name none.

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
        default_guidance_interval: tuple[float, float] | None = None,
        default_candidates: int = arguments.DEFAULT_CANDIDATES,
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
        interval = arguments.check_interval("default_guidance_interval", default_guidance_interval)
        self.register_to_config(
            image_mean=list(image_mean),
            image_std=list(image_std),
            normalize=normalize,
            default_steps=steps,
            default_guidance=arguments.resolve_guidance(default_guidance),
            default_guidance_interval=interval and list(interval),
            default_candidates=arguments.check_count("default_candidates", default_candidates),
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
            if network is not None:
                nn.Module.to(network, memory_format=quickest_layout(network))
        for name in ("clip", *STAGES):
            if self.components[name] is not None:
                self.components[name].eval()

    @torch.no_grad()
    @in_turn
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
        num_prior_candidates: int | None = None,
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
        **unknown: Any,
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
            are kept, and finished by the later stages. They are ranked by their nearness to the
            prompt, or where there is none to the image or image_embeds that leads.
        seeds, generator: one seed n for n, n+1, n+2, ..., or one for each picture that is drawn; or
            what draws them. A picture depends on its caption, settings and seed alone.
        max_batch_size: pictures at a time; unless given, as many as have 4 megapixels in a stage,
            on a CPU 1.
        output_type: "pil", "np", "pt" or "latent".
        callback_on_step_end, interrupt: see call.Report; a set interrupt raises Interrupted.
        edit: pictures to begin from or to keep in part; inpaint() and its like hand it over.

        Raises ValueError for a bad argument, by name, before anything runs; FloatingPointError for
        a value that is not finite, with stage and step; torch.OutOfMemoryError with advice;
        TypeError for an argument that there is not, with what may have been meant.
        """
        refuse_unknown(unknown, inspect.signature(type(self).__call__).parameters)
        order = check_order(self.components, self.config, locals())
        output = self._finish(order, *self._draw(order, self._conditions(order)))
        return output if return_dict else output.to_tuple()
