"""What training on a CPU gains from the layout of memory and from attention by plain products.

    python benchmarks/training_layout.py --batch-size 32 --rounds 10

Steps of the embedded model's decoder in bfloat16 (forward, backward, clipping, AdamW), in turns:
weights laid out in order or channels last, attention by plain products or fused.
"""

from __future__ import annotations

import argparse
import json
from unittest.mock import patch

import torch
from interleaved import Work, compare, take_turns, timed
from omegaconf import OmegaConf
from train_step import make_batch, make_step

from unclip import Decoder
from unclip.models import layers
from unclip_train.config import config_path

LAYOUTS = {"in order": torch.contiguous_format, "channels last": torch.channels_last}


def side(layout: torch.memory_format, attention: str, batch_size: int) -> Work:
    """Training steps of a decoder of its own."""
    arguments = OmegaConf.to_container(OmegaConf.load(config_path("emoji/decoder"))["network"])
    torch.manual_seed(0)
    decoder = Decoder(embedding_dim=256, context=32, size=64, text_states_dim=256, **arguments)
    decoder.train().to(memory_format=layout)
    step = make_step(decoder, make_batch(decoder, batch_size, "cpu", layout), "cpu")
    if attention == "plain":
        return timed(step)

    def step_fused() -> None:
        with patch.object(layers, "read_values", layers.read_values_fused):
            step()

    return timed(step_fused)


def main() -> None:
    """Print seconds and ratios as JSON; the peer has channels last and fused attention."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    sides = {
        f"{name}, {attention}": side(layout, attention, args.batch_size)
        for name, layout in LAYOUTS.items()
        for attention in ("plain", "fused")
    }
    seconds = take_turns(sides, args.rounds, 1)
    print(json.dumps(compare(seconds, "channels last, fused"), indent=2))


if __name__ == "__main__":
    main()
