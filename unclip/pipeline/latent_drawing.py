"""Finding the latents of subjects and decoding them: what operations on latents are made of.

Shapes: B pictures, N subjects, D CLIP embedding, S pixels a side of the decoder's pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.diffusion.inversion import ddim_invert
from unclip.diffusion.noise import child_generators
from unclip.diffusion.schedulers import make_scheduler
from unclip.models.clip import TextEncoding
from unclip.models.decoder import Decoder
from unclip.pipeline import arguments, decoding, stages
from unclip.pipeline.call import with_advice
from unclip.pipeline.clip_guidance import clip_guided
from unclip.pipeline.decoding import Decoding
from unclip.pipeline.output import UnCLIPOutput, finished
from unclip.pipeline.subjects import Subject


class Latents(NamedTuple):
    """The latent of pictures: with the decoder's weights and settings it is the pictures."""

    z_img: Tensor  # [B, D]
    x_T: Tensor  # [B, 3, S, S]

    @staticmethod
    def cat(latents: Sequence[Latents]) -> Latents:
        """Join batches along their first axis."""
        return Latents(*(torch.cat(members) for members in zip(*latents, strict=True)))


@dataclass(kw_only=True)
class LatentOutput(UnCLIPOutput):
    """Pictures and their latents; decode(image_embeds, x_T) with the settings draws them again.

    Attributes:
        x_T: the noise [B, 3, S, S] that each picture was decoded from.
    """

    x_T: Tensor


