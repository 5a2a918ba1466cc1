"""Which kind of source an address is, and the source itself."""

import glob
import json
import os
from dataclasses import dataclass
from pathlib import Path

from unclip_train.data.drawings import METADATA

from .addresses import expand_braces, is_remote, local_path
from .folder import FolderSource
from .leave_out import leave_out
from .records import Source
from .shards import ShardSource
from .tables import HUB, STREAM_WINDOW, open_hub, open_parquet, open_saved

KINDS = ("drawings", "folder", "shards", "parquet", "saved", "hub")
STREAMED = ("parquet", "hub")  # that can be read forward without a copy


@dataclass(frozen=True)
class Reading:
    """How a source is read; the keys of the same names in DataConfig."""

    image_column: str = ""
    caption_column: str = ""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    shuffle_window: int = 0
    index: str | None = None
    leave_out: str | None = None


def kind_of(address: str, key: str = "data.source") -> str:
    """What a source is, by its name and by what lies there.

    key: that gives the address.

    Raises:
        FileNotFoundError: when nothing of any kind lies there.
    """
    if address.startswith(HUB):
        return "hub"
    for suffix, kind in ((".tar", "shards"), (".parquet", "parquet")):
        if address.rstrip("}").endswith(suffix):
            return kind
    if is_remote(address):
        raise FileNotFoundError(
            f"{key}: {address} must end in .tar or .parquet; braces such as "
            "{000..127}.tar name many"
        )
    folder = local_path(address)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{key}: there is no folder {address} (give a folder of pictures, .tar or "
            ".parquet files, hub:owner/name, or make drawings: unclip-data emoji)"
        )
    if _holds_drawings(folder / METADATA):
        return "drawings"
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return "saved"
    names = [entry.name for entry in os.scandir(folder)]
    for suffix, kind in ((".tar", "shards"), (".parquet", "parquet")):
        if any(name.endswith(suffix) for name in names):
            return kind
    return "folder"


def _holds_drawings(path: Path) -> bool:
    """Whether a metadata.jsonl lists drawings, as `unclip-data emoji` writes them."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        line = file.readline(2**20)
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and {"concept", "family", "style"} <= set(row)


def open_source(address: str, reading: Reading | None = None) -> Source:
    """A source of captioned pictures.

    Args:
        address: a folder; .tar or .parquet files, one, or many by braces, `*` or their folder;
            "hub:owner/name"; a folder of Dataset.save_to_disk. Files may be any that fsspec reads.
        reading: see there.

    Raises:
        FileNotFoundError, ValueError: beginning with the key at fault.
    """
    reading = reading or Reading()
    columns = {"image_column": reading.image_column, "caption_column": reading.caption_column}
    window = reading.shuffle_window or STREAM_WINDOW
    kind = kind_of(address)
    if reading.streaming and kind not in STREAMED:
        raise ValueError(f"data.streaming: {address} is read in place; leave it false")
    if kind == "drawings":
        raise ValueError(f"data.source: {address} holds drawings, which have no captions of theirs")
    if kind == "folder":
        source = FolderSource(local_path(address), **columns)
    elif kind == "shards":
        source = ShardSource(files_of(address, ".tar"), index_folder(reading.index))
    elif kind == "parquet":
        files = files_of(address, ".parquet")
        source = open_parquet(files, streaming=reading.streaming, window=window, **columns)
    elif kind == "saved":
        source = open_saved(local_path(address), **columns)
    else:
        name = address.removeprefix(HUB)
        where = (reading.subset, reading.split, reading.revision)
        source = open_hub(name, *where, streaming=reading.streaming, window=window, **columns)
    if not len(source):
        reasons = sorted({fault.reason for fault in source.faults})
        found = f" ({len(source.faults)} faults: {', '.join(reasons)})" if reasons else ""
        raise ValueError(f"data.source: {address} holds no picture with a caption{found}")
    return leave_out(source, reading.leave_out) if reading.leave_out else source


def files_of(address: str, suffix: str) -> list[str]:
    """The files that an address stands for, in order.

    Raises:
        FileNotFoundError: when a pattern or a folder holds none.
    """
    files = []
    for name in expand_braces(address):
        if is_remote(name):
            files.append(name)
            continue
        path = local_path(name)
        if path.is_dir():
            files += sorted(str(entry) for entry in path.iterdir() if entry.suffix == suffix)
        elif glob.has_magic(name) and not path.exists():
            files += sorted(glob.glob(str(path)))
        else:
            files.append(str(path))
    if not files:
        raise FileNotFoundError(f"data.source: {address} names no {suffix} file")
    if suffix == ".parquet":
        for name in files:
            if not is_remote(name) and not Path(name).is_file():
                raise FileNotFoundError(f"data.source: there is no file {name}")
    return files


def index_folder(path: str | None) -> Path:
    """Where indices of shards are kept: data.index, else the user's cache folder."""
    if path:
        return Path(path).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "unclip" / "index"
