"""How much the prefix of the prior saves: our sampling loop beside one over diffusers' transformer.

    python benchmarks/prior_prefix.py                      # Karlo's size, 1.02 B parameters
    python benchmarks/prior_prefix.py --layers 2 --steps 5 # a moment

Both loops use the same random weights, captions, guidance and timesteps, in turns, and the ratio of
their times is printed, with the largest difference of what they predict.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from diffusers import PriorTransformer

from unclip.models.prior_transformer import Prefix, PrefixPriorTransformer

KARLO = {"num_attention_heads": 32, "attention_head_dim": 64, "embedding_dim": 768}


def make(num_layers: int, dtype: torch.dtype) -> tuple[PrefixPriorTransformer, PriorTransformer]:
    """Our transformer and the library's around the same random weights."""
    torch.manual_seed(0)
    with torch.device("meta"):
        ours = PrefixPriorTransformer(num_layers=num_layers, **KARLO)
        theirs = PriorTransformer(num_layers=num_layers, **KARLO)
    weights = {
        name: torch.empty(value.shape, dtype=dtype).normal_(std=0.02)
        for name, value in ours.state_dict().items()
    }
    mask = torch.full((1, 81, 81), -10000.0).triu(1)
    for network in (ours, theirs):
        network.load_state_dict(weights, assign=True)
        network.causal_attention_mask = mask
        network.eval()
    return ours, theirs


def captions(batch_size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Captions of 5 to 20 tokens, then as many empty ones."""
    lengths = [5 + 15 * i // max(1, batch_size - 1) for i in range(batch_size)] + [2] * batch_size
    generator = torch.Generator().manual_seed(1)
    num = len(lengths)
    return {
        "proj_embedding": torch.randn(num, 768, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(num, 77, 768, generator=generator).to(dtype),
        "attention_mask": torch.arange(77) < torch.tensor(lengths)[:, None],
    }


@torch.no_grad()
def loop(network, text: dict, steps: int, prefix: Prefix | None, guidance: float = 4.0):
    """Predictions of a guided loop; the noise between steps does not matter to the clock."""
    more = {} if prefix is None else {"prefix": prefix}
    num = len(text["proj_embedding"]) // 2
    z = torch.randn(num, 768, generator=torch.Generator().manual_seed(2)).to(network.dtype)
    for t in torch.linspace(999, 0, steps).long():
        rows = torch.cat([z, z])
        predicted = network(rows, t.expand(2 * num), **text, **more).predicted_image_embedding
        cond, uncond = predicted.chunk(2)
        z = torch.lerp(z, uncond + guidance * (cond - uncond), 1 / steps)
    return z


def main() -> None:
    """Print times, their ratio and the difference as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    ours, theirs = make(args.layers, dtype)
    text = captions(args.batch_size, dtype)
    times = {"ours": [], "theirs": []}
    for network, prefix in ((ours, Prefix()), (theirs, None)):
        loop(network, text, 1, prefix)  # warms up
    for _ in range(args.runs):
        start = time.perf_counter()
        z_ours = loop(ours, text, args.steps, Prefix())
        middle = time.perf_counter()
        z_theirs = loop(theirs, text, args.steps, None)
        times["ours"].append(middle - start)
        times["theirs"].append(time.perf_counter() - middle)
    seconds = {name: round(statistics.median(values), 3) for name, values in times.items()}
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    report = {
        **{key: getattr(args, key) for key in ("layers", "steps", "batch_size", "dtype")},
        "seconds": seconds,
        "ratio": [round(ratio, 2) for ratio in sorted(ratios)],
        "largest_difference": float((z_ours - z_theirs).abs().max()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
