"""A model as a repository of the Hugging Face hub, with a card that says what it is."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from unclip.pipeline.published.diffusers_export import export_to_diffusers

TARGETS = ("unclip", "diffusers")
COMMANDS = {
    "unclip": """pip install unclip
unclip-sample --model {name} --prompt "a red apple" --output apple.png""",
    "diffusers": """pip install unclip
unclip-convert {name} model
unclip-sample --model model --prompt "a red apple" --output apple.png""",
}
SHARD_SIZE = "5GB"


def push(
    pipe: Any,
    name: str,
    license: str,
    to: str = "unclip",
    dtype: torch.dtype | None = None,
    private: bool = False,
    commit_message: str = "Upload a model of unclip",
) -> str:
    """Write the pipeline aside in our layout or diffusers', with a card, and upload it.

    name: owner/model. license: of the weights, as the hub spells it ("apache-2.0"). The token is
    the one that `hf auth login` keeps; none is read or written here.

    Returns:
        The address of the commit.

    Raises:
        ValueError: for a target that is none, or networks that the target cannot hold.
    """
    from huggingface_hub import HfApi

    if to not in TARGETS:
        raise ValueError(f"to: give one of {', '.join(TARGETS)}, not {to!r}")
    if not isinstance(license, str) or not license:
        raise ValueError("license: give the licence of the weights, such as 'apache-2.0'")
    hub = HfApi()
    with TemporaryDirectory(prefix="unclip-") as aside:
        folder = Path(aside) / "model"
        if to == "diffusers":
            export_to_diffusers(pipe, folder, dtype)
        else:
            pipe.save_pretrained(folder, dtype, SHARD_SIZE)
        (folder / "README.md").write_text(model_card(pipe, name, license, to), "utf-8")
        hub.create_repo(name, private=private, exist_ok=True)
        commit = hub.upload_folder(folder_path=folder, repo_id=name, commit_message=commit_message)
    return str(commit)


def model_card(pipe: Any, name: str, license: str, to: str = "unclip") -> str:
    """The README.md of a repository: what the hub sorts by, the parts, sizes and how to draw."""
    rows = [
        f"| {part} | {type(network).__name__} | {millions(network):,.1f} |"
        for part, network in pipe.components.items()
        if isinstance(network, nn.Module) and (to == "unclip" or part != "upsampler_1024")
    ]
    steps, guidance = dict(pipe.config.default_steps), dict(pipe.config.default_guidance)
    defaults = [
        f"| {stage} | {steps[stage]} | {guidance.get(stage, '')} |"
        for stage in ("prior", "decoder", "upsampler_256", "upsampler_1024")
        if pipe.components[stage] is not None and (to == "unclip" or stage != "upsampler_1024")
    ]
    of_time = ""
    if to == "unclip" and pipe.config.default_guidance_interval is not None:
        low, high = pipe.config.default_guidance_interval
        of_time = f"The decoder is guided from t = {high:g} to {low:g}. "
    unit = "brought to length 1" if pipe.config.normalize else "as CLIP gives them"
    lines = [
        *("---", f"license: {license}", "library_name: unclip", "pipeline_tag: text-to-image"),
        *("tags:", "- unclip", "- dall-e-2", *(["- diffusers"] if to == "diffusers" else [])),
        *("---", "", f"# {name}", ""),
        "unCLIP (DALL-E 2): a caption becomes a CLIP text embedding, a prior turns it into a CLIP",
        "image embedding, a decoder draws that, and upsamplers enlarge the picture.",
        *("", "| part | class | parameters (M) |", "|---|---|---|", *rows),
        *("", "| stage | steps | guidance |", "|---|---|---|", *defaults),
        *("", f"{of_time}Embeddings are {unit}."),
        *("The weights are safetensors; nothing is pickled.", ""),
        *("```bash", COMMANDS[to].format(name=name), "```", ""),
        "What it was trained on and how, what it can and cannot draw: for its makers to add here.",
    ]
    return "\n".join(lines) + "\n"


def millions(network: nn.Module) -> float:
    """Parameters, in millions."""
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6
