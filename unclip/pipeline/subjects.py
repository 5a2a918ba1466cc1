"""What an operation on latents is given: captions and pictures, and their weights, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from unclip.pipeline import arguments, decoding

Subject = str | Image.Image | Tensor  # a caption or a picture

MAX_WEIGHT = 100.0


def check_subjects(argument: str, value: Any, minimum: int = 1) -> list[str | Tensor]:
    """Captions as they are, and pictures as [1, 3, S, S] in [-1, 1]."""
    if not isinstance(value, list | tuple) or len(value) < minimum:
        raise ValueError(
            f"{argument}: give a list of {minimum} or more captions and pictures, not "
            f"{arguments.short(value)}"
        )
    checked = []
    for subject in value:
        if isinstance(subject, str):
            checked.append(decoding.check_text(argument, subject))
        else:
            pictures = arguments.check_pictures(subject)
            if len(pictures) != 1:
                raise ValueError(f"{argument}: give each picture by itself, not {len(pictures)}")
            checked += pictures
    return checked


def check_weights(value: Any, num_subjects: int) -> list[float]:
    """A weight for each subject."""
    if value is None:
        return [1.0] * num_subjects
    if not isinstance(value, list | tuple) or len(value) != num_subjects:
        raise ValueError(
            f"weights: give {num_subjects}, one for each subject, not {arguments.short(value)}"
        )
    weights = [
        decoding.check_number("weights", weight, -MAX_WEIGHT, MAX_WEIGHT) for weight in value
    ]
    if not any(weights):
        raise ValueError("weights: one at least must not be 0")
    return weights


def any_picture(subjects: Sequence[str | Tensor]) -> bool:
    """Whether one of the subjects is a picture."""
    return any(isinstance(subject, Tensor) for subject in subjects)
