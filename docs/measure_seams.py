"""Measure whether the borders of tiles show in pictures that upscale() joins from them.

    python docs/measure_seams.py --size 2048
    python docs/measure_seams.py --size 1024 --tile 256 --captions "a red apple"

Each caption is drawn at 256 pixels and upscaled three ways with the same seed: as a whole, by tiles
that overlap as they do by default, and by tiles that only touch. Of the difference that tiles make
to the whole, the mean step between neighbouring pixels across borders is divided by that at all
other borders of the network's cells: 1 is no seam. Beside it stands the same of the pictures
themselves and, at the same places, of those drawn as a whole, which have steps there by chance.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from unclip import UnCLIPPipeline
from unclip.diffusion.tiles import tile_starts
from unclip.pipeline.enlarging import check_tiles

CAPTIONS = ("a red apple", "a dog face", "a rocket", "a sunflower")


def step_ratio(x: Tensor, starts: list[int], tile_size: int, cell: int) -> float:
    """Mean step of neighbours in [B, 3, S, S] across the borders of tiles, over other cells'."""
    borders = {*starts[1:], *(start + tile_size for start in starts[:-1])}
    steps = torch.stack([x, x.mT]).diff(dim=-1).abs().mean(dim=(0, 1, 2, 3))  # [S - 1]
    at_cells = torch.zeros(len(steps), dtype=torch.bool)
    at_cells[cell - 1 :: cell] = True
    seams = torch.zeros_like(at_cells)
    seams[[border - 1 for border in borders]] = True
    return (steps[seams].mean() / steps[at_cells & ~seams].mean()).item()


def main() -> None:
    """Print the ratios for tiles that overlap and for tiles that touch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", nargs="+", default=list(CAPTIONS))
    parser.add_argument("--model", help="folder of a model; the embedded one unless given")
    parser.add_argument("--size", type=int, default=2048, help="pixels a side")
    parser.add_argument("--tile", type=int, help="pixels of a tile; the model's own unless given")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    pipe = UnCLIPPipeline.from_pretrained(args.model)
    network = pipe.upsampler_1024
    cell = network.config.stem
    small = [pipe(caption, size=256, seeds=args.seed).images[0] for caption in args.captions]

    def upscaled(tile_size: int, overlap: int | None) -> Tensor:
        tiles = {"tile_size": tile_size, "tile_overlap": overlap, "output_type": "pt"}
        drawn = [pipe.upscale(one, args.size, seeds=args.seed, **tiles).images for one in small]
        return torch.cat(drawn)

    whole = upscaled(args.size, 0)
    tile_size, default = check_tiles(network, args.tile, None)
    for overlap in (default, 0):
        x = upscaled(tile_size, overlap)
        starts = tile_starts(args.size, tile_size, overlap, network.multiple)
        difference, picture, none = (
            step_ratio(each, starts, tile_size, cell) for each in (x - whole, x, whole)
        )
        print(
            f"{args.size} pixels, {len(starts)} x {len(starts)} tiles of {tile_size}, overlap "
            f"{overlap}: difference {difference:.2f}, picture {picture:.2f} (whole {none:.2f})"
        )


if __name__ == "__main__":
    main()
