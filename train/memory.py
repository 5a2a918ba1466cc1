"""When memory does not suffice: activations made again, and an error that says what helps."""

from __future__ import annotations

from torch import nn

from unclip_train.config import ConfigError, RunConfig

SWITCHES = (  # of diffusers' and of transformers' models, new and old
    "enable_gradient_checkpointing",
    "activation_checkpointing_enable",
    "gradient_checkpointing_enable",
)


class OutOfMemory(RuntimeError):
    """A micro-batch does not fit; names the settings that make it fit, with values."""

    def __init__(self, stage: str, step: int, micro_size: int, run: RunConfig, reason: str):
        knobs = []
        if micro_size > 1:
            pieces = 2 * run.gradient_accumulation
            knobs.append(f"run.gradient_accumulation={pieces} (the same batch in more pieces)")
        if not run.gradient_checkpointing:
            knobs.append("run.gradient_checkpointing=true")
        if run.precision == "no":
            knobs.append("run.precision=bf16")
        if run.batch_size > 1:
            knobs.append(f"run.batch_size={run.batch_size // 2}")
        if not run.halve_on_oom:
            knobs.append("run.halve_on_oom=true (the first of these unasked, on one process)")
        super().__init__(
            f"{stage}: out of memory in step {step} with micro-batches of {micro_size}: try "
            f"{', '.join(knobs)}, or a smaller network [{reason}]"
        )


def checkpoint_gradients(network: nn.Module) -> None:
    """Have a network make activations again in backward rather than keep them.

    Raises:
        ConfigError: for a network that cannot.
    """
    done = False
    for module in network.modules():
        switch = next((name for name in SWITCHES if hasattr(module, name)), None)
        supports = getattr(module, "_supports_gradient_checkpointing", True)
        if switch and getattr(module, "supports_gradient_checkpointing", supports):
            getattr(module, switch)()
            done = True
    if not done:
        raise ConfigError("run.gradient_checkpointing: this network cannot do without activations")
