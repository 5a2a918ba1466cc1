"""The record of a picture that a call of the pipeline drew, for the file that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def record_of(
    output: Any, row: int, own: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What --from needs to draw one picture of an output again.

    own: its prompt, seed and other words. facts: of the model. Where no caption led to z_img, the
    record holds z_img itself, as float32 in hexadecimal.
    """
    record = {**own, **output.settings, **facts}
    if "prior" not in output.settings["stages"]:
        record["z_img"] = output.image_embeds[row].numpy().tobytes().hex()
    return record
