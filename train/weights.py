"""The weights that a stage begins from, and the CLIP beside it, wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from unclip.models.clip import CLIP
from unclip.pipeline.loading import ModelFileError
from unclip.pipeline.published.parts import read_part
from unclip.pipeline.published.sources import read_encoder
from unclip_train.checks import UPSAMPLERS, WEIGHTLESS, grows
from unclip_train.config import ConfigError
from unclip_train.data.embeddings import clip_folder
from unclip_train.data.sources.opening import HUB

Grow = Callable[[nn.Module, Any], nn.Module]


def load_network(name: str, source: str, arguments: dict[str, Any], key: str = "init") -> nn.Module:
    """Trained weights to begin from, of a kind that the config's network describes.

    Args:
        name: "prior", "decoder", "upsampler_256" or "upsampler_1024".
        source: see read_part.
        arguments: the config's mapping.
        key: that names the source.

    Raises:
        ConfigError: naming the source, and the argument or the weights that differ.
    """
    try:
        network = read_part(source.removeprefix(HUB), name).train()
    except (ModelFileError, OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot read {source}: {one_line(error)}") from error
    known = network.config
    given = {name: arguments[name] for name in WEIGHTLESS if name in arguments and name in known}
    changed = {name: value for name, value in given.items() if value != known[name]}
    if changed:
        network = with_arguments(network, changed)
    check_made_with(network, source, arguments)
    return network


def load_and_grow(
    name: str, source: str, arguments: dict[str, Any], grow: dict[str, Grow]
) -> nn.Module:
    """load_network for a config that may ask for more than the weights have.

    grow: by argument, what gives a network the weights for another value, so that it still does
        what it did.
    """
    asked = {argument: value for argument, value in arguments.items() if argument in grow}
    network = load_network(name, source, {k: v for k, v in arguments.items() if k not in asked})
    for argument, value in asked.items():
        if grows(argument, value, network.config.get(argument)):
            network = grow[argument](network, value).train()
    check_made_with(network, source, asked)
    return network


def check_made_with(network: nn.Module, source: str, arguments: dict[str, Any]) -> None:
    """Refuse arguments that a network from source was not made with.

    Raises:
        ConfigError: naming the argument, and what it was.
    """
    for argument, value in arguments.items():
        made_with = network.config.get(argument)
        if isinstance(value, dict) and isinstance(made_with, dict):
            made_with = {key: made_with.get(key) for key in value}
        if json.dumps(value) != json.dumps(made_with):
            raise ConfigError(
                f"network.{argument} is {value}, but the weights of init={source} have {made_with}"
            )


def with_arguments(network: nn.Module, changed: dict[str, Any]) -> nn.Module:
    """The same weights in a network with some other arguments, of WEIGHTLESS."""
    with next(network.parameters()).device:  # a dry run makes all others without values
        other = type(network).from_config(network.config, **changed)
    other.load_state_dict(network.state_dict())
    return other.train()


def check_clip_fits(config: Any, network: nn.Module, sizes: dict[str, int]) -> None:
    """Refuse weights that were trained with a CLIP of other sizes than the config's.

    Raises:
        ConfigError: naming both.
    """
    for name, value in sizes.items():
        if network.config[name] != value:
            raise ConfigError(
                f"clip: {config.clip} has {name} {value}, but the weights of init={config.init} "
                f"have {network.config[name]}"
            )


def upsampler_in(source: str, size: int) -> str:
    """Which upsampler of a model draws pictures of a size; the first where none says so."""
    for name in UPSAMPLERS:
        path = Path(source) / name / "config.json"
        if path.is_file() and json.loads(path.read_text()).get("size") == size:
            return name
    return UPSAMPLERS[0]


def load_clip(source: str, key: str = "clip") -> CLIP:
    """A CLIP folder, the folder of a run that trained one, or the CLIP of a model in any layout.

    Raises:
        ConfigError: naming the key and the source, when there is none or its weights are broken.
    """
    folder = clip_folder(source.removeprefix(HUB))
    try:
        parts = read_encoder(str(folder))
        return CLIP(parts.pop("clip"), parts.pop("tokenizer"), **parts)
    except (ModelFileError, OSError, ValueError) as error:
        raise ConfigError(f"{key}: cannot read the CLIP in {source}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """What an error says first."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