class LatentDrawing:
    """The steps of an operation on latents, as methods of UnCLIPPipeline."""

    def _decoding(self, settings: dict[str, Any], own_noise: bool) -> Decoding:
        """The checked settings of an operation, defaults filled in."""
        return decoding.check_decoding(settings, self.components, self.config, own_noise)

    def _one_seed(self, settings: dict[str, Any], own_noise: bool) -> tuple[Decoding, int]:
        """The checked settings of a path, and the seed of all its frames."""
        chosen = self._decoding(settings, own_noise)
        return chosen, arguments.image_seeds(chosen.generator, chosen.seeds, 1)[0]

    def _imagine(self, captions: Sequence[str], seeds: Sequence[int], chosen: Decoding) -> Tensor:
        """The prior's z_img [N, D] of captions."""
        if self.prior is None:
            raise ValueError(
                "subjects: this model has no prior; give pictures in place of captions"
            )
        text = self.encode(captions)
        parts = stages.batches(len(seeds), chosen.max_batch_size or len(seeds))
        return torch.cat(
            [self._imagine_batch(text.select(rows), seeds[rows], chosen) for rows in parts]
        )

    def _imagine_batch(self, text: TextEncoding, seeds: Sequence[int], chosen: Decoding) -> Tensor:
        """The prior's z_img of a batch, on the CPU; with advice where memory runs out."""
        settings: dict[str, Any] = {
            "guidance_scale": chosen.prior_guidance_scale,
            "steps": chosen.steps("prior"),
            "num_candidates": chosen.num_prior_candidates,
            "on_step": chosen.report.on_step(z_txt=text.z_txt),
        }
        return with_advice(
            lambda: self.sample_prior(text, seeds, **settings).cpu(),
            "prior",
            len(seeds),
            self.prior.dtype,
        )

    def _latents_of(
        self, subjects: Sequence[Subject], seed: int, chosen: Decoding, own_noise: bool
    ) -> Latents:
        """The latent of each subject; x_T of pictures by inversion where it should be their own.

        Subject i draws what it needs with seed + i.
        """
        found = []
        for number, subject in enumerate(subjects):
            seeds = [seed + number]
            if isinstance(subject, str):
                z_img = self._imagine([subject], seeds, chosen)
            elif own_noise:
                found.append(self._invert([subject], chosen))
                continue
            else:
                z_img = self.encode_images([subject])
            found.append(Latents(z_img.cpu(), self.initial_noise("decoder", seeds)))
        return Latents.cat(found)

    def _invert(self, pictures: Sequence[Tensor], chosen: Decoding) -> Latents:
        """The latents of pictures, each [1, 3, S, S] in [-1, 1] of any S."""
        at_once = chosen.max_batch_size or stages.pictures_at_once(
            self.decoder, self.decoder.config.size
        )
        parts = stages.batches(len(pictures), at_once)
        return Latents.cat([self._invert_batch(pictures[rows], chosen) for rows in parts])

    def _invert_batch(self, pictures: Sequence[Tensor], chosen: Decoding) -> Latents:
        """The latents of a batch, on the CPU; with advice where memory runs out."""
        size = self.decoder.config.size
        x_0 = torch.cat([resized(picture, size) for picture in pictures])
        z_img = self.encode_images(pictures)
        stage = self._ddim_stage(chosen, z_img)

        def invert() -> Tensor:
            x_T = ddim_invert(
                self._predictor(stage, z_img, chosen),
                x_0.to(stage.device),
                stage.scheduler,
                stage.steps,
                stage.learned_variance,
                chosen.num_refinements,
                progress=lambda indices: chosen.report.watched(self._bar("inversion", indices)),
                stage="inversion",
            )
            return x_T.cpu()

        return Latents(
            z_img.cpu(), with_advice(invert, "inversion", len(pictures), self.decoder.dtype)
        )

    def _predictor(self, stage: stages.Stage, z_img: Tensor, chosen: Decoding):
        """The decoder's guided prediction for z_img [B, D] and the settings' texts."""
        text, negative = (
            self.encode([caption]).expand(len(z_img))
            for caption in (chosen.prompt, chosen.negative_prompt)
        )
        return stages.decoder_predictor(stage, z_img, text, negative, chosen.guidance_scale)

    def _ddim_stage(
        self, chosen: Decoding, z_img: Tensor, x_T: Tensor | None = None
    ) -> stages.Stage:
        """The decoder, sampled by DDIM for z_img [B, D]."""
        return self._stage(
            "decoder",
            chosen.steps("decoder"),
            chosen.report.on_step(z_img=z_img),
            scheduler=ddim_for(self.decoder, chosen.clip_x_0),
            x_T=x_T,
            eta=chosen.eta,
            guidance_interval=chosen.guidance_interval,
            guidance_rescale=chosen.guidance_rescale,
            image_guidance=chosen.image_guidance_scale,
        )

    def _draw_latents(
        self, latents: Latents, seeds: Sequence[int], chosen: Decoding
    ) -> LatentOutput | tuple:
        """Decode latents and enlarge the pictures, as many at a time as a call of the pipeline."""
        drawn: list[Tensor] = []
        for name, side in arguments.check_size(chosen.size, self.components).items():
            network = self.components[name]
            at_once = chosen.max_batch_size or stages.pictures_at_once(network, side)
            batches = []
            for rows in stages.batches(len(seeds), at_once):
                part = Latents(*(member[rows] for member in latents))
                x_low = drawn[-1][rows] if drawn else None
                batches.append(self._draw_batch(name, part, seeds[rows], chosen, x_low))
            drawn.append(torch.cat(batches))
        *earlier, x = drawn
        if chosen.size < x.shape[-1]:
            x = F.interpolate(x, (chosen.size, chosen.size), mode="area")
        self.maybe_free_model_hooks()
        output = LatentOutput(
            images=finished(x, chosen.output_type),
            image_embeds=latents.z_img.float().cpu(),
            seeds=list(seeds),
            low_res={low.shape[-1]: finished(low, chosen.output_type) for low in earlier},
            settings=self._latent_settings(chosen),
            x_T=latents.x_T.cpu(),
        )
        return output if chosen.return_dict else output.to_tuple()

    def _draw_batch(
        self,
        name: str,
        latents: Latents,
        seeds: Sequence[int],
        chosen: Decoding,
        x_low: Tensor | None,
    ) -> Tensor:
        """What a stage makes of a batch, on the CPU; with advice where memory runs out."""

        def draw() -> Tensor:
            if x_low is None:
                return self._decode(latents, seeds, chosen).float().cpu()
            on_step = chosen.report.on_step(z_img=latents.z_img, x_low=x_low)
            return self.upsample(x_low, seeds, name, chosen.steps(name), on_step).float().cpu()

        return with_advice(draw, name, len(seeds), self.components[name].dtype)

    def _decode(self, latents: Latents, seeds: Sequence[int], chosen: Decoding) -> Tensor:
        """The decoder's pictures [B, 3, S, S]."""
        stage = self._ddim_stage(chosen, latents.z_img, latents.x_T)
        predict = self._predictor(stage, latents.z_img, chosen)
        if chosen.clip_guidance_scale:
            clip = self.text_and_image_encoder()
            z_txt = self.encode([chosen.clip_prompt or chosen.prompt]).z_txt
            z_txt = z_txt.expand(len(seeds), -1)
            predict = clip_guided(stage, predict, clip, z_txt, chosen.clip_guidance_scale)
        generators = child_generators(list(seeds), "decoder eta")
        return stages.sample(stage, predict, latents.x_T.shape[1:], generators).clamp(-1, 1)

    def _latent_settings(self, chosen: Decoding) -> dict[str, Any]:
        """What was done, but for words, seeds and latents, in what JSON can hold."""
        names = list(arguments.check_size(chosen.size, self.components))
        larger = {name: self.sampler(name) for name in names[1:]}
        of_guidance = {
            name: {"decoder": getattr(chosen, name)}
            for name in ("image_guidance_scale", "guidance_interval", "guidance_rescale")
            if getattr(chosen, name) != getattr(Decoding, name)
        }
        return {
            "stages": names,
            "steps": {name: chosen.steps(name) for name in names},
            "guidance": {"decoder": chosen.guidance_scale},
            **of_guidance,
            "sampler": {"decoder": "ddim", **larger},
            "size": chosen.size,
            "eta": chosen.eta,
            "clip_x_0": chosen.clip_x_0,
            "clip_guidance": chosen.clip_guidance_scale,
        }


def ddim_for(decoder: Decoder, clip_x_0: bool) -> Any:
    """DDIM on the decoder's own noise schedule."""
    config = decoder.config
    return make_scheduler(
        "ddim",
        config.schedule,
        config.prediction,
        clip_range=1.0 if clip_x_0 else None,
        num_train_timesteps=config.num_train_timesteps,
    )


def resized(picture: Tensor, size: int) -> Tensor:
    """A picture [1, 3, S, S] in [-1, 1] at the decoder's size."""
    if picture.shape[-1] == size:
        return picture
    sides = (size, size)
    return F.interpolate(picture, sides, mode="bicubic", antialias=True).clamp(-1, 1)
