"""Inception's features of pictures, for FID, KID, precision and recall, and Inception Score.

The network is the one that FID's authors used (TensorFlow's Inception of 2015-12-05), as the
library torch-fidelity carries it; its weights are a file that the user names, since nothing is
fetched here. What happens to a picture, exactly:

 1. turned upright, laid over white, 8 bits a channel (unclip.pictures);
 2. its central square is kept, and scaled to `size` pixels a side by Pillow's antialiased bicubic
    filter, 8 bits again; a square of that size stays as it is;
 3. the network scales it to 299 x 299 as TensorFlow 1 does: bilinear, corners not aligned, no
    antialiasing; then (x - 128) / 128;
 4. features: the last average pooling, [2048]; probabilities: the softmax over 1008 classes of the
    logits without their bias, as the Inception Score was first computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_sample.index import Viewer
from unclip_sample.request import RequestError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

RESIZE = "central square, antialiased bicubic to {size}; TensorFlow 1 bilinear to 299"
NAME = "Inception 2015-12-05 (torch-fidelity)"
NUM_FEATURES, NUM_CLASSES = 2048, 1008

# pixels [1, 3, S, S] uint8 -> features [1, 2048] and logits [1, 1008]
Network = Callable[["Tensor"], "tuple[Tensor, Tensor]"]


def load_inception(weights: Path, device: Any = "cpu") -> Network:
    """The network with the weights of a file, such as weights-inception-2015-12-05-6726825d.pth.

    Raises:
        RequestError: when the extra is not installed, or the file holds other weights.
    """
    import torch

    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise RequestError(
            f"--inception: the library {error.name} is missing; pip install 'unclip[eval]'"
        ) from None
    except RuntimeError as error:  # torchvision and torch of different builds
        line = " ".join(str(error).split())
        raise RequestError(f"--inception: torch-fidelity does not work here ({line})") from None
    try:
        # The library itself would run what a pickle says; a file that passes this holds tensors.
        torch.load(weights, map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], str(weights)
        )
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise RequestError(f"--inception: {weights} holds no such weights ({line})") from None
    network = network.to(device).eval()
    return lambda pixels: network(pixels.to(device))


def inception_viewer(weights: Path, size: int, device: Any = "cpu") -> Viewer:
    """Inception as a viewer: features and logits of a picture side by side, [1, 2048 + 1008].

    Raises:
        RequestError: when there is no such file, or as load_inception does.
    """
    if not weights.is_file():
        raise RequestError(f"--inception: {weights} does not exist; name the file of its weights")
    network = load_inception(weights, device)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return Viewer(
        name=f"inception-{digest}-{size}",
        width=NUM_FEATURES + NUM_CLASSES,
        look=lambda picture: view(network, picture, size),
    )


def view(network: Network, picture: Image.Image, size: int) -> Tensor:
    """What the network says of a picture: features and logits, [1, D + C] float32 on the CPU."""
    import torch

    with torch.no_grad():
        return torch.cat(network(pixels_of(square(picture, size))), dim=1).float().cpu()


def features_and_probabilities(z: Tensor) -> tuple[Tensor, Tensor]:
    """What view() gave of N pictures, apart: features [N, 2048] and probabilities [N, 1008]."""
    return z[:, :NUM_FEATURES], z[:, NUM_FEATURES:].double().softmax(dim=1)


def square(picture: Image.Image, size: int) -> Image.Image:
    """The central square of a picture, scaled to `size` a side; steps 1 and 2."""
    from PIL import Image

    from unclip.pictures import to_rgb

    picture = to_rgb(picture)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side == size:
        return picture
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def pixels_of(picture: Image.Image) -> Tensor:
    """An RGB picture as [1, 3, H, W] uint8."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
