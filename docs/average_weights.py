"""The mean of two networks of the same sizes, one of which was trained on from the other.

    python docs/average_weights.py further/decoder before/decoder --share 0.6 --output mean/decoder

Between what a network knew and what it learned further lie weights that know much of both (WiSE-FT,
Wortsman et al. 2021, arXiv 2109.01903): w = s w_further + (1 - s) w_before. A share of 1 / s takes
a mean of share s apart again: of it and w_before it makes w_further, which can be trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from unclip.pipeline.loading import read_tensors

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
REMARKS = ("_diffusers_version", "_name_or_path")  # that say nothing of a network


def main() -> None:
    """Write the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("further", type=Path, help="folder of the network that was trained on")
    parser.add_argument("before", type=Path, help="folder of the one that it began from")
    parser.add_argument(
        "--share", type=float, required=True, help="of the first; above 1 beyond it"
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    args = parser.parse_args()
    if not 0 <= args.share < math.inf:
        parser.error(f"--share: give a number of 0 or more, not {args.share:g}")
    if args.output.exists():
        parser.error(f"--output: {args.output} exists; name another")
    try:
        mean = mean_of(args.further, args.before, args.share)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    args.output.mkdir(parents=True)
    shutil.copy(args.further / CONFIG, args.output / CONFIG)
    save_file(mean, args.output / WEIGHTS, metadata={"format": "pt"})


def mean_of(further: Path, before: Path, share: float) -> dict[str, Tensor]:
    """s w_further + (1 - s) w_before of the weights of two folders, in the dtypes of the first.

    Raises:
        ValueError: when the networks are not of the same sizes.
    """
    if settings_of(further) != settings_of(before):
        raise ValueError(f"{before}: its config.json is of another network than that of {further}")
    ours, theirs = weights_of(further), weights_of(before)
    return {
        name: (share * weight.float() + (1 - share) * theirs[name].float()).to(weight.dtype)
        for name, weight in ours.items()
    }


def settings_of(folder: Path) -> dict:
    """What a network was made with."""
    settings = json.loads((folder / CONFIG).read_text())
    return {name: value for name, value in settings.items() if name not in REMARKS}


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder, of one file or several shards."""
    paths = sorted(folder.glob("*.safetensors"))
    return {name: tensor for path in paths for name, tensor in read_tensors(path)}


if __name__ == "__main__":
    main()
