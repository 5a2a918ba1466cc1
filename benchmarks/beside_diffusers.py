"""A Karlo of smaller widths, drawn by our pipeline and by diffusers' UnCLIPPipeline, in turns.

    python benchmarks/beside_diffusers.py                   # a quarter of Karlo's widths
    python benchmarks/beside_diffusers.py --compile         # our layers compiled as well
    python benchmarks/beside_diffusers.py --divisor 16 --steps 2 2 2 --batch-size 1   # a moment

Both draw the same pictures to rounding: the same random weights, captions, guidance, schedulers,
steps and noise. Printed are the seconds of a step of each network, the ratios, and the largest
difference of the pictures; with --device cuda and --dtype bfloat16 as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import diffusers.schedulers.scheduling_unclip as scheduling
import torch
from diffusers import PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip import UnCLIPPipeline as Theirs
from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from unclip import UnCLIPPipeline
from unclip.diffusion.noise import child_generators, randn_per_sample

KARLO = (320, 640, 960, 1280)
CAPTIONS = ("a red apple", "two dogs in the snow", "a castle", "an old man who reads a newspaper")
THEIRS = {
    "prior": ("prior",),
    "decoder": ("decoder",),
    "upsampler_256": ("super_res_first", "super_res_last"),
}
RESNET = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
ATTENDING = ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D")


def make_networks(divisor: int) -> dict[str, nn.Module]:
    """Karlo's networks as diffusers has them, random, at widths divided by a number."""
    channels, dim = tuple(width // divisor for width in KARLO), 768 // divisor
    unet = {"layers_per_block": 3, "block_out_channels": channels}
    unet["norm_num_groups"] = 32 // next(n for n in (1, 2, 4, 8) if channels[0] % (32 // n) == 0)
    plain = {**unet, "down_block_types": RESNET[:1] * 4, "up_block_types": RESNET[1:] * 4}
    plain |= {"in_channels": 6, "out_channels": 3, "add_attention": False}
    context = 1536 // divisor
    return {
        "prior": PriorTransformer(
            num_attention_heads=32 // divisor, num_layers=20, embedding_dim=dim
        ),
        "decoder": UNet2DConditionModel(
            **unet,
            sample_size=64,
            out_channels=6,
            in_channels=3,
            down_block_types=RESNET[:1] + ATTENDING[:1] * 3,
            up_block_types=ATTENDING[1:] * 3 + RESNET[1:],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            cross_attention_dim=context,
            class_embed_type="identity",
            attention_head_dim=64 // divisor,
            resnet_time_scale_shift="scale_shift",
        ),
        "text_proj": UnCLIPTextProjModel(
            clip_embeddings_dim=dim,
            time_embed_dim=4 * channels[0],
            cross_attention_dim=context,
        ),
        "super_res_first": UNet2DModel(**plain, sample_size=256),
        "super_res_last": UNet2DModel(**plain, sample_size=None),
    }


def make_text(dim: int) -> dict:
    """A random text tower of the prior's width, and a tokenizer that knows words by their bytes."""
    words = [chr(33 + n) for n in range(94)]
    words += [f"{word}</w>" for word in words] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=12,
        num_attention_heads=dim // 16,
        projection_dim=dim,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    return {
        "text_encoder": CLIPTextModelWithProjection(config).eval(),
        "tokenizer": CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
    }


def make_theirs(divisor: int) -> Theirs:
    """diffusers' pipeline around networks whose outputs are small enough to compare."""
    torch.manual_seed(0)
    networks = make_networks(divisor)
    for name in ("decoder", "super_res_first", "super_res_last"):
        # Rounding of eps grows by 20,000 at t = 999: without this, clipping would hide everything.
        networks[name].conv_out.weight.data.mul_(0.002)
    nn.init.ones_(networks["prior"].clip_std)
    for network in networks.values():
        network.eval()
    pipe = Theirs(
        **networks,
        **make_text(768 // divisor),
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_ours(theirs: Theirs) -> UnCLIPPipeline:
    """Our pipeline, read from the folder that theirs writes."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        path = Path(folder) / "model_index.json"  # Karlo's repositories name the library "unclip"
        index = json.loads(path.read_text()) | {"text_proj": ["unclip", "UnCLIPTextProjModel"]}
        path.write_text(json.dumps(index))
        pipe = UnCLIPPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def timed(network: nn.Module, seconds: list[float]) -> None:
    """Have every forward of a network note how long it took."""
    forward = network.forward

    def timed_forward(*args, **kwargs):
        synchronize()
        start = time.perf_counter()
        output = forward(*args, **kwargs)
        synchronize()
        seconds.append(time.perf_counter() - start)
        return output

    network.forward = timed_forward


def synchronize() -> None:
    """Wait for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Side:
    """One of the two pipelines, with a clock on each of its networks."""

    def __init__(self, draw, networks: dict[str, list[nn.Module]]):
        self.draw = draw
        self.clocks: dict[str, list[float]] = {stage: [] for stage in networks}
        self.totals: list[float] = []
        for stage, parts in networks.items():
            for part in parts:
                timed(part, self.clocks[stage])

    def run(self):
        """Draw once; every run sees the same noise."""
        torch.manual_seed(5)
        synchronize()
        start = time.perf_counter()
        images = self.draw()
        synchronize()
        self.totals.append(time.perf_counter() - start)
        return torch.as_tensor(images).float()

    def summary(self, skip: int) -> dict[str, float]:
        """Median seconds of a step of each network, and of the whole, after some runs."""
        found = {"whole": statistics.median(self.totals[skip:])}
        for stage, seconds in self.clocks.items():
            per_run = len(seconds) // len(self.totals)
            found[stage] = statistics.median(seconds[skip * per_run :])
        return found


def make_sides(args: argparse.Namespace) -> dict[str, Side]:
    """Both pipelines, ready to draw the captions."""
    theirs = make_theirs(args.divisor)
    captions = [CAPTIONS[n % len(CAPTIONS)] for n in range(args.batch_size)]
    seeds, steps = list(range(args.batch_size)), args.steps
    pipes = {"ours": make_ours(theirs)}
    if args.compile:
        pipes["compiled"] = make_ours(theirs)
        pipes["compiled"].compile_networks()
    dtype = getattr(torch, args.dtype)
    theirs.to(args.device, dtype)

    def noise(stage: str, *shape: int):
        return randn_per_sample(shape, child_generators(seeds, stage)).to(args.device, dtype)

    def draw_theirs():
        return theirs(
            captions,
            **dict(zip((f"{n}_num_inference_steps" for n in ORDER), steps, strict=True)),
            prior_latents=noise("prior", 768 // args.divisor),
            decoder_latents=noise("decoder", 3, 64, 64),
            super_res_latents=noise("upsampler_256", 3, 256, 256),
            output_type="np",
        ).images

    def drawer(pipe: UnCLIPPipeline):
        return lambda: (
            pipe(
                captions,
                prior_num_inference_steps=steps[0],
                decoder_num_inference_steps=steps[1],
                upsampler_256_num_inference_steps=steps[2],
                num_prior_candidates=1,
                seeds=seeds,
                output_type="np",
            ).images
        )

    sides = {
        "theirs": Side(draw_theirs, {k: [getattr(theirs, n) for n in v] for k, v in THEIRS.items()})
    }
    for name, pipe in pipes.items():
        pipe.to(args.device, dtype)
        sides[name] = Side(drawer(pipe), {stage: [getattr(pipe, stage)] for stage in THEIRS})
    return sides


ORDER = ("prior", "decoder", "super_res")


def main() -> None:
    """Print times, ratios and differences as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--divisor", type=int, default=4, help="of Karlo's widths; 1 is Karlo")
    parser.add_argument("--steps", type=int, nargs=3, default=[25, 25, 7], help="as Karlo's")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="runs before, which do not count")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    scheduling.randn_tensor = lambda shape, dtype=None, **_: torch.randn(shape).to(
        args.device, dtype
    )
    sides, pictures = make_sides(args), defaultdict(list)
    for _ in range(args.warm_up + args.runs):
        for name, side in sides.items():
            pictures[name].append(side.run())
    seconds = {name: side.summary(args.warm_up) for name, side in sides.items()}
    report = {
        **{key: getattr(args, key) for key in ("divisor", "steps", "batch_size", "dtype")},
        "first_call_seconds": {name: round(side.totals[0], 1) for name, side in sides.items()},
        "seconds": {n: {k: round(v, 4) for k, v in s.items()} for n, s in seconds.items()},
        "ratio": {
            name: {key: round(seconds["theirs"][key] / value, 2) for key, value in found.items()}
            for name, found in seconds.items()
            if name != "theirs"
        },
        "largest_difference": {
            name: float((drawn[0] - pictures["theirs"][0]).abs().max())
            for name, drawn in pictures.items()
            if name != "theirs"
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
