"""A CLIP that looks at files: found, loaded, and asked for embeddings of texts and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unclip_sample.request import RequestError
from unclip_sample.running import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from unclip import CLIP

BATCH_SIZE = 64  # texts at once


def find_clip(name: str | None, option: str = "--clip") -> Path:
    """The folder of a CLIP: that of a model's folder, the folder itself, the embedded one for None.

    Raises:
        RequestError: when it holds none; the message begins with the option.
    """
    from unclip.pipeline.folder import INDEX_NAME, embedded_folder

    try:
        folder = embedded_folder() if name is None else Path(name)
    except FileNotFoundError as error:
        raise RequestError(f"{option}: {error}") from None
    if (folder / INDEX_NAME).is_file():
        folder = folder / "clip"
    if not (folder / "config.json").is_file():
        raise RequestError(f"{option}: no CLIP in {folder}: it has no config.json")
    return folder


def load_clip(folder: Path, device: Any = "cpu", option: str = "--clip") -> CLIP:
    """The CLIP of a folder, in float32 on a device; its weights must be safetensors.

    Raises:
        RequestError: when the folder holds no CLIP that can be read.
    """
    quiet_libraries()
    from transformers.utils.logging import disable_progress_bar

    from unclip import CLIP

    disable_progress_bar()
    try:
        clip = CLIP.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())
        raise RequestError(f"{option}: cannot read the CLIP in {folder} ({line})") from None
    return clip.float().to(device).eval()


def embed_texts(clip: CLIP, texts: Sequence[str]) -> Tensor:
    """Captions to z_txt [M, D], float32 on the CPU."""
    import torch

    with torch.no_grad():
        parts = [
            clip.encode_text(list(texts[start : start + BATCH_SIZE])).z_txt.cpu()
            for start in range(0, len(texts), BATCH_SIZE)
        ]
    return torch.cat(parts)


def embed_pictures(clip: CLIP, pictures: Iterable[Any]) -> Tensor:
    """Pillow images to z_img [N, D], float32 on the CPU; CLIP sees the middle square of each.

    They are encoded one by one, so that an embedding does not depend on what else is encoded.
    """
    import torch

    from unclip.pipeline.arguments import check_pictures
    from unclip.pipeline.stages import encode_images

    with torch.no_grad():
        return encode_images(clip, (check_pictures(picture)[0] for picture in pictures)).cpu()


def logit_scale(clip: CLIP) -> float:
    """What CLIP multiplies a cosine by before its softmax."""
    return float(clip.model.logit_scale.detach().exp())
