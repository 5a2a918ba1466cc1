"""How much work an update is, how much of it the device could do, and the memory it takes."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unclip.diffusion.noise import child_generators

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIDES = {"cuda": 8192, "cpu": 1024}  # of the matrices that are multiplied to time a device
REPEATS = 5


def count_flops(stage, network: nn.Module, batch: dict, autocast) -> float:
    """Floating point operations of learning from one sample, forward and backward.

    Matrix products and convolutions count, as 2 operations for a product and a sum; what CLIP does
    beside the network is among them. Attention is done in the plain way, which the counter knows on
    every device. Gradients are left at none, buffers and random numbers as they were.
    """
    generators = child_generators(batch["position"], "flops")
    checkpointed = [m for m in network.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in checkpointed:  # what is made again is no work of the model's
        module.gradient_checkpointing = False
    counter, plain = FlopCounterMode(display=False), sdpa_kernel(SDPBackend.MATH)
    try:
        with forked_random_numbers(network), kept_buffers(network), autocast():
            with torch.no_grad():  # what is worked out once and kept is no work of an update
                stage.loss(network, batch, child_generators(batch["position"], "flops"))
            with plain, counter:
                stage.loss(network, batch, generators)["loss"].backward()
    finally:
        network.zero_grad(set_to_none=True)
        for module in checkpointed:
            module.gradient_checkpointing = True
    return counter.get_total_flops() / len(generators)


def forked_random_numbers(network: nn.Module):
    """A context that leaves the random numbers of the CPU and the network's device as they are."""
    device = next(network.parameters()).device
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextlib.contextmanager
def kept_buffers(network: nn.Module) -> Iterator[None]:
    """A context that leaves buffers as they are, which layers such as batch norms learn as seen."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def quickest_precision(device: torch.device) -> str:
    """What run.precision "auto" stands for: "bf16" where the device is made for it, or "no".

    A processor without bf16 units works it out in other ways, several times as slowly as fp32;
    there is no list of such processors, so that each is timed.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    rates = {name: measure_matmul(device, name, side=512) for name in ("no", "bf16")}
    return max(rates, key=rates.get)


@torch.no_grad()
def measure_matmul(device: torch.device, precision: str, side: int | None = None) -> float:
    """Operations a second of the fastest of some products of square matrices, large unless told."""
    side, dtype = side or SIDES.get(device.type, SIDES["cpu"]), DTYPES[precision]
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gb(device: torch.device) -> float:
    """Most memory so far, in 10^9 bytes: of the device, or of this process where that is a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Throughput:
    """Turns samples a second into work a second, and the share of what the device could do.

    Args:
        flops_per_sample: as count_flops gives them.
        peak_flops: operations a second of all devices of the run.
    """

    def __init__(self, flops_per_sample: float, peak_flops: float):
        self.flops_per_sample, self.peak_flops = flops_per_sample, peak_flops

    def of(self, samples_per_s: float) -> dict[str, float]:
        """tflops a second, and mfu, the model's FLOP utilisation (PaLM, appendix B)."""
        flops = samples_per_s * self.flops_per_sample
        return {"tflops": flops / 1e12, "mfu": flops / self.peak_flops}
