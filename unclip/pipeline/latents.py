"""What a pipeline can do with a picture's latent, the pair (z_img, x_T)   (unCLIP section 3).

z_img is what CLIP sees in a picture; x_T is the noise from which the decoder draws the rest of it.
Every operation finds such pairs and decodes them by DDIM, with empty text unless words are given.

Shapes: B pictures, N subjects, D CLIP embedding, S pixels a side of the decoder's pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unclip.diffusion.sampling import (
    child_generators,
    ddim_invert,
    make_scheduler,
    slerp,
)
from unclip.models.decoder import Decoder
from unclip.pipeline import arguments, decoding, stages
from unclip.pipeline.clip_guidance import clip_guided
from unclip.pipeline.decoding import Decoding
from unclip.pipeline.output import UnCLIPOutput, finished
from unclip.pipeline.principal_components import PrincipalComponents

Subject = str | Image.Image | Tensor  # a caption or a picture

NOISES = ("slerp", "fixed")
CONDITIONS = ("prior", "z_txt", "caption")
MAX_WEIGHT = 100.0


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


class LatentOperations:
    """Operations on latents, as methods of UnCLIPPipeline.

    Keywords that a method does not name itself are those of Decoding. Pictures are given as in a
    call of the pipeline.
    """

    # --- between pictures and latents ---------------------------------------------------------

    @torch.no_grad()
    def invert(self, image: Any, **settings) -> Latents:
        """The latents of pictures: z_img by CLIP, x_T by DDIM inversion with that z_img.

        decode() with the same settings comes back to the pictures, as well as the number of steps
        and of refinements allow (unCLIP section 3; ADM appendix F).
        """
        pictures = arguments.check_pictures(image)
        return self._invert(pictures, self._decoding(settings, own_noise=True))

    @torch.no_grad()
    def decode(
        self, z_img: Tensor, x_T: Tensor | None = None, num_images: int = 1, **settings
    ) -> LatentOutput:
        """Draw num_images of each z_img [B, D], from x_T [B, 3, S, S] or from fresh noise.

        With x_T and eta 0 all pictures of a z_img are the same: one decoding of it.
        """
        z_img = arguments.check_embeddings(z_img, self.decoder.config.embedding_dim)
        if x_T is not None:
            x_T = decoding.check_noise(x_T, len(z_img), self.decoder.config.size)
            x_T = x_T.repeat_interleave(arguments.check_count("num_images", num_images), dim=0)
        z_img = z_img.repeat_interleave(arguments.check_count("num_images", num_images), dim=0)
        chosen = self._decoding(settings, own_noise=x_T is not None)
        seeds = arguments.image_seeds(chosen.generator, chosen.seeds, len(z_img))
        latents = Latents(z_img, self.initial_noise("decoder", seeds) if x_T is None else x_T)
        return self._draw_latents(latents, seeds, chosen)

    def reconstruct(self, image: Any, **settings) -> LatentOutput:
        """Pictures through their latents and back: the same again, but for their fine details."""
        return self.vary(image, eta=0.0, **settings)

    @torch.no_grad()
    def vary(
        self, image: Any, num_images: int = 1, eta: float | None = 0.5, **settings
    ) -> LatentOutput:
        """num_images variations of each picture: its z_img decoded anew   (unCLIP section 3.1).

        eta: how much of the picture's own x_T gives way to fresh noise on the way, from 0 (the
            picture itself) to 1; None begins from fresh noise alone.
        """
        pictures = arguments.check_pictures(image)
        num_images = arguments.check_count("num_images", num_images)
        chosen = self._decoding({**settings, "eta": eta or 0.0}, own_noise=eta is not None)
        seeds = arguments.image_seeds(chosen.generator, chosen.seeds, len(pictures) * num_images)
        if eta is None:
            x_T = self.initial_noise("decoder", seeds)
            z_img = self.encode_images(pictures).repeat_interleave(num_images, dim=0)
            return self._draw_latents(Latents(z_img, x_T), seeds, chosen)
        found = self._invert(pictures, chosen)
        repeated = (member.repeat_interleave(num_images, dim=0) for member in found)
        return self._draw_latents(Latents(*repeated), seeds, chosen)

    # --- moving z_img -------------------------------------------------------------------------

    @torch.no_grad()
    def interpolate(
        self, subjects: Sequence[Subject], num_frames: int = 7, noise: str = "slerp", **settings
    ) -> LatentOutput:
        """The way from subject to subject: (N - 1)(num_frames - 1) + 1 pictures   (section 3.2).

        z = slerp(z_1, z_2, theta), theta from 0 to 1 in num_frames even steps, both ends included.

        subjects: captions (the prior's z_img, noise of seeds n, n + 1, ...) and pictures (their
            own latents), two at least.
        noise: "slerp" takes x_T the same way, so that the ends are the subjects' reconstructions;
            "fixed" decodes all from the noise of the first seed.
        """
        subjects = check_subjects("subjects", subjects, minimum=2)
        arguments.check_choice("noise", noise, NOISES)
        thetas = path("num_frames", num_frames, 1.0)
        slerped = noise == "slerp"
        chosen, seed = self._one_seed(settings, own_noise=slerped and any_picture(subjects))
        ends = self._latents_of(subjects, seed, chosen, own_noise=slerped)
        frames = [Latents(*(member[:1] for member in ends))]
        for i in range(len(subjects) - 1):
            for theta in thetas[1:]:
                z_img = between(ends.z_img[i : i + 1], ends.z_img[i + 1 : i + 2], theta)
                x_T = ends.x_T[:1]
                if slerped:
                    x_T = slerp(ends.x_T[i : i + 1], ends.x_T[i + 1 : i + 2], theta)
                frames.append(Latents(z_img, x_T))
        return self._draw_latents(Latents.cat(frames), [seed] * len(frames), chosen)

    @torch.no_grad()
    def text_diff(
        self,
        subject: Subject,
        target: str,
        base: str | None = "a photo",
        num_frames: int = 5,
        max_theta: float = 0.4,
        **settings,
    ) -> LatentOutput:
        """A subject led by the difference of two texts: num_frames pictures   (section 3.3).

        z_d = normalise(z_txt - z_txt0), z = slerp(z_img, z_d, theta), theta from 0 to max_theta;
        x_T stays the subject's own, so the first picture is its reconstruction.

        target: the text z_txt that it should become.
        base: the text z_txt0 that it is: its caption, or "a photo"; None leaves z_txt0 out.
        max_theta: the share of the angle between z_img and z_d; 0.25 to 0.5 in the paper.
        """
        subjects = check_subjects("subject", [subject])
        texts = [decoding.check_text("target", target)]
        texts += [] if base is None else [decoding.check_text("base", base)]
        thetas = path("num_frames", num_frames, decoding.check_number("max_theta", max_theta, 0, 1))
        chosen, seed = self._one_seed(settings, own_noise=any_picture(subjects))
        z_img, x_T = self._latents_of(subjects, seed, chosen, own_noise=True)
        z_d = text_difference(self.encode(texts).z_txt.to(z_img)) * z_img.norm()
        z_img = torch.cat([slerp(z_img, z_d, theta) for theta in thetas])
        latents = Latents(z_img, x_T.expand(len(thetas), -1, -1, -1))
        return self._draw_latents(latents, [seed] * len(thetas), chosen)

    @torch.no_grad()
    def mix(
        self,
        subjects: Sequence[Subject],
        weights: Sequence[float] | None = None,
        num_images: int = 1,
        **settings,
    ) -> LatentOutput:
        """Captions and pictures in one: num_images of z = sum_i w_i z_i, from fresh noise.

        z is brought to the mean length of the z_i. weights: one a subject, equal unless given; a
        negative one leads away from its subject.
        """
        subjects = check_subjects("subjects", subjects)
        weights = check_weights(weights, len(subjects))
        num_images = arguments.check_count("num_images", num_images)
        chosen = self._decoding(settings, own_noise=False)
        seeds = arguments.image_seeds(chosen.generator, chosen.seeds, num_images)
        z = self._latents_of(subjects, seeds[0], chosen, own_noise=False).z_img  # [N, D]
        z_img = weighted_sum(z, torch.tensor(weights).to(z)).expand(num_images, -1)
        return self._draw_latents(
            Latents(z_img, self.initial_noise("decoder", seeds)), seeds, chosen
        )

    @torch.no_grad()
    def project(
        self,
        subject: Subject,
        components: PrincipalComponents,
        num_components: int | Sequence[int],
        **settings,
    ) -> LatentOutput:
        """What the first k principal components of CLIP keep of a subject   (section 3.4).

        A picture for each k of num_components, all from the same noise.
        """
        subjects = check_subjects("subject", [subject])
        counts = [num_components] if isinstance(num_components, int) else list(num_components)
        for count in counts:
            decoding.check_whole("num_components", count, 0, components.num_components)
        chosen, seed = self._one_seed(settings, own_noise=False)
        z_img, x_T = self._latents_of(subjects, seed, chosen, own_noise=False)
        z_img = torch.cat([components.project(z_img, count) for count in counts])
        latents = Latents(z_img, x_T.expand(len(counts), -1, -1, -1))
        return self._draw_latents(latents, [seed] * len(counts), chosen)

    @torch.no_grad()
    def ablate(
        self, prompt: str, condition: str = "prior", num_images: int = 1, **settings
    ) -> LatentOutput:
        """num_images of a caption by a part of the model's ways   (section 5.1, figure 8).

        The decoder reads the caption, and in place of a picture's embedding it is given
        condition: "caption", none, as GLIDE; "z_txt", the caption's; "prior", the prior's z_img.
        """
        arguments.check_choice("condition", condition, CONDITIONS)
        num_images = arguments.check_count("num_images", num_images)
        chosen = self._decoding({**settings, "prompt": prompt}, own_noise=False)
        seeds = arguments.image_seeds(chosen.generator, chosen.seeds, num_images)
        if condition == "prior":
            z_img = self._imagine([prompt] * num_images, seeds, chosen)
        elif condition == "z_txt":
            z_img = self.encode([prompt]).z_txt.expand(num_images, -1)
        else:
            z_img = self.decoder.null_z_img(num_images).float()
        return self._draw_latents(
            Latents(z_img, self.initial_noise("decoder", seeds)), seeds, chosen
        )

    # --- what they are made of ----------------------------------------------------------------

    def _decoding(self, settings: dict[str, Any], own_noise: bool) -> Decoding:
        """The checked settings of an operation, defaults filled in."""
        config = self.config
        return decoding.check_decoding(
            settings, self.components, config.default_steps, config.default_guidance, own_noise
        )

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
        return self.sample_prior(
            self.encode(captions),
            seeds,
            guidance_scale=chosen.prior_guidance_scale,
            steps=chosen.steps("prior"),
            num_candidates=chosen.num_prior_candidates,
            on_step=chosen.callback_on_step_end,
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
        stage = self._ddim_stage(chosen)
        size = self.decoder.config.size
        x_0 = torch.cat([resized(picture, size) for picture in pictures])
        z_img = self.encode_images(pictures)
        x_T = ddim_invert(
            self._predictor(stage, z_img, chosen),
            x_0.to(stage.device),
            stage.scheduler,
            stage.steps,
            stage.learned_variance,
            chosen.num_refinements,
            progress=lambda indices: self._bar("inversion", indices),
            stage="inversion",
        )
        return Latents(z_img.cpu(), x_T.cpu())

    def _predictor(self, stage: stages.Stage, z_img: Tensor, chosen: Decoding):
        """The decoder's guided prediction for z_img [B, D] and the settings' texts."""
        text, negative = (
            self.encode([caption]).expand(len(z_img))
            for caption in (chosen.prompt, chosen.negative_prompt)
        )
        return stages.decoder_predictor(stage, z_img, text, negative, chosen.guidance_scale)

    def _ddim_stage(self, chosen: Decoding, x_T: Tensor | None = None) -> stages.Stage:
        """The decoder, sampled by DDIM."""
        return self._stage(
            "decoder",
            chosen.steps("decoder"),
            chosen.callback_on_step_end,
            scheduler=ddim_for(self.decoder, chosen.clip_x_0),
            x_T=x_T,
            eta=chosen.eta,
            guidance_interval=chosen.guidance_interval,
            guidance_rescale=chosen.guidance_rescale,
        )

    def _draw_latents(
        self, latents: Latents, seeds: Sequence[int], chosen: Decoding
    ) -> LatentOutput:
        """Decode latents and enlarge the pictures, some at a time."""
        at_once = chosen.batch_size or len(seeds)
        batches = []
        for first in range(0, len(seeds), at_once):
            rows = slice(first, first + at_once)
            part = Latents(*(member[rows] for member in latents))
            batches.append(self._draw_batch(part, seeds[rows], chosen))
        drawn = [torch.cat(pictures) for pictures in zip(*batches, strict=True)]
        *earlier, x = drawn
        if chosen.size < x.shape[-1]:
            x = F.interpolate(x, (chosen.size, chosen.size), mode="area")
        return LatentOutput(
            images=finished(x, chosen.output_type),
            image_embeds=latents.z_img.float().cpu(),
            seeds=list(seeds),
            low_res={low.shape[-1]: finished(low, chosen.output_type) for low in earlier},
            settings=self._latent_settings(chosen),
            x_T=latents.x_T.cpu(),
        )

    def _draw_batch(self, latents: Latents, seeds: Sequence[int], chosen: Decoding) -> list[Tensor]:
        """The pictures [B, 3, S, S] of every stage that draws, in float32 on the CPU."""
        stage = self._ddim_stage(chosen, latents.x_T)
        predict = self._predictor(stage, latents.z_img, chosen)
        if chosen.clip_guidance_scale:
            clip = self.text_and_image_encoder()
            z_txt = self.encode([chosen.clip_prompt or chosen.prompt]).z_txt
            z_txt = z_txt.expand(len(seeds), -1)
            predict = clip_guided(stage, predict, clip, z_txt, chosen.clip_guidance_scale)
        generators = child_generators(list(seeds), "decoder eta")
        x = stages.sample(stage, predict, latents.x_T.shape[1:], generators).clamp(-1, 1)
        drawn = [x]
        for name in list(arguments.check_size(chosen.size, self.components))[1:]:
            x = self.upsample(x, seeds, name, chosen.steps(name), chosen.callback_on_step_end)
            drawn.append(x)
        return [picture.float().cpu() for picture in drawn]

    def _latent_settings(self, chosen: Decoding) -> dict[str, Any]:
        """What was done, but for words, seeds and latents, in what JSON can hold."""
        names = list(arguments.check_size(chosen.size, self.components))
        larger = {name: self.sampler(name) for name in names[1:]}
        of_guidance = {
            name: {"decoder": getattr(chosen, name)}
            for name in ("guidance_interval", "guidance_rescale")
            if getattr(chosen, name)
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


def path(argument: str, num_frames: int, end: float) -> list[float]:
    """Even steps from 0 to end, both included."""
    decoding.check_whole(argument, num_frames, 2, arguments.MAX_COUNT)
    return [end * number / (num_frames - 1) for number in range(num_frames)]


def between(z_1: Tensor, z_2: Tensor, theta: float) -> Tensor:
    """slerp of the directions of embeddings [B, D], whose lengths (the prior's vary) go evenly."""
    direction = slerp(F.normalize(z_1, dim=-1), F.normalize(z_2, dim=-1), theta)
    return direction * torch.lerp(z_1.norm(dim=-1), z_2.norm(dim=-1), theta)[:, None]


def text_difference(z_txt: Tensor) -> Tensor:
    """z_d [1, D] = normalise(z_txt - z_txt0) of one or two texts [1 or 2, D], of any length."""
    z_txt = F.normalize(z_txt.double(), dim=-1)
    difference = z_txt[:1] - z_txt[1:] if len(z_txt) == 2 else z_txt
    if difference.norm() < 1e-6:
        raise ValueError("base: to CLIP it is the same text as target; give another, or None")
    return F.normalize(difference, dim=-1).float()


def weighted_sum(z: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i z_i [1, D] of embeddings [N, D], at their weighted mean length."""
    total = (weights[:, None] * z).sum(dim=0, keepdim=True)
    length = (weights.abs() * z.norm(dim=-1)).sum() / weights.abs().sum()
    if total.norm() < 1e-6 * length:
        raise ValueError("weights: the subjects cancel each other; give other weights")
    return F.normalize(total, dim=-1) * length


def any_picture(subjects: Sequence[str | Tensor]) -> bool:
    """Whether one of the subjects is a picture."""
    return any(isinstance(subject, Tensor) for subject in subjects)


def check_subjects(argument: str, value: Any, minimum: int = 1) -> list[str | Tensor]:
    """Captions as they are, and pictures as [1, 3, S, S] in [-1, 1]."""
    if not isinstance(value, list | tuple) or len(value) < minimum:
        raise ValueError(
            f"{argument}: give a list of {minimum} or more captions and pictures, not "
            f"{arguments.short(value)}"
        )
    checked = []
    for subject in value:
        if isinstance(subject, str):
            checked.append(decoding.check_text(argument, subject))
        else:
            pictures = arguments.check_pictures(subject)
            if len(pictures) != 1:
                raise ValueError(f"{argument}: give each picture by itself, not {len(pictures)}")
            checked += pictures
    return checked


def check_weights(value: Any, num_subjects: int) -> list[float]:
    """A weight for each subject."""
    if value is None:
        return [1.0] * num_subjects
    if not isinstance(value, list | tuple) or len(value) != num_subjects:
        raise ValueError(
            f"weights: give {num_subjects}, one for each subject, not {arguments.short(value)}"
        )
    weights = [
        decoding.check_number("weights", weight, -MAX_WEIGHT, MAX_WEIGHT) for weight in value
    ]
    if not any(weights):
        raise ValueError("weights: one at least must not be 0")
    return weights
