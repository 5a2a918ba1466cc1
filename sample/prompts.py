"""Files of prompts: a caption on each line, or JSON with settings of its own; and who draws which.

A line that begins with "{" is a JSON object: {"prompt": "a cat", "seed": 3, "guidance": 2}. Its
keys are options without their dashes; what it leaves out is as the command line says.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unclip_sample.words import nearest

MAX_BYTES = 64 << 20
# Options that a line may set for its own pictures.
OWN = (
    *("prompt", "negative_prompt", "prior_negative_prompt", "seed", "num_images", "size"),
    *("guidance", "image_guidance", "prior_guidance"),
    *("guidance_interval", "guidance_rescale", "dynamic_threshold"),
    *("steps", "prior_steps", "upsampler_steps", "reuse", "candidates", "best_of"),
    *("scheduler", "prior_scheduler", "upsampler_scheduler"),
)


class PromptsError(Exception):
    """A file of prompts cannot be followed; the message names file and line."""


def read_prompts_file(
    path: str, args: argparse.Namespace, parser: argparse.ArgumentParser
) -> list[argparse.Namespace]:
    """The options for each line that is not blank, with the line's caption as their prompt.

    Raises:
        PromptsError: for a file that cannot be read, or a line that cannot be followed.
    """
    lines = [(n, line.strip()) for n, line in enumerate(read_lines(path), 1) if line.strip()]
    if not lines:
        raise PromptsError(f"{path} has no prompt; give one on each line")
    found = []
    for line_number, line in lines:
        try:
            own = read_object(line, parser) if line.startswith("{") else {"prompt": line}
        except ValueError as error:
            raise PromptsError(f"{path}, line {line_number}: {error}") from None
        found.append(argparse.Namespace(**{**vars(args), "seed": None, **own}))
    return found


def read_lines(path: str) -> list[str]:
    """The lines of a text file."""
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise PromptsError(f"{path} is larger than {MAX_BYTES >> 20} MiB")
        return Path(path).read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise PromptsError(f"cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise PromptsError(f"{path} is no UTF-8 text") from None


def read_object(line: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options that a line of JSON sets, read as the command line would.

    Raises:
        ValueError: when it is no object, lacks a prompt, or an option is unknown or wrong.
    """
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it begins with { but is no JSON object") from None
    prompt = given.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("prompt: give a caption")
    return {key.replace("-", "_"): option(key, value, parser) for key, value in given.items()}


def option(key: str, value: Any, parser: argparse.ArgumentParser) -> Any:
    """The value of one option, as the command line would read it."""
    name = key.replace("-", "_")
    if name not in OWN:
        near = nearest(name, list(OWN))
        raise ValueError(
            f"{key[:60]!r}: no line has it" + (f" (did you mean {near}?)" if near else "")
        )
    if name in ("prompt", "negative_prompt", "prior_negative_prompt"):
        if not isinstance(value, str):
            raise ValueError(f"{key}: give a text")
        return value
    action = parser._option_string_actions[f"--{name.replace('_', '-')}"]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        read = action.type(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{key}: {error}") from None
    except ValueError:
        raise ValueError(f"{key}: give another value than {text!r}") from None
    if action.choices is not None and read not in action.choices:
        raise ValueError(f"{key}: give one of {', '.join(map(str, action.choices))}")
    return read


def own_share(units: Sequence[int]) -> list[int]:
    """The pictures that this process draws, of those that all started by one launcher share.

    units: by picture, the number of what one process must draw (unclip_sample.request).

    accelerate launch and torchrun say in RANK and WORLD_SIZE which process this is.
    """
    try:
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        rank, world_size = 0, 1
    return [row for row, unit in enumerate(units) if unit % max(1, world_size) == rank]


def is_shared() -> bool:
    """Whether several processes share the pictures."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")
