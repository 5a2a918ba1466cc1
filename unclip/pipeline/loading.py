"""Reading a model's folder: strict, quick, and without running anything that stands in it.

Only the classes named here are made, only JSON and safetensors are read, every weight must be
there with its shape and finite, and no file may lie outside of the folder. Errors are one line
that names the file: FileNotFoundError where one is missing, ModelFileError where one is wrong.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path
from threading import Lock

import torch
from accelerate import init_empty_weights
from diffusers import SchedulerMixin, UnCLIPScheduler
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedConfig,
    ResNetConfig,
    VisionTextDualEncoderModel,
)

from unclip.diffusion.samplers import SAMPLERS
from unclip.models.clip import read_pixel_statistics, text_config_of
from unclip.models.decoder import Decoder
from unclip.models.laion_prior import LaionPrior
from unclip.models.prior import Prior
from unclip.models.upsampler import Upsampler
from unclip.pipeline.folder import INDEX_NAME
from unclip.pipeline.pickles import PickleError, read_pickle

NETWORKS = {
    "prior": (Prior, LaionPrior),
    "decoder": (Decoder,),
    "upsampler_256": (Upsampler,),
    "upsampler_1024": (Upsampler,),
}
SAMPLER_CLASSES = dict.fromkeys(each.scheduler_class for each in SAMPLERS.values())
SCHEDULERS = (*SAMPLER_CLASSES, UnCLIPScheduler)
OPTIONAL = ("prior", "upsampler_256", "upsampler_1024")
# What denoise() reads of a scheduler's config where the class itself does not know it.
HEEDED = {
    "clip_sample",
    "clip_sample_range",
    "timestep_spacing",
    "analytic",
    "score_norms",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
}
SETTINGS = ("default_steps", "default_guidance", "default_guidance_interval", "default_candidates")

REMARKS = {"_class_name", "_diffusers_version", "_name_or_path"}  # of diffusers' config files
# Of transformers' config files, older ones too.
CLIP_REMARKS = {"model_type", "_name_or_path", "torch_dtype", "output_attentions"}
NETWORK_STEM, CLIP_STEM = "diffusion_pytorch_model", "model"  # of files of weights
SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
MAX_JSON_BYTES = 16 << 20

_BUILDING = Lock()  # building without weights replaces a method of nn.Module for a moment


Stored = Iterator[tuple[Path, str, Tensor]]  # file, name and weight


class ModelFileError(ValueError):
    """A file of a model is not what it should be."""


def read_pipeline(folder: Path, dtype: torch.dtype, root: Path | None = None) -> dict:
    """Everything that UnCLIPPipeline is made of, from a folder that save_pretrained wrote.

    The decoder and the upsamplers are given in dtype, CLIP and the prior in float32. root: where
    links may lead, the folder itself unless given.
    """
    root = root or folder
    index = read_index(folder, root)
    clip, tokenizer = read_clip(folder / "clip", root, index["clip"])
    parts = {"clip": clip, "tokenizer": tokenizer, **read_pixel_statistics(folder / "clip")}
    for name, classes in NETWORKS.items():
        scheduler = f"{name}_scheduler"
        if index[name] is None:
            parts |= {name: None, scheduler: None}
            continue
        kind = torch.float32 if name == "prior" else dtype
        parts[name] = read_network(classes, folder / name, kind, root)
        parts[scheduler] = read_scheduler(folder / scheduler, index[scheduler], root)
    return parts | {name: index[name] for name in SETTINGS if name in index}


def read_index(folder: Path, root: Path) -> dict:
    """The components of a folder by name, each the name of its class or None; and its settings."""
    path = folder / INDEX_NAME
    index = read_json(path, root)
    if index.get("_class_name") != "UnCLIPPipeline":
        raise ModelFileError(f"{path}: _class_name must be UnCLIPPipeline")
    allowed = {"clip": [("transformers", name) for name in CLIP_CLASSES]}
    allowed["tokenizer"] = [("transformers", "CLIPTokenizer")]
    for name, classes in NETWORKS.items():
        absent = [(None, None)] if name in OPTIONAL else []
        allowed[name] = [*(("unclip", cls.__name__) for cls in classes), *absent]
        allowed[f"{name}_scheduler"] = [("diffusers", s.__name__) for s in SCHEDULERS] + absent
    refuse_unknown(path, index, {*allowed, *SETTINGS} | REMARKS)
    for name, choices in allowed.items():
        entry = index.get(name)
        if not isinstance(entry, list) or tuple(map(str_or_none, entry)) not in choices:
            wanted = " or ".join(sorted(f"{choice[1]}" for choice in choices))
            raise ModelFileError(f"{path}: {name} is {entry!r}, but only {wanted} can be loaded")
        index[name] = entry[1]
    for name in OPTIONAL:
        if (index[name] is None) != (index[f"{name}_scheduler"] is None):
            raise ModelFileError(f"{path}: {name} and {name}_scheduler belong together")
    return index


def str_or_none(value: object) -> str | None:
    """The value where it may stand for a class, and what matches no class otherwise."""
    return value if value is None or isinstance(value, str) else ""


def read_network(
    classes: type | tuple[type, ...], folder: Path, dtype: torch.dtype, root: Path | None = None
):
    """A network of one of the classes, from a folder that its save_pretrained wrote, to be run."""
    root = root or folder
    path = folder / "config.json"
    config = read_json(path, root)
    known = {cls.__name__: cls for cls in (classes if isinstance(classes, tuple) else (classes,))}
    cls = known.get(str(config.get("_class_name")))
    if cls is None:
        raise ModelFileError(f"{path}: _class_name must be {' or '.join(known)}")
    refuse_unknown(path, config, set(inspect.signature(cls.__init__).parameters) | REMARKS)
    settings = {key: value for key, value in config.items() if key not in REMARKS}
    network = build_empty(path, lambda: cls(**settings))
    fill(network, folder, stored_tensors(folder, NETWORK_STEM, root), dtype)
    return network.eval()


def read_clip(
    folder: Path, root: Path | None = None, class_name: str | None = None
) -> tuple[CLIPModel | VisionTextDualEncoderModel | CLIPTextModelWithProjection, CLIPTokenizer]:
    """CLIP in float32 and its tokenizer, from a folder that CLIP.save_pretrained wrote.

    class_name: of the model, where the folder must hold that one of CLIP_CLASSES.
    """
    root = root or folder
    path = folder / "config.json"
    config = read_json(path, root)
    for model_class in CLIP_CLASSES.values():
        if config.get("model_type") == model_class.config_class.model_type:
            break
    else:
        raise ModelFileError(f"{path}: model_type {config.get('model_type')!r} is no CLIP")
    if class_name not in (None, model_class.__name__):
        raise ModelFileError(f"{path}: model_type must be that of a {class_name}")
    for section, known in clip_sections(model_class).items():
        settings = config.get(section) if section else config
        if not isinstance(settings, dict):
            raise ModelFileError(f"{path}: {section} must be an object")
        refuse_unknown(path, settings, known | CLIP_REMARKS)
    if model_class is VisionTextDualEncoderModel:
        check_towers(path, config)
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    model = build_empty(path, lambda: model_class(model_class.config_class.from_dict(config)))
    fill(model, folder, stored_tensors(folder, CLIP_STEM, root), torch.float32)
    tokenizer = read_tokenizer(folder, root)
    check_vocabulary(folder, tokenizer, model)
    if (folder / "preprocessor_config.json").exists():
        read_json(folder / "preprocessor_config.json", root)
    return model.eval(), tokenizer


CLIP_CLASSES = {
    cls.__name__: cls
    for cls in (CLIPModel, VisionTextDualEncoderModel, CLIPTextModelWithProjection)
}
RESNET_EXTRAS = {"image_size", "hidden_size"}  # what CLIP needs to know beside ResNetConfig


def clip_sections(model_class: type) -> dict[str, set[str]]:
    """The parts of a CLIP's config.json, "" for the whole, and the settings that each may have."""
    text, whole = clip_settings(CLIPTextConfig), clip_settings(model_class.config_class)
    if model_class is CLIPTextModelWithProjection:
        return {"": text}
    if model_class is CLIPModel:
        return {"": whole, "text_config": text, "vision_config": clip_settings(CLIPVisionConfig)}
    return {
        "": whole | {"text_config", "vision_config"},  # older transformers have no fields of them
        "text_config": text,
        "vision_config": set(ResNetConfig().to_dict()) | RESNET_EXTRAS,
    }


