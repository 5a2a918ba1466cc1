"""Curves and pictures beside log.jsonl: tensorboard, or any other tracker that accelerate knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from unclip_train.config import ConfigError

USUAL = "tensorboard"  # done without where it is not installed; any other must be there
PROJECT = "unclip"
WITHOUT_PICTURES = {"mlflow", "dvclive", "comet_ml", "trackio"}


def named_trackers(names: str | None) -> list[str]:
    """The trackers of run.tracker that are there.

    Raises:
        ConfigError: naming one that accelerate does not know, or that is not installed.
    """
    asked = [name.strip() for name in (names or "").split(",") if name.strip()]
    known = sorted(LOGGER_TYPE_TO_CLASS)
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f" (known: {', '.join(known)})"
            raise ConfigError(f"run.tracker: {name!r} is unknown{hint}")
        if name not in available and name != USUAL:
            raise ConfigError(f"run.tracker: {name} is not installed; pip install {name}")
    return [name for name in asked if name in available]


class Trackers:
    """All trackers of a run, as one; on its main process.

    Args:
        names: of run.tracker.
        folder: of the run, which names it; tensorboard's files lie in folder/tensorboard.
    """

    def __init__(self, names: Iterable[str], folder: Path):
        self.trackers: list[GeneralTracker] = []
        for name in names:
            tracker_class = LOGGER_TYPE_TO_CLASS[name]
            if tracker_class.requires_logging_directory:
                tracker = tracker_class(name, str(folder))
            else:
                settings = {"name": "/".join(folder.parts[-2:])} if name == "wandb" else {}
                tracker = tracker_class(PROJECT, **settings)
            tracker.start()
            self.trackers.append(tracker)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Points on the curves."""
        for tracker in self.trackers:
            tracker.log(values, step=step)

    def show(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture, where a tracker takes any."""
        for tracker in self.trackers:
            if tracker.name == USUAL:
                pixels = np.asarray(picture)[None]
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")
            elif tracker.name not in WITHOUT_PICTURES:
                tracker.log_images({name: [picture]}, step=step)

    def close(self) -> None:
        """Let every tracker finish what it writes."""
        for tracker in self.trackers:
            tracker.finish()
