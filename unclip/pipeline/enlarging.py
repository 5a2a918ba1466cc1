"""Which upsamplers make a picture larger, and from what: the passes of upscale().

The last upsampler serves for sizes beyond its own as well, tile by tile: it multiplies by four
whatever it is given. Where a picture is smaller than a pass begins with, an earlier one makes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unclip.diffusion.timesteps import Steps
from unclip.models.upsampler import Upsampler
from unclip.pipeline.arguments import STAGES, check_steps, short
from unclip.pipeline.edits import is_whole

BEYOND = (2, 4)  # times the last upsampler's side


@dataclass(frozen=True)
class Pass:
    """One run of an upsampler: to a side, from a quarter of it."""

    stage: str
    side: int
    steps: Steps
    tile_size: int
    tile_overlap: int


def check_passes(
    components: Mapping[str, Any],
    steps: Mapping[str, Any],
    size: int,
    side: int,
    tile_size: int | None,
    tile_overlap: int | None,
) -> list[Pass]:
    """The passes from pictures of a side to a size, with steps and tiles that suit them.

    steps, by stage, and tiles are those of upscale().
    """
    passes = []
    for stage, to in plan_passes(size, side, upsampler_sides(components)):
        name = f"{stage}_num_inference_steps"
        check_steps(name, steps[stage], components, stage)
        tiles = check_tiles(components[stage], tile_size, tile_overlap)
        passes.append(Pass(stage, to, steps[stage], *tiles))
    return passes


def upsampler_sides(components: Mapping[str, Any]) -> dict[str, int]:
    """The upsamplers of a model, smallest first, with the sides of their pictures."""
    present = [stage for stage in STAGES[2:] if components[stage] is not None]
    if not present:
        raise ValueError("size: this model has no upsampler")
    return {stage: components[stage].config.size for stage in present}


def check_larger(size: Any, side: int, components: Mapping[str, Any]) -> int:
    """A size that the upsamplers reach, above the side that a picture has; the last's own."""
    sides = upsampler_sides(components).values()
    last = max(sides)
    reached = {*sides, *(each // 2 for each in sides)}
    reached |= {times * last for times in BEYOND}
    size = last if size is None else size
    larger = [each for each in sorted(reached) if each > side]
    if not is_whole(size) or size not in larger:
        listing = ", ".join(map(str, larger)) or "none"
        raise ValueError(
            f"size: from {side} pixels a side this model makes {listing}, not {short(size)}"
        )
    return size


def plan_passes(size: int, side: int, sides: Mapping[str, int]) -> list[tuple[str, int]]:
    """The stages, each with the side it goes to, from a picture's side to a size.

    A half (512) is reached by the whole (1024), which is then reduced.
    """
    passes: list[tuple[str, int]] = []
    smallest = min(sides.values()) // 4
    while not passes or side < size and size > smallest:
        fitting = [stage for stage in sides if sides[stage] >= size]
        stage, to = (fitting[0], sides[fitting[0]]) if fitting else (list(sides)[-1], size)
        passes.insert(0, (stage, to))
        size = to // 4
    return passes


def first_needed(passes: Sequence[Pass], side: int) -> int:
    """The first of the passes that a picture of a side needs: the last that it is large enough for.

    The passes of a larger picture are the last ones of a smaller one's.
    """
    enough = [number for number, each in enumerate(passes) if each.side // 4 <= side]
    return max(enough, default=0)


def check_tiles(network: Upsampler, tile_size: Any, tile_overlap: Any) -> tuple[int, int]:
    """Tile size and overlap in pixels; the network's own size and a quarter of it by default."""
    tile_size = network.config.size if tile_size is None else tile_size
    multiple = math.lcm(4, network.multiple)
    if not is_whole(tile_size) or tile_size < 4 * multiple or tile_size % multiple:
        raise ValueError(
            f"tile_size: give a multiple of {multiple} from {4 * multiple}, not {short(tile_size)}"
        )
    most = tile_size - multiple
    tile_overlap = tile_size // 4 if tile_overlap is None else tile_overlap
    if not is_whole(tile_overlap) or not 0 <= tile_overlap <= most:
        raise ValueError(
            f"tile_overlap: give pixels from 0 to {most}, less than a tile of {tile_size}, "
            f"not {short(tile_overlap)}"
        )
    return tile_size, tile_overlap
