"""A pipeline from folders and to folders, as methods of UnCLIPPipeline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from unclip.diffusion.timesteps import Steps
from unclip.models.clip import CLIP
from unclip.models.decoder import Decoder
from unclip.models.prior import Prior
from unclip.models.upsampler import Upsampler
from unclip.pipeline.advice import refuse_unknown
from unclip.pipeline.arguments import DEFAULT_CANDIDATES, STAGES, check_choice, short
from unclip.pipeline.loading import NETWORKS, SETTINGS, read_network
from unclip.pipeline.memory import chosen_dtype
from unclip.pipeline.published.hub import push
from unclip.pipeline.published.sources import read_model
from unclip.pipeline.quantization import configs_by_stage, quantize_networks
from unclip.pipeline.saving import (
    check_schedulers,
    write_clip,
    write_folder,
    write_index,
    write_network,
    write_scheduler,
)
from unclip.pipeline.schedulers import DEFAULT_SAMPLERS, scheduler_for
from unclip.pipeline.stages import TOKENIZING


class Storage:
    """Reading, joining, writing and publishing models."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        variant: str | None = None,
        clip: str | Path | None = None,
        prior: str | Path | None = None,
        upsampler_1024: str | Path | None = None,
        quantization_config: Any = None,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **unknown: Any,
    ) -> Self:
        """Read a model that save_pretrained wrote or that others published; the embedded one.

        path: a folder, or a name of the Hugging Face hub ("kakaobrain/karlo-v1-alpha"); without
        it, the embedded model. docs/checkpoints.md lists the layouts. variant: the word in the
        names of a published model's files ("fp16"). clip, prior, upsampler_1024: folders, files
        or names of parts that take the place of the model's own; "embedded" is the last upsampler
        of the embedded model. dtype: of the decoder and the upsamplers; "auto" is bfloat16 where
        the device multiplies it faster than float32.
        quantization_config: the linear layers of the stages in fewer bits,
        by diffusers' quantizers: "int8" or "float8" (weights alone, by torchao), TorchAoConfig or
        another config, one by stage, or a PipelineQuantizationConfig; see quantization.py.
        torch_dtype: another name of dtype. revision, local_files_only: of a name of the hub.

        Strict, running nothing that stands in the files: see loading.py.

        Raises:
            FileNotFoundError: when the folder or a file of it is missing.
            ModelFileError: a ValueError that names the file in which something is wrong.
        """
        refuse_unknown(unknown, inspect.signature(cls.from_pretrained).parameters)
        dtype = dtype if torch_dtype is None else torch_dtype
        dtype = chosen_dtype(dtype, device)
        configs = {} if quantization_config is None else configs_by_stage(quantization_config)
        hub = {"revision": revision, "local_files_only": local_files_only}
        pipeline = cls(**read_model(path, dtype, variant, clip, prior, upsampler_1024, **hub))
        quantize_networks(pipeline.components, configs)
        return pipeline if device is None else pipeline.to(device)

    @classmethod
    def from_stages(
        cls,
        clip: CLIP | str | Path,
        decoder: Decoder | str | Path,
        prior: Prior | str | Path | None = None,
        upsampler_256: Upsampler | str | Path | None = None,
        upsampler_1024: Upsampler | str | Path | None = None,
        default_steps: Mapping[str, Steps] | None = None,
        default_guidance: Mapping[str, float] | float | None = None,
        default_guidance_interval: tuple[float, float] | None = None,
        default_candidates: int = DEFAULT_CANDIDATES,
        samplers: Mapping[str, str] | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Join networks, or the folders that training wrote, into a pipeline.

        samplers: names by stage ("ddpm", "ddim", "unipc", ...), where they should not be those of
        DEFAULT_SAMPLERS. The schedulers follow each network's config. dtype: of the decoder and
        the upsamplers, as from_pretrained has it; unless given, networks stay in their own, and
        those of folders are read in float32.

        Raises:
            ValueError: for parts that do not fit each other, and for a bad argument, by name.
        """
        dtype = None if dtype is None else chosen_dtype(dtype)
        given = dict(zip(STAGES, (prior, decoder, upsampler_256, upsampler_1024), strict=True))
        names = samplers_by_stage(samplers)
        parts: dict[str, Any] = {}
        for stage, network in given.items():
            network = network_of(stage, network, None if stage == "prior" else dtype)
            parts[stage] = network
            parts[f"{stage}_scheduler"] = network and scheduler_for(network, names[stage])
        clip = clip if isinstance(clip, CLIP) else CLIP.from_pretrained(clip)
        return cls(
            clip=clip.model,
            tokenizer=clip.tokenizer,
            image_mean=clip.image_mean.flatten().tolist(),
            image_std=clip.image_std.flatten().tolist(),
            normalize=clip.normalize,
            default_steps=default_steps,
            default_guidance=default_guidance,
            default_guidance_interval=default_guidance_interval,
            default_candidates=default_candidates,
            **parts,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        max_shard_size: int | str = "15MB",
        overwrite: bool = False,
        safe_serialization: bool = True,
        **unknown: Any,
    ) -> None:
        """Write everything that from_pretrained needs: safetensors and JSON, whole or not at all.

        dtype: of the stored weights, that of the networks unless given. safe_serialization: True,
        as diffusers has it; there is no other way.

        Raises:
            ValueError: for quantized or offloaded weights, a dtype that networks cannot be in, a
                scheduler that could not be read again, or where pickles are asked for.
            FileExistsError: when the folder is not empty and overwrite is not set, or when it
                holds what is no model.
            FloatingPointError: for weights that are not finite.
        """
        refuse_unknown(unknown, inspect.signature(self.save_pretrained).parameters)
        if not safe_serialization:
            raise ValueError("safe_serialization: weights are written as safetensors alone")
        check_schedulers(self.components)
        write_folder(Path(folder), overwrite, lambda new: self._write(new, dtype, max_shard_size))

    def _write(self, folder: Path, dtype: torch.dtype | None, max_shard_size: int | str) -> None:
        parts = self.components
        settings = {key: self.config[key] for key in SETTINGS}
        write_index(folder, {name: tuple(self.config[name]) for name in parts}, settings)
        with TOKENIZING:
            write_clip(self.text_and_image_encoder(), folder / "clip", dtype, max_shard_size)
        for stage in STAGES:
            if parts[stage] is not None:
                write_network(parts[stage], folder / stage, dtype, max_shard_size)
                write_scheduler(parts[f"{stage}_scheduler"], folder / f"{stage}_scheduler")

    def push_to_hub(self, name: str, license: str, **settings) -> str:
        """Upload this model to the Hugging Face hub, with a model card; see published/hub.py."""
        return push(self, name, license, **settings)


def samplers_by_stage(asked: Mapping[str, str] | None) -> dict[str, str]:
    """The name of every stage's sampler: what was asked for, and the usual ones.

    Raises:
        ValueError: for what names no stage.
    """
    if asked is not None and not isinstance(asked, Mapping):
        raise ValueError(f"samplers: give names by stage, not {short(asked)}")
    for stage in asked or {}:
        check_choice("samplers", stage, STAGES)
    return DEFAULT_SAMPLERS | dict(asked or {})


def network_of(stage: str, given: Any, dtype: torch.dtype | None) -> Any:
    """A network that was given, or that its folder holds, in a dtype; None of a stage without."""
    if isinstance(given, str | Path):
        return read_network(NETWORKS[stage], Path(given), dtype or torch.float32)
    return given if given is None or dtype is None else nn.Module.to(given, dtype)
