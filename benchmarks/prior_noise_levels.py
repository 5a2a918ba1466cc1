"""What several noise levels a caption save: one pass over the shared text, beside the plain loop.

    python benchmarks/prior_noise_levels.py                 # the size of the embedded model's prior
    python benchmarks/prior_noise_levels.py --layers 6 --heads 16 --dim 768 --context 77

Both learn (forward, backward, AdamW) from the same captions, embeddings and timesteps: one pass
with K levels, and the library's whole sequence for every caption at every level. In turns; the
ratios of the times are printed, with the largest difference of the gradients.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

from unclip import Prior
from unclip.models.clip import TextEncoding
from unclip.models.prior_transformer import Prefix


def captions(args: argparse.Namespace, generator: torch.Generator) -> TextEncoding:
    """Captions of 5 to 20 tokens."""
    num, dim = args.batch_size, args.dim
    lengths = torch.linspace(5, min(20, args.context), num).long()
    return TextEncoding(
        F.normalize(torch.randn(num, dim, generator=generator), dim=-1),
        torch.randn(num, args.context, dim, generator=generator),
        torch.arange(args.context) < lengths[:, None],
        torch.zeros(num, args.context, dtype=torch.long),
    )


def learn(prior, optimizer, text, z_t, t, z_0, levels: int, shared: bool, precision: str) -> None:
    """One update: gradients of all levels, and a step."""
    num = len(z_0)
    rows = torch.arange(num).repeat(levels)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        if shared:
            z_hat = prior(z_t, t, text, Prefix(rows))
        else:
            z_hat = prior(z_t, t, text.select(rows))
    F.mse_loss(z_hat.float(), z_0[rows]).backward()
    optimizer.step()


def parse() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=256, help="of embeddings")
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Print times, their ratios and differences as JSON, a line for each number of levels."""
    args = parse()
    generator = torch.Generator().manual_seed(0)
    prior = Prior(args.dim, args.context, args.layers, args.heads, 64).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=0.0)  # so that both learn the same
    text = captions(args, generator)
    z_0 = torch.randn(args.batch_size, args.dim, generator=generator)
    for levels in args.levels:
        z_t = torch.randn(levels * args.batch_size, args.dim, generator=generator)
        t = torch.randint(1000, (len(z_t),), generator=generator)
        times: dict[bool, list[float]] = {True: [], False: []}
        gradients = {}
        for run in range(args.runs + 1):
            for shared in times:
                optimizer.zero_grad(set_to_none=True)
                started = time.perf_counter()
                learn(prior, optimizer, text, z_t, t, z_0, levels, shared, args.precision)
                if run:  # the first warms up
                    times[shared].append(time.perf_counter() - started)
                gradients[shared] = prior.transformer.proj_in.weight.grad.clone()
        difference = (gradients[True] - gradients[False]).abs().max() / gradients[False].abs().max()
        ratios = sorted(b / a for a, b in zip(times[True], times[False], strict=True))
        report = {
            "levels": levels,
            "seconds": {
                name: round(statistics.median(times[shared]), 4)
                for name, shared in (("one pass", True), ("plain", False))
            },
            "ratio": [round(ratio, 2) for ratio in ratios],
            "captions_per_s": round(args.batch_size / statistics.median(times[True]), 1),
            "relative_difference": float(difference),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
