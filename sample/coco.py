"""MS-COCO as text-to-image models are measured on it: the COCO-30k protocol.

30,000 captions are drawn at random from those of the validation set (2014), without repetition; a
picture of 256 x 256 is drawn of each; they are compared with the whole validation set, of which
the central square is kept rather than squeezed (GLIDE, arXiv 2112.10741, appendix A.2; unCLIP,
arXiv 2204.06125, table 2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unclip_sample.request import RequestError

NUM_CAPTIONS = 30_000
SIZE = 256
MAX_BYTES = 512 << 20


def read_captions(path: Path) -> list[str]:
    """The captions of captions_val2014.json (or of another year), in the order of their numbers.

    Line breaks and repeated blanks within a caption become single blanks.

    Raises:
        RequestError: when it cannot be read, or is no such file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"--annotations: {path} is larger than {MAX_BYTES >> 20} MiB")
        rows = json.loads(path.read_text("utf-8"))["annotations"]
        captions = {int(row["id"]): " ".join(row["caption"].split()) for row in rows}
    except OSError as error:
        raise RequestError(f"--annotations: cannot read {path} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RequestError(f"--annotations: {path} is no captions file of MS-COCO") from None
    return [captions[number] for number in sorted(captions) if captions[number]]


def choose_captions(
    captions: Sequence[str], num_captions: int = NUM_CAPTIONS, seed: int = 0
) -> list[str]:
    """Captions drawn at random without repetition; the same seed draws the same ones.

    Raises:
        RequestError: when there are not so many.
    """
    import numpy as np

    if num_captions > len(captions):
        raise RequestError(
            f"--num: {num_captions} captions are asked for, but the file has {len(captions)}"
        )
    rows = np.random.default_rng(seed).permutation(len(captions))[:num_captions]
    return [captions[row] for row in rows]
