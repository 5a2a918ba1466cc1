"""From an order to pictures: the conditions, every stage in turn, the best kept.

Methods of UnCLIPPipeline that a call is made of. Shapes: B pictures, D CLIP embedding, S pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.pipeline.arguments import GUIDED
from unclip.pipeline.call import Conditions, best_of, with_advice
from unclip.pipeline.order import Order
from unclip.pipeline.output import UnCLIPOutput, finished, settings_of
from unclip.pipeline.stages import pictures_at_once


class Drawing:
    """What a call of the pipeline does with its order."""

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
        for stage, side in order.stages.items():
            order.report.check()
            at_once = order.max_batch_size or pictures_at_once(self.components[stage], side)
            batches = conditions.batches(at_once)
            drawn.append(torch.cat([self._draw_stage(stage, order, batch) for batch in batches]))
            if order.num_drawn > order.num_kept and stage == self._ranked_at(order):
                scores = self._scores(drawn[-1], wanted_of(order, conditions))
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
            "on_step": order.report.on_step(
                z_img=batch.z_img, z_txt=batch.text.z_txt, x_low=batch.x_low
            ),
            "scheduler": chosen.scheduler,
            "x_T": batch.x_T.get(stage),
        }
        if stage in GUIDED:
            settings["guidance_interval"] = chosen.guidance_interval
            settings["guidance_rescale"] = chosen.guidance_rescale
        if stage == "decoder":
            settings["reuse"] = chosen.reuse or 1
            settings["image_guidance"] = chosen.image_guidance_scale
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

    def _scores(self, x: Tensor, wanted: Tensor) -> Tensor:
        """The cosine [B] of CLIP's embeddings of pictures [B, 3, S, S] and of wanted [B, D]."""
        z_img = self.encode_images(x.split(1)).cpu()
        return F.cosine_similarity(z_img, wanted, dim=-1)

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


def wanted_of(order: Order, conditions: Conditions) -> Tensor:
    """What pictures are ranked by [B, D]: their captions; without words, the z_img that leads."""
    z_txt = conditions.text.z_txt.float().cpu()
    if order.text is not None or not order.led:
        return z_txt
    wordless = torch.tensor([not order.captions[n] for n in order.subjects])
    return torch.where(wordless[:, None], conditions.z_img.float().cpu(), z_txt)
