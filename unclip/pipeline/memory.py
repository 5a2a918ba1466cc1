"""Fitting a pipeline to its machine: devices, offloading, slicing, compiling.

Methods of UnCLIPPipeline. Model offloading is diffusers' own, with the prior included. What a
stage needs of a weight outside of a forward pass (the prior's statistics, the decoder's null
embedding, CLIP's towers) is brought to the device by hand: see stages.execution_device.

Hooks that move or cast weights know nothing of threads: where there are any, what draws is done
in_turn.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload
from diffusers.hooks import apply_group_offloading
from diffusers.utils.torch_utils import get_device
from torch import nn

from unclip.models.layers import compile_layers
from unclip.pipeline.arguments import STAGES
from unclip.pipeline.quantization import quantize_networks

HOOKS = {"_hf_hook", "_diffusers_hook"}  # what accelerate and diffusers leave in a module
Method = TypeVar("Method", bound=Callable[..., Any])


class Turn:
    """The lock of a pipeline whose calls take turns, which a thread may take again within its own.

    A deep copy of a pipeline has networks of its own, and so another lock.
    """

    def __init__(self):
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple:
        return Turn, ()


def in_turn(method: Method) -> Method:
    """Let a method of a pipeline wait for those of other threads where hooks are set."""

    @functools.wraps(method)
    def waiting(pipeline: Memory, *args: Any, **kwargs: Any) -> Any:
        with pipeline._own_turn():
            return method(pipeline, *args, **kwargs)

    return waiting


class Memory:
    """Devices and dtypes; less memory, or more speed, for the same pictures.

    While networks are offloaded or cast layer by layer, calls of several threads take turns.
    """

    def to(self, *args, **kwargs) -> Self:
        """Move all networks to a device, and the decoder and the upsamplers to a dtype."""
        device, dtype = split_move(args, kwargs)
        if device is not None:
            super().to(device)
        for network in (self.decoder, self.upsampler_256, self.upsampler_1024):
            if network is not None and dtype is not None:
                nn.Module.to(network, dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """That of the decoder; CLIP and the prior stay in float32."""
        return self.decoder.dtype

    def quantize(self, quantization_config: Any) -> None:
        """Keep the linear layers of the stages in fewer bits from now on; see quantization.py.

        quantization_config: as from_pretrained has it. A LoRA must be added before.
        """
        quantize_networks(self.components, quantization_config)

    def enable_group_offload(
        self,
        onload_device: torch.device | str,
        offload_device: torch.device | str = "cpu",
        offload_type: str = "leaf_level",
        **settings: Any,
    ) -> None:
        """Bring groups of layers to a device as they are needed; see diffusers' method.

        offload_type: "leaf_level", or "block_level" with num_blocks_per_group.

        Raises:
            ValueError: for offload_to_disk_path, which would leave single weights unreadable.
        """
        if settings.get("offload_to_disk_path") is not None:
            raise ValueError("offload_to_disk_path: not possible here; leave it out")
        settings = {"num_blocks_per_group": 1, **settings} if "block" in offload_type else settings
        places = {
            "onload_device": torch.device(onload_device),
            "offload_device": torch.device(offload_device),
        }
        for network in self.networks():
            for part in network.children():  # blocks are found directly within a network alone
                apply_group_offloading(part, offload_type=offload_type, **places, **settings)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep every weight on the CPU but while its own layer runs: least memory, and slow.

        Unlike diffusers' method it leaves buffers on the device, since CLIP's cannot be moved.
        """
        self.remove_all_hooks()
        if device is None:
            device = get_device() if gpu_id is None else f"{get_device()}:{gpu_id}"
        self.to("cpu")
        for network in self.networks():
            cpu_offload(network, torch.device(device), offload_buffers=False)

    def set_attention_slice(self, slice_size: int | str | None) -> None:
        """Compute attention a few heads at a time; see enable_attention_slicing of diffusers."""
        for network in self.networks():
            for part in network.children():
                if hasattr(part, "set_attention_slice"):
                    part.set_attention_slice(slice_size)

    def compile_networks(self, **settings: Any) -> None:
        """Compile the layers of the decoder and the upsamplers, in place, for many pictures.

        The first picture waits for it. What was compiled stays in the user's cache folder, or in
        TORCHINDUCTOR_CACHE_DIR, for the next process. settings: those of torch.compile.
        """
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "compiled"))
        for stage in STAGES[1:]:
            if self.components[stage] is not None:
                compile_layers(self.components[stage], **{"dynamic": False, **settings})

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        """No other thread draws meanwhile where hooks are set; elsewhere, nothing."""
        with self.__dict__.setdefault("_turn", Turn()).lock:
            # Asked within the lock: at the end of a call hooks are gone for a moment.
            if any(map(is_hooked, self.networks())):
                yield
                return
        yield

    def networks(self) -> list[nn.Module]:
        """CLIP and the networks of the stages that this model has."""
        parts = (self.components[name] for name in ("clip", *STAGES))
        return [network for network in parts if network is not None]

    @property
    def _interrupt(self) -> bool:
        """Always False: what diffusers keeps in a pipeline belongs to a call here."""
        return False

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        raise AttributeError("_interrupt: give the call interrupt=threading.Event() and set that")


def is_hooked(network: nn.Module) -> bool:
    """Whether a library moves or casts a network's weights as it runs."""
    return any(HOOKS & vars(module).keys() for module in network.modules())


def brought(network: nn.Module) -> nn.Module:
    """A network on the device where it runs, though its parts are called one by one.

    Model offloading moves a network when its forward is called, and CLIP's never is.
    """
    hook = getattr(network, "_hf_hook", None)
    if isinstance(hook, CpuOffload):
        hook.pre_forward(network)
    return network


def chosen_dtype(dtype: Any, device: torch.device | str | None = None) -> torch.dtype:
    """A dtype that networks can be in; "auto" is the fastest that a device has of two.

    These are bfloat16, where the device multiplies it faster, and float32 elsewhere.
    """
    if dtype != "auto":
        check_dtype(dtype)
        return dtype
    kind = torch.device(device or "cpu").type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # of torch 2.6 to 2.9: none
        fast = kind == "cpu" and any(capabilities.get(f"{s}_bf16") for s in ("avx512", "amx"))
    return torch.bfloat16 if fast else torch.float32


def check_dtype(dtype: Any) -> None:
    """Refuse a dtype that networks cannot be in."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype: give torch.float32, bfloat16, float16 or 'auto', not {dtype!r}")


def split_move(args: tuple, kwargs: dict) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and the dtype of a call of to(device), to(dtype) or to(device, dtype)."""
    unknown = set(kwargs) - {"device", "dtype", "silence_dtype_warnings"}
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for value in args:
        if isinstance(value, torch.dtype):
            dtype = value
        elif value is not None:
            device = value
    if unknown or len(args) > 2:
        raise ValueError("to: give a device, a dtype or both")
    if dtype is not None:
        check_dtype(dtype)
    return None if device is None else torch.device(device), dtype


def user_cache() -> Path:
    """Where this user keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unclip"
