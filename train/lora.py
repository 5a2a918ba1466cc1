"""LoRA in training: low-rank changes beside frozen weights, by peft; saved in peft's format."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from unclip_train.config import ConfigError, LoraConfig

ADAPTER = "default"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")


def add_lora(network: nn.Module, config: LoraConfig) -> nn.Module:
    """The network with changes to be trained beside the layers that config names; it alone learns.

    At the start it computes what it did before, since B is zero.

    Raises:
        ConfigError: when peft is missing, or no layer has such a name.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "lora.rank: the library peft is missing; install it with pip install 'unclip[lora]'"
        ) from None
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or config.rank,
        lora_dropout=config.dropout,
        target_modules=list(config.targets or ATTENTION),
    )
    try:
        return peft.inject_adapter_in_model(settings, network, ADAPTER)
    except ValueError as error:
        names = sorted({".".join(n.split(".")[-1:]) for n, m in network.named_modules() if fits(m)})
        raise ConfigError(
            f"lora.targets: {' '.join(str(error).split())[:120]}; layers end in {', '.join(names)}"
        ) from None


def fits(module: nn.Module) -> bool:
    """Whether a change can stand beside a layer."""
    return isinstance(module, nn.Linear | nn.Conv2d)


def save_lora(network: nn.Module, folder: Path, stage: str, config: LoraConfig) -> None:
    """Write the changes alone: adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name.replace(f".{ADAPTER}.", "."): tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if ".lora_" in name
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    facts = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha or config.rank,
        "target_modules": list(config.targets or ATTENTION),
        "lora_dropout": config.dropout,
        "bias": "none",
        "base_model_name_or_path": None,
        "unclip_stage": stage,
    }
    (folder / "adapter_config.json").write_text(json.dumps(facts, indent=2) + "\n")
