"""How long the embedded model takes to a 1024 x 1024 PNG, beside what its arithmetic must take.

    python benchmarks/embedded.py                     # medians of 5
    python benchmarks/embedded.py --runs 1 --batch 1 2 --dtype bfloat16
    python benchmarks/embedded.py --batch 1 2 4 8 16 32 --plot cost.svg
    python benchmarks/embedded.py --device cuda --dtype bfloat16 --batch 1 64 --no-cold --compile

Cold: a process of unclip-sample from nothing to the file, its largest resident memory, and what of
it imports take. Warm: the same in a process that has drawn before, by batch. The floor is the
FLOPs of all networks, counted, over the rate of a large matrix product of the same dtype, measured
in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from unclip import UnCLIPPipeline
from unclip.pipeline.arguments import STAGES

CAPTION = "a red apple, noto style"
GIGA, MIB = 1e9, 2**20
IMPORTS = {
    "torch": "import torch",
    "the pipeline": "from unclip import UnCLIPPipeline",
    "the model": "from unclip import UnCLIPPipeline; UnCLIPPipeline.from_pretrained()",
}


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """FLOPs a second of a matrix product, the best of five."""
    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    a @ a
    return 2 * size**3 / min(seconds_of(lambda: a @ a) for _ in range(5))


def seconds_of(act: Callable[[], object]) -> float:
    """How long a call takes, a GPU's part included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    act()
    wait()
    return time.perf_counter() - start


def child(command: list[str]) -> tuple[float, float]:
    """Seconds and the largest resident MiB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / MIB


def cold(runs: int, dtype: str) -> dict[str, float]:
    """Medians over processes that draw one picture, and over such as only import."""
    found: dict[str, list[float]] = {"seconds": [], "peak_rss_mib": []}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            command = [sys.executable, "-P", "-m", "unclip_sample.cli", "--prompt", CAPTION]
            command += ["--seed", "0", "--quiet", "--dtype", dtype]
            seconds, memory = child([*command, "--output", f"{folder}/{run}.png"])
            found["seconds"].append(seconds)
            found["peak_rss_mib"].append(memory)
            for what, statement in IMPORTS.items():
                key = f"seconds_to_{what.replace(' ', '_')}"
                found.setdefault(key, []).append(child([sys.executable, "-P", "-c", statement])[0])
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def draw(pipe: UnCLIPPipeline, batch_size: int, folder: Path) -> None:
    """Pictures of 1024 pixels a side, as files."""
    seeds = list(range(batch_size))
    images = pipe(CAPTION, num_images_per_prompt=batch_size, seeds=seeds).images
    for seed, image in zip(seeds, images, strict=True):
        image.save(folder / f"{seed}.png")


def warm(pipe: UnCLIPPipeline, batch_sizes: list[int], runs: int) -> dict[int, float]:
    """Median seconds by the number of pictures drawn at once."""
    with tempfile.TemporaryDirectory() as folder:
        draw(pipe, 1, Path(folder))
        return {
            size: statistics.median(
                seconds_of(lambda size=size: draw(pipe, size, Path(folder))) for _ in range(runs)
            )
            for size in batch_sizes
        }


def shares(pipe: UnCLIPPipeline) -> dict[str, dict[str, float]]:
    """Of one picture, by stage: the network's calls, their FLOPs and the seconds that they take."""
    found = {stage: {"calls": 0, "gflop": 0.0, "seconds": 0.0} for stage in STAGES}
    kept = {stage: pipe.components[stage].forward for stage in STAGES}

    def counted(stage: str, count: bool) -> Callable:
        def forward(*args, **kwargs):
            if count:
                with FlopCounterMode(display=False) as counter:
                    output = kept[stage](*args, **kwargs)
                found[stage]["calls"] += 1
                found[stage]["gflop"] += counter.get_total_flops() / GIGA
                return output
            output: list[torch.Tensor] = []
            found[stage]["seconds"] += seconds_of(
                lambda: output.append(kept[stage](*args, **kwargs))
            )
            return output[0]

        return forward

    for count in (True, False):
        for stage in STAGES:
            pipe.components[stage].forward = counted(stage, count)
        pipe(CAPTION, seeds=0)
    for stage in STAGES:
        pipe.components[stage].forward = kept[stage]
    return found


def plot(seconds: dict[int, float], floor: float, path: Path) -> None:
    """Draw seconds a picture over the number that is drawn at once."""
    from unclip_sample.evaluation.plots import svg_of
    from unclip_sample.evaluation.results import Plot, Series

    sizes = list(seconds)
    lines = [
        Series("measured", sizes, [seconds[size] / size for size in sizes]),
        Series("floor", sizes, [floor] * len(sizes)),
    ]
    title = "Seconds a picture of 1024 pixels"
    drawn = Plot(title, "pictures at once", "seconds", lines, log_x=True)
    path.write_text(svg_of(drawn, standalone=True))


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-cold", action="store_true", help="leave out the processes")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--plot", type=Path, help="an SVG file to write, of the cost by batch")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    pipe = UnCLIPPipeline.from_pretrained(dtype=dtype, device=args.device)
    pipe.set_progress_bar_config(disable=True)
    if args.compile:
        pipe.compile_networks()
    started = {} if args.no_cold else cold(args.runs, args.dtype)
    print(json.dumps({"cold": started}), file=sys.stderr, flush=True)
    by_stage, seconds = shares(pipe), warm(pipe, args.batch, args.runs)
    kinds = {stage: torch.float32 if stage == "prior" else dtype for stage in STAGES}
    rates = {stage: matrix_rate(kind, args.device) for stage, kind in kinds.items()}
    for stage, share in by_stage.items():
        share["floor_seconds"] = share["gflop"] * GIGA / rates[stage]
        share["share_of_floor"] = share["floor_seconds"] / share["seconds"]
    floor = sum(share["floor_seconds"] for share in by_stage.values())
    report = {
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "cold": started,
        "warm_seconds": {size: round(value, 2) for size, value in seconds.items()},
        "gflops_a_second": {k: round(v / GIGA) for k, v in rates.items()},
        "floor_seconds_of_one": round(floor, 3),
        "stages": {
            stage: {key: round(value, 3) for key, value in share.items()}
            for stage, share in by_stage.items()
        },
    }
    print(json.dumps(report, indent=2))
    if args.plot:
        plot(seconds, floor, args.plot)


if __name__ == "__main__":
    main()
