"""Networks with their linear layers in fewer bits, by the quantizers of diffusers.

A model is read as strictly as ever; then the library's quantizer (torchao, bitsandbytes, ...) is
handed the weights of the prior, the decoder and the upsamplers, one at a time, as its own loader
would hand them. CLIP stays whole: it ranks what the others draw.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig, TorchAoConfig
from diffusers.quantizers import DiffusersAutoQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import nn

from unclip.pipeline.arguments import STAGES, check_choice, short

ARGUMENT = "quantization_config"
WORDS = ("int8", "float8")  # weights alone, by torchao


def quantize_networks(components: Mapping[str, Any], asked: Any) -> None:
    """Quantize the networks of a pipeline in place, as from_pretrained describes it.

    Raises:
        ValueError: for a config that none of the networks can follow, by name, and for networks
            that are quantized already or offloaded layer by layer.
        ImportError: where the library that it needs is not installed.
    """
    configs = configs_by_stage(asked)
    present = [stage for stage in configs if components[stage] is not None]
    for stage in present:  # before any is changed
        check_quantizable(components[stage], stage)
    for stage in present:
        quantize(components[stage], copy.deepcopy(configs[stage]), stage)


def configs_by_stage(asked: Any) -> dict[str, QuantizationConfigMixin]:
    """The config of each stage that is to be quantized."""
    if isinstance(asked, str):
        asked = config_of_word(asked)
    if isinstance(asked, PipelineQuantizationConfig):
        check_stages([*(asked.quant_mapping or {}), *(asked.components_to_quantize or [])])
        found = {stage: asked._resolve_quant_config(True, stage) for stage in STAGES}
        asked = {stage: config for stage, config in found.items() if config is not None}
    elif isinstance(asked, QuantizationConfigMixin):
        asked = dict.fromkeys(STAGES, asked)
    if not isinstance(asked, Mapping):
        raise ValueError(
            f"{ARGUMENT}: give {' or '.join(WORDS)}, a config of diffusers such as TorchAoConfig, "
            f"or one by stage, not {short(asked)}"
        )
    check_stages(asked)
    configs = {}
    for stage, config in asked.items():
        config = config_of_word(config) if isinstance(config, str) else config
        if not isinstance(config, QuantizationConfigMixin):
            raise ValueError(f"{ARGUMENT}: that of {stage} is no config of diffusers")
        configs[stage] = config
    return configs


def check_stages(names: Any) -> None:
    """Refuse networks that are not to be quantized."""
    for name in names:
        if name not in STAGES:
            raise ValueError(f"{ARGUMENT}: {name!r} cannot be quantized; give {', '.join(STAGES)}")


def config_of_word(word: str) -> TorchAoConfig:
    """torchao's config for a word."""
    check_choice(ARGUMENT, word, WORDS)
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    except ImportError:
        raise ImportError(
            f"{ARGUMENT}: {word!r} needs torchao; pip install 'unclip[quant]'"
        ) from None
    return TorchAoConfig(Int8WeightOnlyConfig() if word == "int8" else Float8WeightOnlyConfig())


def check_quantizable(network: nn.Module, stage: str) -> None:
    """Refuse to quantize weights that are no longer what was stored, or not there."""
    if is_quantized(network):
        raise ValueError(f"{ARGUMENT}: the {stage} is quantized already; load the model anew")
    if is_offloaded(network):
        raise ValueError(
            f"{ARGUMENT}: the weights of the {stage} are offloaded; quantize before "
            "enable_sequential_cpu_offload(), or call remove_all_hooks() first"
        )


def quantize(network: nn.Module, config: QuantizationConfigMixin, stage: str) -> None:
    """Hand every weight of a network to the library's quantizer, which takes what it can."""
    quantizer = DiffusersAutoQuantizer.from_config(config, pre_quantized=False)
    quantizer.validate_environment(torch_dtype=network.dtype)
    state = network.state_dict()
    num_taken = 0
    quantizer.preprocess_model(network, device_map=None, keep_in_fp32_modules=[])
    for name, value in state.items():
        if quantizer.check_if_quantized_param(network, value, name, state):
            quantizer.create_quantized_param(network, value, name, value.device, state, [])
            num_taken += 1
    if not num_taken:
        raise ValueError(f"{ARGUMENT}: it leaves every layer of {stage} as it is")
    quantizer.postprocess_model(network)
    network.hf_quantizer = quantizer
    network.requires_grad_(False)


def is_quantized(network: nn.Module) -> bool:
    """Whether a network's weights are no longer what was stored."""
    return getattr(network, "hf_quantizer", None) is not None


def is_offloaded(network: nn.Module) -> bool:
    """Whether weights are brought in for their own layer alone, and empty in between."""
    return any(parameter.is_meta for parameter in network.parameters())


def num_bytes(network: nn.Module) -> int:
    """Bytes that the weights of a network take, quantized or not."""
    return sum(stored_bytes(parameter) for parameter in network.parameters())


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, or of the tensors that one of torchao's is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()
