"""Parquet files and Hugging Face datasets, by the library `datasets`; pictures stay undecoded.

Rows may hold a picture as its file's bytes, as {"bytes", "path"}, or as a path.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .addresses import is_remote, open_file
from .folder import CAPTION_COLUMNS, column_of
from .records import (
    LARGE_FILE,
    MAX_PICTURE_BYTES,
    MISSING_FILE,
    NO_PICTURE,
    UNREADABLE,
    BadSample,
    clean_captions,
    hash_of,
)

IMAGE_COLUMNS = ("image", "jpg", "png", "img", "picture", "bytes", "image_bytes", "file_name")
STREAM_WINDOW = 1024
HUB = "hub:"


class NamedRows:
    """What the rows of a table, or of a stream, are called."""

    title: str

    def name(self, index: int) -> str:
        """The table and the row's number."""
        return f"{self.title}, row {index}"

    def key(self, index: int) -> str:
        """The same without the folder, or the owner."""
        return self.name(index).rsplit("/", 1)[-1]


class TableSource(NamedRows):
    """Rows of a table that can be read in any order.

    Args:
        dataset: a datasets.Dataset.
        image_column, caption_column: the usual names when empty.
        folder: that paths in the table are relative to.
    """

    def __init__(self, dataset, name: str, image_column: str, caption_column: str, folder: Path):
        self.title, self.folder, self.faults, self.sequential = name, folder, [], False
        self.image_column, self.caption_column = find_columns(
            dataset.column_names, image_column, caption_column, name
        )
        self.dataset = undecoded(dataset, self.image_column)
        self.texts = dataset.select_columns([self.caption_column])
        self.fingerprint = hash_of([name, dataset._fingerprint, str(len(dataset))])

    def __len__(self) -> int:
        return len(self.dataset)

    def captions(self, index: int) -> tuple[str, ...]:
        """The row's caption, or captions."""
        return clean_captions(self.texts[index][self.caption_column], self.name(index))

    def picture(self, index: int) -> bytes:
        """The picture's file."""
        cell = self.dataset[index][self.image_column]
        return picture_bytes(cell, self.folder, self.name(index), hub_name(self.title))


class StreamSource(NamedRows):
    """Rows of a stream, read forward through a window that is kept in memory.

    Any order within a window costs nothing; going on reads what lies between, going back costs a
    new beginning. Every process that reads goes through the whole stream.

    Args:
        dataset: a datasets.IterableDataset.
        length: its number of rows.
        window: rows, undecoded, that are kept.
    """

    def __init__(
        self,
        dataset,
        name: str,
        length: int,
        image_column: str,
        caption_column: str,
        folder: Path,
        window: int = STREAM_WINDOW,
    ):
        self.title, self.folder, self.length, self.window = name, folder, length, window
        self.faults, self.sequential = [], True
        self.image_column, self.caption_column = find_columns(
            dataset.column_names, image_column, caption_column, name
        )
        self.dataset = undecoded(dataset, self.image_column)
        self.fingerprint = hash_of([name, str(length)])
        self._number, self._rows, self._windows = -1, {}, None

    def __len__(self) -> int:
        return self.length

    def captions(self, index: int) -> tuple[str, ...]:
        """The row's caption, or captions."""
        return clean_captions(self._cell(index, self.caption_column), self.name(index))

    def picture(self, index: int) -> bytes:
        """The picture's file."""
        cell = self._cell(index, self.image_column)
        return picture_bytes(cell, self.folder, self.name(index), hub_name(self.title))

    def _cell(self, index: int, column: str) -> Any:
        number, place = divmod(index, self.window)
        if self._windows is None or number < self._number:
            # Whole windows: rows one by one would be dealt out among a loader's processes.
            self._windows = self.dataset.skip(number * self.window).iter(self.window)
            self._number = number - 1
        while self._number < number:
            self._rows = next(self._windows, {})
            self._number += 1
        cells = self._rows.get(column, ())
        if place >= len(cells):
            raise BadSample(UNREADABLE, self.name(index))
        return cells[place]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_number": -1, "_rows": {}, "_windows": None}


def hub_name(title: str) -> str:
    """owner/name of a hub's dataset; "" of any other."""
    return title.removeprefix(HUB) if title.startswith(HUB) else ""


def find_columns(names: list[str] | None, image: str, caption: str, where: str) -> tuple[str, str]:
    """The columns of the picture and of the caption; see column_of."""
    row = dict.fromkeys(names or ())
    return (
        column_of(row, image, IMAGE_COLUMNS, where),
        column_of(row, caption, CAPTION_COLUMNS, where),
    )


def undecoded(dataset, image_column: str):
    """The dataset with pictures as files' bytes, which only unclip.pictures decodes."""
    from datasets import Image

    features = dataset.features or {}
    if isinstance(features.get(image_column), Image):
        return dataset.cast_column(image_column, Image(decode=False))
    return dataset


