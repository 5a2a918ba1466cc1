"""What a call of the pipeline asks for, whole and checked before any network runs.

Every fault is a ValueError that begins with the name of the argument and says what to give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unclip.models.clip import NO_PICTURES, TextEncoding
from unclip.pipeline import arguments
from unclip.pipeline.arguments import GUIDED, STAGES, spread
from unclip.pipeline.call import Report, check_report
from unclip.pipeline.edits import Edit
from unclip.pipeline.settings import (
    StageSettings,
    check_latent_shapes,
    check_settings,
    check_stage_names,
)


@dataclass(frozen=True)
class Order:
    """What is drawn: N subjects, each from a caption, a picture or an embedding, and B pictures."""

    captions: list[str]  # [N], "" where a picture leads
    text: TextEncoding | None  # [N], in place of captions
    negatives: dict[str, list[str]]  # by guided stage, [N] each
    pictures: list[Tensor]  # [N] of [1, 3, S, S] in [-1, 1], or empty
    embeddings: Tensor | None  # [N, D]
    num_drawn: int  # pictures of a subject
    num_kept: int  # of those, the ones that are returned
    seeds: list[int]  # [B], B = N num_drawn
    stages: dict[str, int]  # the stages that draw, in order, each with the side of its pictures
    size: int
    settings: dict[str, StageSettings]  # of every stage that the model has
    num_candidates: int  # of the prior
    x_T: dict[str, Tensor]  # noise that was given, by stage
    max_batch_size: int | None
    report: Report
    output_type: str
    edit: Edit | None

    @property
    def led(self) -> bool:
        """Whether pictures or embeddings take the place of the prior."""
        return bool(self.pictures) or self.embeddings is not None

    @property
    def subjects(self) -> list[int]:
        """The subject of each of the B pictures."""
        return [n for n in range(len(self.captions)) for _ in range(self.num_drawn)]


def check_order(
    components: Mapping[str, Any], config: Mapping[str, Any], given: Mapping[str, Any]
) -> Order:
    """The order that the arguments of a call describe.

    components: networks and schedulers by name. config: that of the pipeline, with its defaults.
    """
    arguments.check_choice("output_type", given["output_type"], arguments.OUTPUT_TYPES)
    dim = components["decoder"].config.embedding_dim
    text = arguments.check_text_embeds(given["text_embeds"], dim)
    captions = given["prompt"]
    captions = None if captions is None else arguments.check_texts("prompt", captions)
    image, image_embeds = given["image"], given["image_embeds"]
    check_leads(components, captions, text, image, image_embeds)
    pictures = [] if image is None else arguments.check_pictures(image)
    if (pictures or given["best_of"]) and not hasattr(components["clip"], "vision_model"):
        raise ValueError(f"{'image' if pictures else 'best_of'}: {NO_PICTURES}")
    embeddings = arguments.check_embeddings(image_embeds, dim)
    leading = len(pictures) if embeddings is None else len(embeddings)
    num_subjects = max(leading, len(captions or []), 0 if text is None else len(text.z_txt))
    stages = arguments.check_size(given["size"], components)
    num_kept = arguments.check_count("num_images_per_prompt", given["num_images_per_prompt"])
    num_drawn = check_best_of(given["best_of"], num_kept)
    asked = check_stage_names(given["stages"], components)
    negatives = check_negatives(given["negative_prompt"], asked, num_subjects)
    has_words = text is not None or any([*(captions or []), *negatives["decoder"]])
    settings = check_stage_settings(components, config, given, has_words)
    if given["edit"] is not None:
        given["edit"].check({stage: settings[stage].scheduler for stage in stages})
    num_candidates = arguments.check_candidates(given["num_prior_candidates"], config)
    num_images = num_subjects * num_drawn
    return Order(
        captions=spread("prompt", captions or [""], num_subjects),
        text=None if text is None else arguments.spread_text(text, num_subjects),
        negatives=negatives,
        pictures=spread("image", pictures, num_subjects) if pictures else [],
        embeddings=spread("image_embeds", embeddings, num_subjects),
        num_drawn=num_drawn,
        num_kept=num_kept,
        seeds=arguments.image_seeds(given["generator"], given["seeds"], num_images),
        stages=stages,
        size=given["size"] or list(stages.values())[-1],
        settings=settings,
        num_candidates=num_candidates,
        x_T=check_latent_shapes(settings, components, stages, num_images, num_candidates),
        max_batch_size=arguments.check_batch_size(given["max_batch_size"]),
        report=check_report(
            given["callback_on_step_end"],
            given["callback_on_step_end_tensor_inputs"],
            given["interrupt"],
        ),
        output_type=given["output_type"],
        edit=given["edit"],
    )


def check_leads(
    components: Mapping[str, Any], captions: Any, text: Any, image: Any, image_embeds: Any
) -> None:
    """Refuse a call in which nothing leads, or two things do."""
    if image is not None and image_embeds is not None:
        raise ValueError("image: give image or image_embeds, not both")
    if captions is not None and text is not None:
        raise ValueError("text_embeds: give prompt or text_embeds, not both")
    if image is not None or image_embeds is not None:
        return
    if captions is None and text is None:
        raise ValueError("prompt: give a caption, a list of captions, image or image_embeds")
    if components["prior"] is None:
        raise ValueError("prompt: this model has no prior; give image or image_embeds")


def check_best_of(value: Any, num_kept: int) -> int:
    """The pictures to draw of each subject; best_of, or as many as are kept."""
    if value is None:
        return num_kept
    if arguments.check_count("best_of", value) < num_kept:
        raise ValueError(f"best_of: give {num_kept} (num_images_per_prompt) or more, not {value}")
    return value


def check_stage_settings(
    components: Mapping[str, Any],
    config: Mapping[str, Any],
    given: Mapping[str, Any],
    has_words: bool,
) -> dict[str, StageSettings]:
    """The settings of every stage, from "stages" and from the arguments for single stages."""
    return check_settings(
        components,
        given["stages"],
        steps={stage: given[f"{stage}_num_inference_steps"] for stage in STAGES},
        guidance={"decoder": given["guidance_scale"], "prior": given["prior_guidance_scale"]},
        config=config,
        has_words=has_words,
    )


def check_negatives(
    value: Any, asked: Mapping[str, StageSettings], num_subjects: int
) -> dict[str, list[str]]:
    """The negative caption of every subject, by guided stage."""
    negatives = {}
    for stage in GUIDED:
        own = asked[stage].negative_prompt if stage in asked else None
        argument = "negative_prompt" if own is None else f"stages[{stage!r}].negative_prompt"
        own = value if own is None else own
        texts = [""] if own is None else arguments.check_texts(argument, own)
        negatives[stage] = spread(argument, texts, num_subjects)
    return negatives
