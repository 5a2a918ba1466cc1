"""Config files of diffusers and transformers, translated: nothing in them is passed over."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unclip.pipeline.loading import REMARKS, ModelFileError, read_json, refuse_unknown


def read_settings(folder: Path, root: Path, cls: type) -> dict[str, Any]:
    """The config.json of a diffusers network: every key one that the class has, defaults filled."""
    path = folder / "config.json"
    config = read_json(path, root)
    if config.get("_class_name") != cls.__name__:
        raise ModelFileError(f"{path}: _class_name must be {cls.__name__}")
    parameters = dict(inspect.signature(cls.__init__).parameters)
    parameters.pop("self")
    refuse_unknown(path, config, set(parameters) | REMARKS)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in config]
    if missing:
        raise ModelFileError(f"{path}: {missing[0]} is missing")
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return defaults | {key: value for key, value in config.items() if key not in REMARKS}


def check_same(
    path: Path, given: Mapping[str, Any], made: Mapping[str, Any], ignored: set[str]
) -> None:
    """Refuse a network that our own cannot be, by the first setting in which they differ."""
    for key, value in given.items():
        if key not in ignored and plain(made[key]) != plain(value):
            raise ModelFileError(f"{path}: {key} is {value!r}, but only {made[key]!r} can be read")


def plain(value: Any) -> Any:
    """A setting with lists in place of tuples, as JSON has it."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def read_entries(
    path: Path, index: Mapping[str, Any], allowed: Mapping[str, list[tuple[str, str]]]
) -> dict[str, str]:
    """The class of each component that a model_index.json names, all of them allowed ones."""
    refuse_unknown(path, dict(index), set(allowed) | REMARKS)
    classes = {}
    for name, choices in allowed.items():
        entry = index.get(name)
        if not isinstance(entry, list) or list(entry) not in [list(choice) for choice in choices]:
            wanted = " or ".join(sorted({choice[1] for choice in choices}))
            raise ModelFileError(f"{path}: {name} is {entry!r}, but only {wanted} can be read")
        classes[name] = entry[1]
    return classes
