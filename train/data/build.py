"""From the data keys of a configuration to the data set of a stage."""

import json
import sys
from collections import Counter
from pathlib import Path

from torch.utils.data import Dataset

from unclip_train.config import ConfigError, DataConfig, StageConfig

from .captions import all_captions
from .dataset import DrawingDataset, UpsamplerDataset
from .drawings import load_drawings, write_whole
from .embeddings import Embeddings
from .pictures import PictureCropDataset, PictureDataset
from .sources.opening import Reading, kind_of, open_source
from .sources.records import HARMLESS, BadSample, Source

MAX_TOKENIZER_CAPTIONS = 1_000_000
PINNED = "data.json"


def make_dataset(stage: str, config: StageConfig) -> Dataset:
    """The data that a stage learns from.

    Args:
        stage: "clip", "prior", "decoder" or "upsampler".
        config: of that stage.

    Raises:
        ConfigError, FileNotFoundError: naming the key at fault.
    """
    data = config.data
    if kind_of(data.source) == "drawings":
        if data.embeddings:
            raise ConfigError("data.embeddings: drawings are composed anew; leave it out")
        return drawing_dataset(stage, config)
    try:
        source = open_source(data.source, reading_of(data))
        check_faults(source, data)
        return picture_dataset(stage, config, source)
    except ImportError as error:
        raise ConfigError(f"data.source: {missing_library(error)}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def missing_library(error: ImportError) -> str:
    """What to install."""
    return f"the library {error.name} is missing; install it with pip install 'unclip[hf-data]'"


def reading_of(data: DataConfig) -> Reading:
    """The keys that say how a source is read."""
    return Reading(**{key: getattr(data, key) for key in Reading.__dataclass_fields__})


def drawing_dataset(stage: str, config: StageConfig) -> Dataset:
    """Drawings, composed as they are read."""
    data = config.data
    common = {
        "seed": config.run.seed,
        "shared_only": data.shared_only,
        "styles": data.styles,
        "cache_bytes": int(data.cache_gb * 2**30),
    }
    if stage == "upsampler":
        crop, degradation = data.crop or data.size // 4, config.degradation
        return UpsamplerDataset(data.source, data.size, crop, degradation, **common)
    look = {
        "plain_share": data.plain_share,
        "balance": data.balance,
        "loose_share": data.loose_share,
    }
    return DrawingDataset(data.source, data.size, **look, **common)


def picture_dataset(stage: str, config: StageConfig, source: Source) -> Dataset:
    """Pictures with captions of their own."""
    data = config.data
    common = {
        "seed": config.run.seed,
        "flip": data.flip,
        "window": data.shuffle_window,
        "max_pixels": data.max_pixels,
        "max_bad_share": data.max_bad_share,
    }
    if stage == "upsampler":
        crop = data.crop or data.size // 4
        return PictureCropDataset(source, data.size, crop, config.degradation, **common)
    embeddings = None
    if data.embeddings:
        if stage == "clip":
            raise ConfigError("data.embeddings: a CLIP learns from pictures; leave it out")
        embeddings = Embeddings(data.embeddings, source, config.clip)
    return PictureDataset(
        source,
        data.size,
        framing=data.framing,
        min_side=data.min_side,
        embeddings=embeddings,
        with_pictures=embeddings is None or stage != "prior",
        **common,
    )


def check_faults(source: Source, data: DataConfig) -> None:
    """Tell what was found broken while listing; refuse a source with too much of it.

    Raises:
        ConfigError: when the share exceeds data.max_bad_share.
    """
    if not source.faults:
        return
    counts = Counter(fault.reason for fault in source.faults)
    told = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    print(f"data: {len(source)} pictures with captions; left out: {told}", file=sys.stderr)
    bad = sum(count for reason, count in counts.items() if reason not in HARMLESS)
    if bad > data.max_bad_share * (bad + len(source)):
        raise ConfigError(
            f"data.source: {bad} of {bad + len(source)} samples are broken ({told}), more than "
            f"data.max_bad_share {data.max_bad_share} allows; see unclip-data check {data.source}"
        )


def captions_of(dataset: Dataset, config: StageConfig) -> list[str]:
    """Captions for a tokenizer to be trained on: all, or every k-th where they are millions."""
    if isinstance(dataset, DrawingDataset):
        return all_captions(load_drawings(config.data.source))
    source, captions = dataset.source, []
    for index in range(0, len(source), -(-len(source) // MAX_TOKENIZER_CAPTIONS)):
        try:
            captions += source.captions(index)
        except BadSample:
            continue
    return captions


def pin_data(output: str | Path, dataset: Dataset) -> None:
    """Refuse to go on with a run whose source has changed: its order would be another.

    Raises:
        ConfigError: with the numbers of samples before and now.
    """
    source = getattr(dataset, "source", None)
    if source is None:
        return
    path = Path(output) / PINNED
    facts = {"num_samples": len(source), "fingerprint": source.fingerprint}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(facts).encode())
        return
    old = json.loads(path.read_text())
    if old != facts:
        raise ConfigError(
            f"data.source: it held {old['num_samples']} samples when {output} began and holds "
            f"{len(source)} now, or some have changed; give another output, and begin from the "
            f"weights with init={Path(output) / 'model'}"
        )
