"""What batches are worth to unclip-serve: by stage, and in pictures a second for many clients.

    python benchmarks/serving.py stages
    python benchmarks/serving.py clients

"stages" times each network of the embedded model for batches of pictures, per picture: the figures
that the engine's ROWS_ON_CPU follow. "clients" runs the server twice, drawing one picture at a time
and up to eight, and has eight clients ask each for pictures as fast as they are answered.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

CAPTIONS = ("a red apple", "a rocket", "a smiling face with sunglasses", "a fish", "a yellow star")
LARGEST = {"prior": 16, "decoder": 16, "upsampler_256": 8, "upsampler_1024": 4}
PART = 5  # of the decoder's steps, which take equally long


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("stages", "clients"))
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    args = parser.parse_args()
    if args.what == "stages":
        time_stages(args.runs)
    else:
        time_clients(args.clients, args.requests, args.sizes)


def time_stages(num_runs: int) -> None:
    """Print seconds a picture of each stage, whole, by the pictures in a batch."""
    import torch

    from unclip import UnCLIPPipeline

    pipe = UnCLIPPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    print(f"{torch.get_num_threads()} threads; seconds a picture, median of {num_runs}")
    print("pictures  " + "  ".join(f"{stage:>14}" for stage in LARGEST))
    for count in (1, 2, 4, 8, 16):
        row = seconds_a_picture(pipe, count, num_runs)
        print(f"{count:8}  " + "  ".join(row.get(stage, " " * 14) for stage in LARGEST), flush=True)


def seconds_a_picture(pipe, count: int, num_runs: int) -> dict[str, str]:
    """The time of each stage for a batch, where so large a one is tried."""
    import torch

    text, seeds = pipe.encode(["a red apple"]).expand(count), list(range(count))
    z_img = pipe.sample_prior(text, seeds, steps=1)
    small = {side: torch.rand(count, 3, side, side) * 2 - 1 for side in (64, 256)}
    share = pipe.config.default_steps["decoder"] / PART
    work = {
        "prior": lambda: pipe.sample_prior(text, seeds),
        "decoder": lambda: pipe.sample_decoder(z_img, text, seeds, steps=PART),
        "upsampler_256": lambda: pipe.upsample(small[64], seeds, "upsampler_256"),
        "upsampler_1024": lambda: pipe.upsample(small[256], seeds, "upsampler_1024"),
    }
    found = {}
    for stage, run in work.items():
        if count <= LARGEST[stage]:
            seconds = statistics.median(timed(run) for _ in range(num_runs))
            seconds *= share if stage == "decoder" else 1
            found[stage] = f"{seconds / count:14.3f}"
    return found


def timed(run) -> float:
    """Seconds that a function takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_clients(num_clients: int, num_requests: int, sizes: list[int]) -> None:
    """Print pictures a second with and without batches, and how long clients wait."""
    print("   size   one at a time    up to eight   ratio   seconds to an answer, median")
    for size in sizes:
        alone = serve_and_ask(1, num_clients, num_requests, size)
        batched = serve_and_ask(8, num_clients, num_requests, size)
        (a, wait_a), (b, wait_b) = alone, batched
        waits = f"{wait_a:.1f} and {wait_b:.1f}"
        print(f"{size:7}{a:14.3f}/s{b:13.3f}/s{b / a:8.2f}   {waits}", flush=True)


def serve_and_ask(running: int, clients: int, requests: int, size: int) -> tuple[float, float]:
    """Pictures a second, and the median of the seconds to an answer."""
    import httpx2 as httpx

    script = str(Path(sys.executable).parent / "unclip-serve")
    words = [script, "--port", "0", "--running", str(running)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        url = re.search(r"http://\S+", server.stdout.readline())[0] + "/v1/images/generations"

        def ask(number: int) -> list[float]:
            waits = []
            with httpx.Client(timeout=600) as client:
                for request in range(requests):
                    prompt = CAPTIONS[(number + request) % len(CAPTIONS)]
                    asked = {"prompt": prompt, "size": f"{size}x{size}", "seed": 100 * number}
                    waits.append(timed(partial(client.post, url, json=asked)))
            return waits

        try:
            httpx.post(url, json={"prompt": "to warm up"}, timeout=600).raise_for_status()
            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                waits = [wait for each in pool.map(ask, range(clients)) for wait in each]
            seconds = time.perf_counter() - start
        finally:
            server.terminate()
    return len(waits) / seconds, statistics.median(waits)


if __name__ == "__main__":
    main()
