"""Sampling beside dalle2-pytorch: captions to 64 pixels to 256, by prior, decoder and upsampler.

    python benchmarks/dalle2_sampling.py --peer-python peer/bin/python

The peer's environment is that of dalle2_training.py. Both sides have random weights, equal
parameters in every network, equal steps (DDIM), two candidates of the prior, guidance of the prior
and of the decoder and none of the upsampler. How many rows each network was given is counted on
both sides and must be equal, so that neither leaves out work.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from dalle2_sizes import CONTEXT, PEER, SIZES
from interleaved import Worker, compare, take_turns, timed
from transformers import CLIPConfig, CLIPModel

from unclip import CLIP, Decoder, Prior, UnCLIPPipeline, Upsampler
from unclip_train.clip import train_tokenizer

CAPTIONS = (
    "a red apple on a wooden table beside a glass of water",
    "a dog that runs along the beach at sunset",
    "two people on bicycles in front of a yellow house",
    "an astronaut rides a white horse in the style of an old photograph",
)


def make_clip(dim: int, depth: int) -> CLIP:
    """A CLIP whose text tower has the size of the peer's."""
    tokenizer = train_tokenizer(list(CAPTIONS), 600)
    text = {
        "vocab_size": 49408,
        "hidden_size": dim,
        "intermediate_size": 4 * dim,
        "num_hidden_layers": depth,
        "num_attention_heads": dim // 64,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"hidden_size": dim, "num_hidden_layers": 1, "num_attention_heads": dim // 64}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim))
    return CLIP(model.eval(), tokenizer)


def make_pipeline(sizes: dict, decoder: dict, upsampler: dict, precision: str) -> UnCLIPPipeline:
    """Our pipeline with random weights, sampled by DDIM."""
    torch.manual_seed(0)
    dim, dtype = sizes["dim"], torch.bfloat16 if precision == "bf16" else torch.float32
    side = sizes["decoder"]["size"]
    networks = {
        "prior": Prior(embedding_dim=dim, context=CONTEXT, **sizes["prior"]),
        "decoder": Decoder(embedding_dim=dim, context=CONTEXT, **sizes["decoder"], **decoder),
        "upsampler_256": Upsampler(size=4 * side, scale_shift=True, **upsampler),
    }
    for stage, network in networks.items():
        network.eval().to(memory_format=torch.channels_last)
        if stage != "prior" and dtype != torch.float32:  # the prior runs in full precision
            network.to(dtype)
    clip = make_clip(dim, sizes["peer"]["text_depth"])
    pipeline = UnCLIPPipeline.from_stages(
        clip, samplers=dict.fromkeys(networks, "ddim"), **networks
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def count_rows(pipeline: UnCLIPPipeline) -> dict[str, int]:
    """Rows that the networks are given from now on, by the peer's names of them."""
    rows = dict.fromkeys(("prior", "decoder", "upsampler"), 0)
    for name in rows:
        network = getattr(pipeline, "upsampler_256" if name == "upsampler" else name)

        def count(module, args, name=name) -> None:
            rows[name] += len(args[0])

        network.register_forward_pre_hook(count)
    return rows


def draw_with(pipeline: UnCLIPPipeline, captions: list[str], steps: dict[str, int]):
    """A call that draws a picture of every caption."""
    return lambda: pipeline(
        captions,
        guidance_scale=2.0,
        prior_guidance_scale=2.0,
        prior_num_inference_steps=steps["prior"],
        decoder_num_inference_steps=steps["decoder"],
        upsampler_256_num_inference_steps=steps["upsampler"],
        num_prior_candidates=2,
        seeds=list(range(len(captions))),
        output_type="pt",
    )


def count_parameters(pipeline: UnCLIPPipeline) -> int:
    """Those of prior, decoder and upsampler."""
    networks = (pipeline.prior, pipeline.decoder, pipeline.upsampler_256)
    return sum(p.numel() for network in networks for p in network.parameters())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="of the peer's environment; ours alone without it")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--batch-size", type=int, default=4, help="captions")
    parser.add_argument("--steps", type=int, nargs=3, default=(25, 25, 7), help="of each network")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print parameters, rows, seconds a call and how many times as fast ours is, as JSON."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    sizes = SIZES[args.size]
    steps = dict(zip(("prior", "decoder", "upsampler"), args.steps, strict=True))
    captions = [CAPTIONS[number % len(CAPTIONS)] for number in range(args.batch_size)]
    sides, parameters, rows = {}, {}, {}
    for name, (decoder, upsampler) in sizes["ours"].items():
        pipeline = make_pipeline(sizes, decoder, upsampler, args.precision)
        sides[name] = timed(draw_with(pipeline, captions, steps))
        parameters[name], rows[name] = count_parameters(pipeline), count_rows(pipeline)
    if args.peer_python:
        facts = {"work": "drawing", "dim": sizes["dim"], "context": CONTEXT, "steps": steps}
        facts |= {"captions": captions, "precision": args.precision, "threads": args.threads}
        script = Path(__file__).with_name("dalle2_peer.py")
        sides[PEER] = Worker(args.peer_python, script, facts | sizes["peer"])
        parameters[PEER] = sides[PEER].facts["parameters"]
    found = compare(take_turns(sides, args.rounds, 1), PEER)
    if args.peer_python:
        rows[PEER] = sides[PEER].answer["rows"]
    if any(counts != rows[name] for counts in rows.values()):
        raise RuntimeError(f"the sides did not do the same work: {rows}")
    print(json.dumps(vars(args) | {"parameters": parameters, "rows": rows} | found, indent=2))


if __name__ == "__main__":
    main()
