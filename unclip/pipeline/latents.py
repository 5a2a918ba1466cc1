"""What a pipeline can do with a picture's latent, the pair (z_img, x_T)   (unCLIP section 3).

z_img is what CLIP sees in a picture; x_T is the noise from which the decoder draws the rest of it.
Every operation finds such pairs and decodes them by DDIM, with empty text unless words are given.

Shapes: B pictures, N subjects, D CLIP embedding, S pixels a side of the decoder's pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unclip.diffusion.interpolation import slerp
from unclip.pipeline import arguments, decoding
from unclip.pipeline.directions import between, path, text_difference, weighted_sum
from unclip.pipeline.latent_drawing import LatentDrawing, LatentOutput, Latents
from unclip.pipeline.memory import in_turn
from unclip.pipeline.principal_components import PrincipalComponents
from unclip.pipeline.subjects import Subject, any_picture, check_subjects, check_weights

NOISES = ("slerp", "fixed")
CONDITIONS = ("prior", "z_txt", "caption")


class LatentOperations(LatentDrawing):
    """Operations on latents, as methods of UnCLIPPipeline.

    Keywords that a method does not name itself are those of Decoding. Pictures are given as in a
    call of the pipeline.
    """

    # --- between pictures and latents ---------------------------------------------------------

    @torch.no_grad()
    @in_turn
    def invert(self, image: Any, **settings) -> Latents:
        """The latents of pictures: z_img by CLIP, x_T by DDIM inversion with that z_img.

        decode() with the same settings comes back to the pictures, as well as the number of steps
        and of refinements allow (unCLIP section 3; ADM appendix F).
        """
        pictures = arguments.check_pictures(image)
        return self._invert(pictures, self._decoding(settings, own_noise=True))

    @torch.no_grad()
    @in_turn
    def decode(
        self, z_img: Tensor, x_T: Tensor | None = None, num_images: int = 1, **settings
    ) -> LatentOutput | tuple:
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

    def reconstruct(self, image: Any, **settings) -> LatentOutput | tuple:
        """Pictures through their latents and back: the same again, but for their fine details."""
        return self.vary(image, eta=0.0, **settings)

    @torch.no_grad()
    @in_turn
    def vary(
        self, image: Any, num_images: int = 1, eta: float | None = 0.5, **settings
    ) -> LatentOutput | tuple:
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
    @in_turn
    def interpolate(
        self, subjects: Sequence[Subject], num_frames: int = 7, noise: str = "slerp", **settings
    ) -> LatentOutput | tuple:
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
    @in_turn
    def text_diff(
        self,
        subject: Subject,
        target: str,
        base: str | None = "a photo",
        num_frames: int = 5,
        max_theta: float = 0.4,
        **settings,
    ) -> LatentOutput | tuple:
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
    @in_turn
    def mix(
        self,
        subjects: Sequence[Subject],
        weights: Sequence[float] | None = None,
        num_images: int = 1,
        **settings,
    ) -> LatentOutput | tuple:
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
    @in_turn
    def project(
        self,
        subject: Subject,
        components: PrincipalComponents,
        num_components: int | Sequence[int],
        **settings,
    ) -> LatentOutput | tuple:
        """What the first k principal components of CLIP keep of a subject   (section 3.4).

        A picture for each k of num_components, all from the same noise.
        """
        subjects = check_subjects("subject", [subject])
        counts = list(num_components) if isinstance(num_components, Sequence) else [num_components]
        if not counts:
            raise ValueError("num_components: give a number or several, not none")
        for count in counts:
            decoding.check_whole("num_components", count, 0, components.num_components)
        chosen, seed = self._one_seed(settings, own_noise=False)
        z_img, x_T = self._latents_of(subjects, seed, chosen, own_noise=False)
        z_img = torch.cat([components.project(z_img, count) for count in counts])
        latents = Latents(z_img, x_T.expand(len(counts), -1, -1, -1))
        return self._draw_latents(latents, [seed] * len(counts), chosen)

    @torch.no_grad()
    @in_turn
    def ablate(
        self, prompt: str, condition: str = "prior", num_images: int = 1, **settings
    ) -> LatentOutput | tuple:
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
