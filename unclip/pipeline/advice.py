"""Arguments that a method does not have: what may have been meant, or what to give instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What other pipelines of diffusers call it, and what to give here.
ELSEWHERE = {
    "num_inference_steps": "each stage has its own, decoder_num_inference_steps for one",
    "super_res_num_inference_steps": "give upsampler_256_num_inference_steps",
    "decoder_guidance_scale": "give guidance_scale",
    "latents": "give stages={'decoder': {'latents': x_T}}",
    "prior_latents": "give stages={'prior': {'latents': x_T}}",
    "decoder_latents": "give stages={'decoder': {'latents': x_T}}",
    "super_res_latents": "give stages={'upsampler_256': {'latents': x_T}}",
    "prompt_embeds": "give text_embeds=pipe.encode([...])",
    "text_model_output": "give text_embeds=pipe.encode([...])",
    "image_embeddings": "give image_embeds",
    "height": "pictures are square; give size",
    "width": "pictures are square; give size",
    "eta": "vary() and the other operations on latents have it",
    "scheduler": "give stages={'decoder': {'scheduler': ...}}, or call use_sampler()",
    "batch_size": "give max_batch_size",
    "device_map": "give device, or call enable_model_cpu_offload() after loading",
    "subfolder": "give the whole path",
    "use_safetensors": "nothing else is read; leave it out",
    "custom_pipeline": "code that stands in a model is never run; leave it out",
    "trust_remote_code": "code that stands in a model is never run; leave it out",
}


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError for the first name that is not known, with advice."""
    known = list(known)
    for name in given:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, 1, 0.75)
        hint = f"did you mean {near[0]}?" if near else "the method's docstring lists what there is"
        raise TypeError(f"{name}: there is no such argument; {ELSEWHERE.get(name, hint)}")
