"""A training step of a decoder of 300 M parameters, as a share of what the device can multiply.

    python benchmarks/train_step.py --device cuda --batch-size 64 --compile
    python benchmarks/train_step.py --channels 64 128 --batch-size 2 --runs 2  # a moment on a CPU

One step is forward, backward, clipping and AdamW (fused where the device has it), in bfloat16 with
weights in float32. Its FLOPs are counted, and divided by the rate of a large matrix product of
bfloat16 measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unclip import Decoder, TextEncoding
from unclip.models.layers import compile_layers


def seconds_of(act: Callable[[], object], device: str) -> float:
    """How long a call takes, a GPU's part included."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    act()
    wait()
    return time.perf_counter() - start


def matrix_rate(device: str, size: int) -> float:
    """FLOPs a second of a product of bfloat16 matrices, the best of ten."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    a @ a
    return 2 * size**3 / min(seconds_of(lambda: a @ a, device) for _ in range(10))


def make_batch(
    decoder: Decoder,
    batch_size: int,
    device: str,
    layout: torch.memory_format = torch.channels_last,
) -> tuple[Tensor, ...]:
    """Noised pictures, timesteps, embeddings and captions of random numbers."""
    config = decoder.config
    shape = (batch_size, 3, config.size, config.size)
    x_t = torch.randn(shape, device=device).to(memory_format=layout)
    t = torch.randint(config.num_train_timesteps, (batch_size,), device=device)
    dim, context = config.embedding_dim, config.context
    states_dim = config.text_states_dim or dim
    text = TextEncoding(
        torch.randn(batch_size, dim, device=device),
        torch.randn(batch_size, context, states_dim, device=device),
        torch.arange(context, device=device).expand(batch_size, -1) < context // 4,
        torch.zeros(batch_size, context, dtype=torch.long, device=device),
    )
    return x_t, t, torch.randn(batch_size, dim, device=device), text


def make_step(decoder: nn.Module, batch: tuple[Tensor, ...], device: str) -> Callable[[], None]:
    """One step of training on a batch."""
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-4, fused=True)
    target = torch.randn_like(batch[0])

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            output = decoder(*batch).float()[:, :3]
        nn.functional.mse_loss(output, target).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Print the step's seconds, its FLOPs and its share of the matrix rate as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels", type=int, nargs="+", default=[192, 384, 576, 768])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--matrix", type=int, default=0, help="side of the matrices of the rate")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    levels = [False] + [True] * (len(args.channels) - 1)
    with torch.device(args.device):
        decoder = Decoder(channels=tuple(args.channels), attention_levels=tuple(levels))
    decoder.train().to(memory_format=torch.channels_last)
    step = make_step(decoder, make_batch(decoder, args.batch_size, args.device), args.device)
    with FlopCounterMode(display=False) as counter:
        step()
    if args.compile:
        compile_layers(decoder, dynamic=False)
    for _ in range(3):
        step()
    seconds = statistics.median(seconds_of(step, args.device) for _ in range(args.runs))
    rate = matrix_rate(args.device, args.matrix or (8192 if args.device == "cuda" else 2048))
    reached = counter.get_total_flops() / seconds
    report = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "batch_size": args.batch_size,
        "compiled": args.compile,
        "seconds": round(seconds, 4),
        "pictures_a_second": round(args.batch_size / seconds, 2),
        "tflops_a_second": round(reached / 1e12, 3),
        "matrix_tflops_a_second": round(rate / 1e12, 3),
        "share_of_matrix_rate": round(reached / rate, 3),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
