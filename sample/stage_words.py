"""The words of unclip-sample for single stages, and the pipeline's arguments for them."""

from __future__ import annotations

import argparse
from typing import Any

from unclip_sample import words

STAGES = ("prior", "decoder", "upsampler_256", "upsampler_1024")
OF_THE_PRIOR = ("prior_guidance", "prior_steps", "prior_scheduler", "candidates")


def add_words(group: argparse._ArgumentGroup) -> None:
    """Options of the stages."""
    add = group.add_argument
    add("--guidance", type=words.scale, metavar="X", help="of the decoder; 1 is none")
    add("--image-guidance", type=words.scale, metavar="X", help="of z_img; else as --guidance")
    add("--prior-guidance", type=words.scale, metavar="X", help="of the prior; 1 is none")
    add("--prior-negative-prompt", metavar="TEXT", help="of the prior, where it has its own")
    interval = "timesteps that are guided; 0,1000 is all"
    add("--guidance-interval", type=words.interval, metavar="LOW,HIGH", help=interval)
    add(
        "--guidance-rescale", type=words.share, metavar="X", help="back to the spread; 0.7 is usual"
    )
    add("--dynamic-threshold", type=words.percentile, metavar="X", help="Imagen's; 0.995 is usual")
    add("--reuse", type=words.count, metavar="N", help="decoder: deep levels in every Nth step")
    add("--steps", type=words.steps, help="of the decoder")
    add("--prior-steps", type=words.steps, metavar="STEPS", help="of the prior")
    pair = "STEPS[,STEPS]"
    add("--upsampler-steps", type=words.step_pair, metavar=pair, help="to 256, and to 1024")
    names = ", ".join(words.SAMPLERS)
    add("--scheduler", type=words.sampler, metavar="NAME", help=f"of the decoder: {names}")
    add("--prior-scheduler", type=words.sampler, metavar="NAME", help="of the prior")
    pair = "NAME[,NAME]"
    add("--upsampler-scheduler", type=words.sampler_pair, metavar=pair, help="to 256, and to 1024")
    add("--candidates", type=words.count, metavar="N", help="of the prior; the nearest is drawn")


def given_samplers(args: argparse.Namespace) -> dict[str, str]:
    """The sampler of each stage for which one is named."""
    upsampler = args.upsampler_scheduler or (None, None)
    named = dict(zip(STAGES, (args.prior_scheduler, args.scheduler, *upsampler), strict=True))
    return {stage: name for stage, name in named.items() if name is not None}


def pipeline_settings(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline that options and a record ask for; None leaves its default."""
    steps, guidance = by_stage(record, "steps"), by_stage(record, "guidance")
    asked = (args.prior_steps, args.steps, *(args.upsampler_steps or (None, None)))
    return {
        "negative_prompt": given(args.negative_prompt, record.get("negative_prompt")),
        "guidance_scale": given(args.guidance, guidance.get("decoder")),
        "prior_guidance_scale": given(args.prior_guidance, guidance.get("prior")),
        "num_prior_candidates": given(args.candidates, record.get("num_prior_candidates")),
        "size": given(args.size, record.get("size")),
        **{
            f"{stage}_num_inference_steps": given(value, steps.get(stage))
            for stage, value in zip(STAGES, asked, strict=True)
        },
        "stages": stage_settings(args, record),
    }


def stage_settings(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What only the argument "stages" of the pipeline can say, by stage."""
    decoder = {
        "image_guidance_scale": args.image_guidance,
        "guidance_interval": args.guidance_interval,
        "guidance_rescale": args.guidance_rescale,
        "dynamic_threshold": args.dynamic_threshold,
        "reuse": args.reuse,
    }
    found: dict[str, dict[str, Any]] = {}
    for name, value in decoder.items():
        for stage, recorded in by_stage(record, name).items():
            found.setdefault(stage, {})[name] = recorded
        if value is not None:
            found.setdefault("decoder", {})[name] = value
    negative = given(args.prior_negative_prompt, record.get("prior_negative_prompt"))
    if negative is not None:
        found.setdefault("prior", {})["negative_prompt"] = negative
    return found


def by_stage(record: dict[str, Any], key: str) -> dict[str, Any]:
    """What a record says of a key for each stage."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def given(*values: Any) -> Any:
    """The first value that is not None."""
    return next((value for value in values if value is not None), None)