def clip_settings(cls: type[PreTrainedConfig]) -> set[str]:
    """Names that a config class of CLIP knows."""
    return {field.name for field in fields(cls)}


def check_towers(path: Path, config: dict) -> None:
    """Refuse a pair of towers other than CLIP's for text and a ResNet for pictures."""
    towers = {"text_config": CLIPTextConfig.model_type, "vision_config": ResNetConfig.model_type}
    for section, wanted in towers.items():
        if config[section].get("model_type") != wanted:
            raise ModelFileError(f"{path}: {section}'s model_type must be {wanted}")
    for key in sorted(RESNET_EXTRAS):
        if not isinstance(config["vision_config"].get(key), int):
            raise ModelFileError(f"{path}: vision_config needs a whole number {key}")


def check_vocabulary(folder: Path, tokenizer: CLIPTokenizer, model: nn.Module) -> None:
    """Refuse a tokenizer with numbers that the text tower does not know."""
    if len(tokenizer) > text_config_of(model).vocab_size:
        raise ModelFileError(
            f"{folder / 'tokenizer.json'}: more tokens than the model's vocab_size"
        )


def read_tokenizer(folder: Path, root: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from tokenizer.json and tokenizer_config.json."""
    settings = read_json(folder / "tokenizer_config.json", root)
    path = folder / "tokenizer.json"
    read_json(path, root)
    if "auto_map" in settings or settings.get("tokenizer_class") not in (
        "CLIPTokenizer",
        "CLIPTokenizerFast",
    ):
        raise ModelFileError(
            f"{folder / 'tokenizer_config.json'}: only CLIPTokenizer can be loaded"
        )
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises bare exceptions
        raise ModelFileError(f"{path}: {one_line(error)}") from error


def read_scheduler(folder: Path, class_name: str, root: Path) -> SchedulerMixin:
    """The scheduler of a stage."""
    path = folder / "scheduler_config.json"
    config = read_json(path, root, constants={"-Infinity": -math.inf})  # of DPM-Solver's defaults
    cls = {cls.__name__: cls for cls in SCHEDULERS}.get(class_name)
    if cls is None:
        raise ModelFileError(f"{path}: {class_name} is no scheduler that can be read")
    if config.get("_class_name") != class_name:
        raise ModelFileError(f"{path}: _class_name must be {class_name}")
    refuse_unknown(path, config, scheduler_settings(cls))
    known = set(inspect.signature(cls.__init__).parameters)
    try:
        scheduler = cls(**{key: value for key, value in config.items() if key in known})
    except Exception as error:
        raise ModelFileError(f"{path}: {one_line(error)}") from error
    scheduler.register_to_config(**{key: config[key] for key in HEEDED - known if key in config})
    if not torch.isfinite(scheduler.alphas_cumprod).all():
        raise ModelFileError(f"{path}: the noise schedule is not finite")
    return scheduler


def scheduler_settings(cls: type[SchedulerMixin]) -> set[str]:
    """What the config file of a scheduler may hold: what its class or denoise() reads."""
    return set(inspect.signature(cls.__init__).parameters) | HEEDED | REMARKS


# Building and filling networks


def build_empty(config_path: Path, make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose parameters have shapes but no values yet; its buffers are real."""
    try:
        # fork_rng: some networks draw numbers even so, and the process shall not notice
        with _BUILDING, torch.random.fork_rng([]), init_empty_weights(include_buffers=False):
            return make()
    except Exception as error:  # whatever goes wrong here comes from the values of the config
        raise ModelFileError(f"{config_path}: {one_line(error)}") from error


def fill(network: nn.Module, folder: Path, tensors: Stored, dtype: torch.dtype) -> None:
    """Give a network its weights, each exactly once; folder is named where one is missing."""
    expected = network.state_dict()
    state: dict[str, Tensor] = {}
    for path, name, tensor in tensors:
        if name in state:
            raise ModelFileError(f"{path}: holds {name} a second time")
        check_tensor(path, name, tensor, expected.get(name))
        state[name] = tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor
    missing = [name for name in expected if name not in state]
    if missing:
        raise ModelFileError(
            f"{folder}: {len(missing)} of {len(expected)} weights are missing, {missing[0]} first"
        )
    network.load_state_dict(state, strict=True, assign=True)
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        raise ModelFileError(f"{folder}: some tensors have no values")


def check_tensor(path: Path, name: str, tensor: Tensor, expected: Tensor | None) -> None:
    """Refuse a weight that the network lacks, or of another shape or kind, or not finite."""
    if expected is None:
        raise ModelFileError(f"{path}: the network has no weight {name}")
    if tensor.shape != expected.shape:
        raise ModelFileError(
            f"{path}: {name} has the shape {tuple(tensor.shape)}, not {tuple(expected.shape)}"
        )
    if tensor.is_floating_point() != expected.is_floating_point():
        raise ModelFileError(f"{path}: {name} is {tensor.dtype}, not {expected.dtype}")
    if not torch.isfinite(tensor).all():
        raise ModelFileError(f"{path}: {name} is not finite")


def stored_tensors(
    folder: Path,
    stem: str,
    root: Path,
    variant: str | None = None,
    pickled: str | None = None,
) -> Stored:
    """The weights of a network with their names and the files that hold them.

    variant: a word in the files' names ("fp16"). pickled: the name of a file that is read, after
    a warning, where there are no safetensors; without it, pickles never are.
    """
    for path, listed in weight_files(folder, stem, root, variant, pickled):
        for name, tensor in read_tensors(path):
            if listed is not None and name not in listed:
                raise ModelFileError(f"{path}: the index does not place {name} in this file")
            yield path, name, tensor


def weight_files(
    folder: Path, stem: str, root: Path, variant: str | None, pickled: str | None
) -> Iterator[tuple[Path, set[str] | None]]:
    """The files of a network's weights, each with the names that its index places there."""
    word = f".{variant}" if variant else ""
    single = folder / f"{stem}{word}.safetensors"
    index_path = folder / f"{stem}.safetensors.index{word}.json"
    if not index_path.exists():
        unsafe = folder / (pickled or "").replace(".bin", f"{word}.bin")
        yield inside(unsafe if unsafe.is_file() and not single.exists() else single, root), None
        return
    if single.exists():
        raise ModelFileError(f"{folder}: holds both {single.name} and {index_path.name}")
    places = read_json(index_path, root).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelFileError(f"{index_path}: weight_map must be an object")
    files: dict[str, set[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or not SHARD_NAME.fullmatch(file):
            raise ModelFileError(f"{index_path}: {file!r} is no name of a safetensors file")
        files.setdefault(file, set()).add(name)
    for file, names in sorted(files.items()):
        yield inside(folder / file, root), names


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, or of a pickled one, by name."""
    if path.suffix != ".safetensors":
        yield from unpickled_tensors(path)
        return
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ModelFileError(f"{path}: damaged or cut short ({one_line(error)})") from error


def unpickled_tensors(path: Path, *keys: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a pickled file, by name; keys lead to them where they lie deeper."""
    try:
        state = read_pickle(path)
    except PickleError as error:
        raise ModelFileError(str(error)) from None
    for key in keys:
        state = state.get(key) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not state:
        raise ModelFileError(f"{path}: holds no weights by name")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelFileError(f"{path}: {str(name)[:60]!r} is no tensor")
        yield name, tensor


# Files


def inside(path: Path, root: Path) -> Path:
    """The path of a file that exists and lies within root, wherever links lead."""
    if not path.is_file():
        hint = " (pickled weights are never read)" if path.suffix == ".safetensors" else ""
        raise FileNotFoundError(f"{path} is missing{hint}")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ModelFileError(f"{path} leads out of {root}: put a copy in its place")
    return path


def read_json(path: Path, root: Path, constants: dict[str, float] | None = None) -> dict:
    """The object of a JSON file, without NaN or Infinity unless constants has them."""

    def constant(word: str) -> float:
        if word not in (constants or {}):
            raise ValueError(f"{word} is not JSON")
        return constants[word]

    if inside(path, root).stat().st_size > MAX_JSON_BYTES:
        raise ModelFileError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        value = json.loads(path.read_text("utf-8"), parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: no valid JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: must hold an object")
    return value


def refuse_unknown(path: Path, config: dict, known: set[str]) -> None:
    """Refuse settings that the class does not have: a misspelt one would silently do nothing."""
    unknown = sorted(set(config) - known)
    if unknown:
        raise ModelFileError(f"{path}: unknown setting {', '.join(map(repr, unknown[:3]))}")


def one_line(error: BaseException, length: int = 160) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 3] + "..."
