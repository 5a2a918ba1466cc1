"""Pickled weights of others, read as data: what would run code when it is read is refused."""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("unclip")


class PickleError(ValueError):
    """A pickled file that is damaged, or that holds more than tensors, numbers and texts."""


class Inert:
    """Stands for an object beside the weights: takes what it is given and does nothing."""

    def __new__(cls, *_: Any) -> Inert:
        """Whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        """Whatever the state."""


# The version number that DALLE2-pytorch's trainer writes beside the weights.
PASSED_OVER = (
    "packaging.version.Version",
    "packaging.version._Version",
    "packaging._structures.InfinityType",
    "packaging._structures.NegativeInfinityType",
)


def read_pickle(path: Path) -> Any:
    """What torch.save wrote to a file, tensors on the CPU, after a warning.

    Only tensors, numbers, texts and containers of them are made; anything else is an error.
    """
    logger.warning(
        "%s is pickled: its weights alone are read and nothing in it is run; unclip-convert "
        "writes them as safetensors",
        path,
    )
    try:
        mapped = zipfile.is_zipfile(path)  # files of before torch 1.6 cannot be mapped
        with torch.serialization.safe_globals([(Inert, name) for name in PASSED_OVER]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise PickleError(f"{path}: holds more than weights, or is damaged ({reason})") from None
