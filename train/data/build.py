"""From the data keys of a configuration to the data set of a stage."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from unclip_train.config import ConfigError, DataConfig, StageConfig

from .captions import all_captions
from .dataset import DrawingDataset, UpsamplerDataset
from .drawings import files_present, is_measured, load_drawings, write_whole
from .embeddings import Embeddings
from .pictures import PictureCropDataset, PictureDataset
from .sources.opening import STREAMED, Reading, kind_of, open_source
from .sources.records import HARMLESS, BadSample, Source, hash_of

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
    share = 0.0 if data.validation else data.validation_share
    is_wanted = (lambda name: not set_aside(name, share)) if share else None
    dataset = open_pictures(stage, config, data.source, is_wanted)
    if dataset is None:
        raise ConfigError(f"data.validation_share {share} leaves nothing to learn from")
    return dataset


def make_held_out(stage: str, config: StageConfig) -> Dataset | None:
    """What a stage never learns from and is measured on; None where nothing was set aside.

    Of drawings the held-out ones; of other sources data.validation, or a share by their names.
    """
    data = config.data
    if kind_of(data.source) == "drawings":
        drawings = load_drawings(data.source)
        present, styles = files_present(data.source, data.size), data.styles
        if not any(
            is_measured(drawing)
            and drawing.id in present
            and (not styles or drawing.style in styles)
            for drawing in drawings
        ):
            return None
        return drawing_dataset(stage, config, held_out=True)
    if data.validation:
        return open_pictures(stage, config, data.validation)
    share = data.validation_share
    if not share:
        return None
    return open_pictures(stage, config, data.source, lambda name: set_aside(name, share))


def set_aside(name: str, share: float) -> bool:
    """Whether the sample of a name is among the share that is measured on: a hash decides.

    name: within its source, so that a source may lie elsewhere and be split alike.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def open_pictures(
    stage: str,
    config: StageConfig,
    address: str,
    is_wanted: Callable[[str], bool] | None = None,
) -> Dataset | None:
    """The samples of a source whose keys are wanted, all unless said; None where none are.

    Raises:
        ConfigError: naming the key at fault.
    """
    try:
        source = open_source(address, reading_of(config.data, address))
        check_faults(source, config.data)
        chosen = None
        if is_wanted is not None:
            wanted = (i for i in range(len(source)) if is_wanted(source.key(i)))
            chosen = np.fromiter(wanted, dtype=np.int64)
            if not len(chosen):
                return None
        embeddings = config.data.embeddings if address == config.data.source else None
        return picture_dataset(stage, config, source, chosen, embeddings)
    except ImportError as error:
        raise ConfigError(f"data.source: {missing_library(error)}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def missing_library(error: ImportError) -> str:
    """What to install."""
    return f"the library {error.name} is missing; install it with pip install 'unclip[hf-data]'"


def reading_of(data: DataConfig, address: str) -> Reading:
    """The keys that say how data.source is read; or data.validation, which shares what it can.

    What names samples, or a part, of the one source says nothing of the other.
    """
    reading = Reading(**{key: getattr(data, key) for key in Reading.__dataclass_fields__})
    if address == data.source:
        return reading
    if {kind_of(address), kind_of(data.source)} == {"hub"}:  # of another name
        reading = replace(reading, subset=None, revision=None)
    streaming = reading.streaming and kind_of(address) in STREAMED
    return replace(reading, leave_out=None, streaming=streaming)


def drawing_dataset(stage: str, config: StageConfig, held_out: bool = False) -> Dataset:
    """Drawings, composed as they are read."""
    data = config.data
    common = {
        "seed": config.run.seed,
        "shared_only": data.shared_only,
        "styles": data.styles,
        "held_out": held_out,
        "cache_bytes": int(data.cache_gb * 2**30),
    }
    if stage == "upsampler":
        crop, degradation = data.crop or data.size // 4, config.degradation
        return UpsamplerDataset(data.source, data.size, crop, degradation, **common)
    look = {
        "plain_share": data.plain_share,
        "pair_share": data.pair_share,
        "beside_share": data.beside_share,
        "jitter": data.jitter,
        "balance": data.balance,
        "loose_share": data.loose_share,
    }
    return DrawingDataset(data.source, data.size, **look, **common)


def picture_dataset(
    stage: str,
    config: StageConfig,
    source: Source,
    chosen: np.ndarray | None = None,
    embedded: str | None = None,
) -> Dataset:
    """Pictures with captions of their own; all, or those whose numbers are chosen.

    embedded: folder of the embeddings of this source.
    """
    data = config.data
    common = {
        "seed": config.run.seed,
        "chosen": chosen,
        "flip": data.flip,
        "window": data.shuffle_window,
        "max_pixels": data.max_pixels,
        "min_side": data.min_side,
        "max_bad_share": data.max_bad_share,
    }
    if stage == "upsampler":
        crop = data.crop or data.size // 4
        return PictureCropDataset(source, data.size, crop, config.degradation, **common)
    embeddings = None
    if embedded:
        if stage == "clip":
            raise ConfigError("data.embeddings: a CLIP learns from pictures; leave it out")
        embeddings = Embeddings(embedded, source, config.clip)
    return PictureDataset(
        source,
        data.size,
        framing=data.framing,
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


def pin_data(
    output: str | Path, dataset: Dataset, vocabulary: Mapping[str, int] | None = None
) -> None:
    """Refuse to go on with a run whose source has changed: its order would be another.

    What the first checkpoint was trained on counts; before it, the source may change. Of what an
    older version noted less of, less is compared.

    Args:
        output: folder of the run.
        dataset: what it learns from.
        vocabulary: tokens and their numbers, which a CLIP has made of the captions.

    Raises:
        ConfigError: with the numbers of samples before and now.
    """
    path, facts = Path(output) / PINNED, facts_of(dataset)
    if vocabulary is not None:
        facts["vocabulary"] = hash_of(sorted(f"{n} {token}" for token, n in vocabulary.items()))
    if not path.exists() or not any((Path(output) / "checkpoints").glob("step-*")):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(facts).encode())
        return
    old = json.loads(path.read_text())
    anew = f"give another output, and begin from the weights with init={Path(output) / 'model'}"
    if any(old[key] != facts[key] for key in ("num_samples", "fingerprint")):
        raise ConfigError(
            f"data.source: it held {old['num_samples']} samples when {output} began and holds "
            f"{facts['num_samples']} now, or some have changed; {anew}"
        )
    if old.get("vocabulary") not in (None, facts.get("vocabulary")):
        raise ConfigError(
            f"data.source: its captions make another tokenizer than when {output} began; {anew}"
        )


def facts_of(dataset: Dataset) -> dict[str, int | str]:
    """What the order of a data set depends on, and the captions: how many samples, and which."""
    if not isinstance(dataset, DrawingDataset | UpsamplerDataset):
        return {"num_samples": len(dataset.source), "fingerprint": dataset.source.fingerprint}
    rows = [[d.id, d.name, d.keywords, d.category, d.held_out] for d in dataset.drawings]
    return {"num_samples": len(rows), "fingerprint": hash_of(map(json.dumps, rows))}
