"""What a config may say of a network, known without importing it; and the network built of it.

Importing a network takes seconds, a mistake should take none: names, types and defaults of its
arguments are read from its source, and sizes are held against the rules of unclip.models.limits.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import field, make_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unclip.models.limits import check_decoder, check_prior, check_upsampler
from unclip_train.config import ConfigError, check_values, explain

CLASSES = {"prior": "Prior", "decoder": "Decoder", "upsampler": "Upsampler"}
LIMITS = {"prior": check_prior, "decoder": check_decoder, "upsampler": check_upsampler}
KINDS = {  # the annotations of those classes as a schema may have them
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "int | None": int | None,
    "dict | None": dict[str, Any] | None,
    "tuple[int, ...]": tuple[int, ...],
    "tuple[bool, ...]": tuple[bool, ...],
}
CLIP_KINDS = {  # a tower's model_type -> the file of transformers that has its settings, the class
    "clip_text_model": ("clip", "CLIPTextConfig"),
    "clip_vision_model": ("clip", "CLIPVisionConfig"),
    "resnet": ("resnet", "ResNetConfig"),
}
TOWERS = {"text": "clip_text_model", "vision": "clip_vision_model"}  # and their usual kinds
CLIP_WHOLE = ("projection_dim", "logit_scale_init_value")


@cache
def arguments_of(stage: str, class_name: str | None = None) -> type:
    """A dataclass of the arguments of a stage's network, made from the source of its class.

    class_name: of another class, in unclip/models/<stage>.py.
    """
    class_name = class_name or CLASSES[stage]
    definition = class_in(Path(find_spec(f"unclip.models.{stage}").origin), class_name)
    init = next(node for node in definition.body if getattr(node, "name", "") == "__init__")
    names = init.args.args[1:]
    entries = []
    for argument, default in zip(names, init.args.defaults, strict=True):
        kind, value = KINDS[ast.unparse(argument.annotation)], ast.literal_eval(default)
        entries.append((argument.arg, kind, field(default=value)))
    return make_dataclass(class_name, entries)


def class_in(path: Path, name: str) -> ast.ClassDef:
    """The definition of a class in a file."""
    tree = ast.parse(path.read_text("utf-8"))
    return next(node for node in ast.walk(tree) if getattr(node, "name", "") == name)


def check_network(stage: str, arguments: dict[str, Any], **fixed: Any) -> Any:
    """Refuse a config's mapping that no network can be made of; give all its arguments.

    fixed: arguments that other keys decide.

    Raises:
        ConfigError: naming the argument as network.<name>, and the nearest that there is.
    """
    settings = typed("network", arguments_of(stage), arguments)
    for name, value in fixed.items():
        if name in arguments and getattr(settings, name) != value:
            raise ConfigError(
                f"network.{name} is {arguments[name]}, but {value} follows from other keys; "
                "leave it out"
            )
        setattr(settings, name, value)
    if getattr(settings, "text_encoder", None):
        transformer = arguments_of("text_encoder", "TextTransformer")
        typed("network.text_encoder", transformer, settings.text_encoder)
    for name, value in vars(settings).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ConfigError(f"network.{name} must be at least 1, not {value}")
    wanted = LIMITS[stage].__code__.co_varnames[: LIMITS[stage].__code__.co_argcount]
    try:
        LIMITS[stage](**{name: getattr(settings, name) for name in wanted})
    except ValueError as error:
        raise ConfigError(f"network.{error}") from None
    return settings


def typed(key: str, schema: type, arguments: dict[str, Any]) -> Any:
    """A mapping as an object of a dataclass; ConfigError below the key where it does not fit."""
    merged = OmegaConf.structured(schema)
    for name, value in arguments.items():
        try:
            merged = OmegaConf.merge(merged, OmegaConf.create({name: value}))
        except TypeError:
            raise ConfigError(f"{key}.{name}: {value!r} is of a wrong kind") from None
        except OmegaConfBaseException as error:
            if "$VALUE" in str(error):  # an entry of a list
                raise ConfigError(f"{key}.{name}: {value} has entries of a wrong kind") from None
            raise ConfigError(explain(error, schema, prefix=f"{key}.")) from None
    settings = OmegaConf.to_object(merged)
    check_values(settings, f"{key}.")
    return settings


def check_towers(arguments: dict[str, Any]) -> None:
    """Refuse settings of a CLIP that transformers would silently pass over.

    Raises:
        ConfigError: naming the key, and the nearest that there is.
    """
    refuse_unknown("network", arguments, {*TOWERS, *CLIP_WHOLE})
    for tower, usual in TOWERS.items():
        settings = arguments.get(tower) or {}
        if not isinstance(settings, dict):
            raise ConfigError(f"network.{tower} must be a mapping, not {settings!r}")
        kind = settings.get("model_type") or usual
        if kind not in CLIP_KINDS:
            known = ", ".join(CLIP_KINDS)
            raise ConfigError(f"network.{tower}.model_type {kind!r} is unknown (known: {known})")
        needed = ("hidden_size", "image_size") if kind == "resnet" else ()
        for name in needed:
            if settings.get(name) is None:
                raise ConfigError(
                    f"network.{tower}.{name} is missing: a tower of kind {kind} needs it"
                )
        refuse_unknown(f"network.{tower}", settings, {*tower_settings(kind), *needed, "model_type"})
        for name, value in settings.items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ConfigError(f"network.{tower}.{name} must be at least 1, not {value}")
        check_heads(tower, settings)


def check_heads(tower: str, settings: dict[str, Any]) -> None:
    """Refuse a tower whose heads, or whose patches, do not divide it."""
    for whole, part in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
        sizes = settings.get(whole), settings.get(part)
        if all(isinstance(size, int) for size in sizes) and sizes[0] % sizes[1]:
            raise ConfigError(
                f"network.{tower}.{whole} {sizes[0]} is no multiple of its {part} {sizes[1]}"
            )


@cache
def tower_settings(kind: str) -> frozenset[str]:
    """The names of what a tower of CLIP may be told, from the source of transformers."""
    folder, class_name = CLIP_KINDS[kind]
    root = Path(find_spec("transformers").origin).parent
    path = root / "models" / folder / f"configuration_{folder}.py"
    body = class_in(path, class_name).body
    return frozenset(node.target.id for node in body if isinstance(node, ast.AnnAssign))


def refuse_unknown(key: str, arguments: dict[str, Any], known: set[str]) -> None:
    """Refuse a name that is not known, and suggest the nearest."""
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {key}.{near[0]}?" if near else ""
            raise ConfigError(f"{key}.{name} is unknown{hint or f' (known: {names(known)})'}")


def names(known: set[str]) -> str:
    """Names in order, for a message."""
    return ", ".join(sorted(known))


def build_network(network_class: type, arguments: dict[str, Any], **fixed: Any):
    """Build a network from a config's mapping.

    fixed: arguments that other keys decide.

    Raises:
        ConfigError: as check_network does.
    """
    check_network(network_class.__name__.lower(), arguments, **fixed)
    try:
        return network_class(**{**arguments, **fixed})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"network: {error}") from error
