"""From the runs of the stages to one model that the pipeline loads."""

from __future__ import annotations

from pathlib import Path

from unclip_train.config import AssemblyConfig

REQUIRED = ("clip", "prior", "decoder")
OPTIONAL = ("upsampler_256", "upsampler_1024")


def assemble_model(runs: Path, output: Path, config: AssemblyConfig) -> Path:
    """Write the averaged networks of runs/<stage>/model as one pipeline folder, in bf16.

    Args:
        runs: holds a run folder for each of clip, prior and decoder, and for trained upsamplers.
        output: folder to write; it must not exist yet, or be empty.
        config: steps, guidance and samplers that calls of the model begin from.

    Raises:
        FileNotFoundError: naming the stage that has not been trained.
        FileExistsError: when output already holds something.
    """
    import torch

    from unclip import UnCLIPPipeline

    stages = {stage: runs / stage / "model" for stage in (*REQUIRED, *OPTIONAL)}
    for stage in REQUIRED:
        if not (stages[stage] / "config.json").is_file():
            raise FileNotFoundError(f"--runs: no trained {stage} in {stages[stage]}")
    found = {stage: path for stage, path in stages.items() if (path / "config.json").is_file()}
    check_output(output)
    pipeline = UnCLIPPipeline.from_stages(
        **found,
        default_steps=config.steps,
        default_guidance=config.guidance,
        default_guidance_interval=config.guidance_interval,
        default_candidates=config.candidates,
        samplers=config.samplers,
    )
    pipeline.save_pretrained(output, dtype=torch.bfloat16)
    return output


def check_output(output: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        FileExistsError: naming it.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"--output: {output} is not empty")