def picture_bytes(value: Any, folder: Path, name: str, hub: str = "") -> bytes:
    """The file of a table's cell.

    Args:
        value: the file's bytes, a path, or {"bytes", "path"}.
        folder: that paths are relative to; those that lead out of it are refused.
        name: of the sample.
        hub: owner/name of the hub's dataset whose files a path may name as well.

    Raises:
        BadSample: when the cell holds none, or a path that leaves the folder or leads nowhere.
    """
    content, path = value, None
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
    elif isinstance(value, str):
        content, path = None, value
    if content is None and path:
        content = _content_of(str(path), folder, name, hub)
    if not isinstance(content, bytes) or not content:
        raise BadSample(NO_PICTURE, name)
    if len(content) > MAX_PICTURE_BYTES:
        raise BadSample(LARGE_FILE, name)
    return content


def _content_of(path: str, folder: Path, name: str, hub: str) -> bytes:
    """A file that a cell names, read up to one byte more than is allowed."""
    if is_remote(path):  # "hf://datasets/owner/name@revision/a.jpg", or "zip://a.jpg::hf://..."
        place = path.split("::")[-1].removeprefix(f"hf://datasets/{hub}")
        if not hub or place[:1] not in ("@", "/"):
            raise BadSample(MISSING_FILE, name)
        address = path
    else:
        address = os.path.abspath(folder / path)
        if not Path(address).is_relative_to(os.path.abspath(folder)):
            raise BadSample(MISSING_FILE, name)
    try:
        with open_file(address) as file:
            return file.read(MAX_PICTURE_BYTES + 1)
    except (OSError, ValueError):  # of a name with a NUL
        raise BadSample(MISSING_FILE, name) from None


def open_parquet(
    addresses: Iterable[str], image_column: str, caption_column: str, streaming: bool, window: int
) -> TableSource | StreamSource:
    """Parquet files; `datasets` keeps a copy in its own cache unless they are streamed.

    Raises:
        FileNotFoundError, ValueError: when a file or a column is missing.
    """
    addresses = list(addresses)
    name = addresses[0] if len(addresses) == 1 else f"{addresses[0]} and {len(addresses) - 1} more"
    words = {"data_files": addresses, "split": "train", "streaming": streaming}
    dataset = _load(name, "parquet", **words)
    folder = Path() if is_remote(addresses[0]) else Path(addresses[0]).parent
    return _source(dataset, name, image_column, caption_column, folder, streaming, window)


def open_saved(folder: Path, image_column: str, caption_column: str) -> TableSource:
    """A folder that Dataset.save_to_disk wrote."""
    from datasets import Dataset, load_from_disk

    dataset = load_from_disk(str(folder))
    if not isinstance(dataset, Dataset):
        names = ", ".join(dataset)
        raise ValueError(f"data.source: {folder} holds several sets; name one: {folder}/ {names}")
    return TableSource(dataset, str(folder), image_column, caption_column, folder)


def open_hub(
    name: str,
    subset: str | None,
    split: str,
    revision: str | None,
    image_column: str,
    caption_column: str,
    streaming: bool,
    window: int,
) -> TableSource | StreamSource:
    """A dataset of the Hugging Face hub, by name; no code of it is run.

    Raises:
        ValueError: when it cannot be had, or has no such column.
    """
    from datasets.config import HF_CACHE_HOME

    title = f"{HUB}{name}"
    words = {"split": split, "revision": revision, "streaming": streaming}
    dataset = _load(title, name, subset, **words)
    folder = Path(HF_CACHE_HOME).expanduser()  # the library's copies of a hub's files lie there
    return _source(dataset, title, image_column, caption_column, folder, streaming, window)


def _load(title: str, *args, **words):
    """datasets.load_dataset, quiet in a pipe, with errors that name the source."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*args, **words)
    except Exception as error:  # of network, file or format; the library has many kinds
        told = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"data.source: cannot read {title}: {told}") from error


def _source(dataset, name, image_column, caption_column, folder, streaming, window):
    if not streaming:
        return TableSource(dataset, name, image_column, caption_column, folder)
    length = count_rows(dataset, caption_column, name)
    return StreamSource(dataset, name, length, image_column, caption_column, folder, window)


def count_rows(dataset, caption_column: str, name: str) -> int:
    """The rows of a stream: as its description says, else counted once over the captions."""
    splits = dataset.info.splits or {}
    told = splits.get(str(dataset.split)) if dataset.split else None
    if told is not None and told.num_examples:
        return told.num_examples
    column = column_of(
        dict.fromkeys(dataset.column_names or ()), caption_column, CAPTION_COLUMNS, name
    )
    return sum(1 for _ in dataset.select_columns([column]))
