"""Training beside dalle2-pytorch: distinct image-caption pairs a second, prior or decoder.

    python benchmarks/dalle2_training.py prior --peer-python peer/bin/python
    python benchmarks/dalle2_training.py decoder --peer-python peer/bin/python --precision bf16

The peer lives in an environment of its own (PyPI's default build of torch runs on a CPU):

    python3 -m venv peer
    peer/bin/pip install torch==2.13.0 torchvision==0.28.0 'setuptools<81'
    peer/bin/pip install dalle2-pytorch==1.15.6 torch==2.13.0 torchvision==0.28.0 'setuptools<81'

Both sides make whole updates (loss, gradients, clipping, AdamW, averages) by their own trainers,
with equal parameters, batch, resolution, precision and threads, from the same stored embeddings and
text states, so that no CLIP and no disk is in the figures. They work in turns. An update sees one
batch of pairs, each once: noise levels beyond the first do not count as pairs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import repeat
from pathlib import Path

import torch
from dalle2_sizes import CONTEXT, PEER, SIZES
from interleaved import Worker, compare, take_turns, timed
from torch import Tensor, nn

from unclip import Decoder, Prior
from unclip.models.clip import TextEncoding
from unclip_train.config import load_config
from unclip_train.decoder import DecoderStage
from unclip_train.engine import Engine
from unclip_train.prior import PriorStage


class StoredText(nn.Module):
    """Stands for CLIP: a caption is the number of a stored encoding, and "" that of no words."""

    def __init__(self, lengths: list[int], dim: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        rows = len(lengths) + 1  # the last is the empty caption's: it begins and ends
        z_txt = torch.randn(rows, dim, generator=generator)
        states = torch.randn(rows, CONTEXT, dim, generator=generator)
        mask = torch.arange(CONTEXT) < torch.tensor([*lengths, 2])[:, None]
        tokens = torch.zeros(rows, CONTEXT, dtype=torch.long)
        self.text = TextEncoding(nn.functional.normalize(z_txt, dim=-1), states, mask, tokens)

    def encode_text(self, captions: list[str]) -> TextEncoding:
        """The rows that the captions name."""
        last = len(self.text.z_txt) - 1
        return self.text.select(torch.tensor([int(caption or last) for caption in captions]))


def stored_batch(num: int, dim: int, size: int) -> dict[str, list | Tensor]:
    """Pictures, their embeddings and the numbers of their captions."""
    generator = torch.Generator().manual_seed(1)
    z_img = torch.randn(num, dim, generator=generator)
    return {
        "position": list(range(num)),
        "caption": [str(number) for number in range(num)],
        "z_img": nn.functional.normalize(z_img, dim=-1),
        "image": torch.randint(256, (num, 3, size, size), dtype=torch.uint8, generator=generator),
    }


def spread_lengths(num: int, shortest: int, longest: int) -> list[int]:
    """Tokens of each caption, evenly from the shortest to the longest."""
    return [shortest + (longest - shortest) * i // max(1, num - 1) for i in range(num)]


def make_engine(args: argparse.Namespace, sizes: dict, decoder: dict, folder: str) -> Engine:
    """Our engine as unclip-train makes it, around a network of the size asked for."""
    words = [
        f"output={folder}",
        f"run.batch_size={args.batch_size}",
        f"run.precision={args.precision}",
        f"run.compile={args.compile}",
    ]
    config = load_config(args.stage, f"tiny/{args.stage}", words)
    torch.manual_seed(0)
    text = StoredText(spread_lengths(args.batch_size, *args.lengths), sizes["dim"])
    shared = {"embedding_dim": sizes["dim"], "context": CONTEXT}
    if args.stage == "prior":
        config.noise_levels = args.noise_levels
        stage = PriorStage(Prior(**shared, **sizes["prior"]), text, config)
    else:
        network = Decoder(dropout=0.0, **shared, **sizes["decoder"], **decoder)
        stage = DecoderStage(network, text, config, {})
    return Engine(stage, None, config)


def peer_spec(args: argparse.Namespace, sizes: dict) -> dict:
    """What the peer is to build, see dalle2_peer.py."""
    return {
        "work": args.stage,
        "dim": sizes["dim"],
        "context": CONTEXT,
        "batch_size": args.batch_size,
        "lengths": spread_lengths(args.batch_size, *args.lengths),
        "precision": args.precision,
        "threads": args.threads,
        **sizes["peer"],
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("prior", "decoder"))
    parser.add_argument("--peer-python", help="of the peer's environment; ours alone without it")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--lengths", type=int, nargs=2, default=(8, 24), help="of captions, tokens")
    parser.add_argument("--noise-levels", type=int, default=1, help="of each caption; prior, ours")
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1, help="of a side in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print parameters, pairs a second and how many times as fast ours is, as JSON."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    sizes = SIZES[args.size]
    batch = stored_batch(args.batch_size, sizes["dim"], sizes["decoder"]["size"])
    ours = {"ours": ({}, {})} if args.stage == "prior" else sizes["ours"]
    sides, parameters = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (decoder, _) in ours.items():
            engine = make_engine(args, sizes, decoder, str(Path(folder) / name))
            sides[name] = timed(lambda engine=engine: engine.update(repeat(batch)))
            parameters[name] = sum(p.numel() for p in engine.bare_network.parameters())
        if args.peer_python:
            script = Path(__file__).with_name("dalle2_peer.py")
            sides[PEER] = Worker(args.peer_python, script, peer_spec(args, sizes))
            parameters[PEER] = sides[PEER].facts["parameters"]
        found = compare(take_turns(sides, args.rounds, args.updates), PEER)
    pairs = {name: args.batch_size / took for name, took in found["seconds"].items()}
    print(
        json.dumps(vars(args) | {"parameters": parameters, "pairs_per_s": pairs} | found, indent=2)
    )


if __name__ == "__main__":
    main()
