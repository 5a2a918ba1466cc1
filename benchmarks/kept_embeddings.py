"""What keeping the embeddings of drawings saves: an update with and without CLIP's picture tower.

    python benchmarks/kept_embeddings.py --data data/emoji --clip unclip/weights/emoji/clip

The configs emoji/prior and emoji/decoder, the same batches in turns; medians of the times and the
ratios are printed as JSON, a line for each stage.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from unclip.diffusion.noise import child_generators
from unclip_train.cli import make_stage
from unclip_train.config import load_config
from unclip_train.data.loader import collate
from unclip_train.optimizer import make_optimizer


def seconds_of(stage, optimizer, batch: dict) -> float:
    """An update in bf16."""
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = stage.loss(stage.network, batch, child_generators(batch["position"], "bench"))
        loss["loss"].backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    """Time both stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--clip", required=True)
    parser.add_argument("--runs", type=int, default=8)
    args = parser.parse_args()
    for name in ("prior", "decoder"):
        words = [f"data.source={args.data}", f"clip={args.clip}", "statistics_samples=64"]
        config = load_config(name, f"emoji/{name}", words if name == "prior" else words[:2])
        stage, dataset = make_stage(name, config)
        stage.network.to(memory_format=torch.channels_last).train()
        optimizer = make_optimizer(stage.network, config.optimizer)
        size, kept, times = config.run.batch_size, stage.kept, {"kept": [], "encoded": []}
        for run in range(args.runs + 1):
            batch = collate([dataset[run * size + row] for row in range(size)])
            kept.find(batch["plain"], torch.device("cpu"))  # what is asked for once is not timed
            for way in times:
                stage.kept = kept if way == "kept" else None
                seconds = seconds_of(stage, optimizer, batch)
                if run:  # the first warms up
                    times[way].append(seconds)
        ratios = [b / a for a, b in zip(times["kept"], times["encoded"], strict=True)]
        report = {way: round(statistics.median(values), 4) for way, values in times.items()}
        report["ratio"] = round(statistics.median(ratios), 2)
        print(json.dumps({"stage": name, "batch_size": size, "seconds": report}), flush=True)


if __name__ == "__main__":
    main()
