"""A folder of pictures: captions in metadata.jsonl, in a CSV file, or in texts of the same name."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from .records import (
    BROKEN_ROW,
    DUPLICATE,
    LARGE_FILE,
    LONG_CAPTION,
    MAX_CAPTION_BYTES,
    MAX_PICTURE_BYTES,
    MISSING_FILE,
    NO_CAPTION,
    NO_PICTURE,
    SUFFIXES,
    UNREADABLE,
    UNSAFE_NAME,
    BadSample,
    Fault,
    clean_caption,
    clean_captions,
    hash_of,
    is_safe_name,
)

METADATA = "metadata.jsonl"
FILE_COLUMNS = ("file_name", "image", "image_name", "image_path", "file", "path", "filename")
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "description", "title")


class FolderSource:
    """Pictures of a folder and of those within it, in the order of their names.

    Args:
        folder: with metadata.jsonl, else with one CSV file, else with a .txt beside each picture.
        image_column, caption_column: of metadata.jsonl or the CSV; the usual names when empty.

    Raises:
        FileNotFoundError, ValueError: when there is no folder, no table or no such column.
    """

    def __init__(self, folder: Path, image_column: str = "", caption_column: str = ""):
        if not folder.is_dir():
            raise FileNotFoundError(f"data.source: there is no folder {folder}")
        self.folder, self.faults, self.sequential = folder, [], False
        self.columns = (image_column, caption_column)
        self.sizes = dict(_walk(folder))
        found = dict(sorted(self._captions()))
        self.names, self.texts = list(found), list(found.values())
        pairs = zip(self.names, self.texts, strict=True)
        self.fingerprint = hash_of(f"{name}|{self.sizes[name]}|{text}" for name, text in pairs)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path within the folder."""
        return self.names[index]

    key = name

    def captions(self, index: int) -> tuple[str, ...]:
        """Its captions; a table may give several."""
        return self.texts[index]

    def picture(self, index: int) -> bytes:
        """The picture's file."""
        name = self.names[index]
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise BadSample(MISSING_FILE, name) from None
        except OSError:
            raise BadSample(UNREADABLE, name) from None

    def _captions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The pictures that have captions; what lacks something becomes a fault."""
        tables = sorted(self.folder.glob("*.csv"))
        if (self.folder / METADATA).is_file():
            rows = read_jsonl(self.folder / METADATA)
        elif len(tables) > 1:
            raise ValueError(f"data.source: {self.folder} holds several CSV files; keep one")
        elif tables:
            rows = read_csv(tables[0])
        else:
            yield from self._beside()
            return
        seen: set[str] = set()
        for where, row in rows:
            try:
                yield self._row(where, row, seen)
            except BadSample as error:
                self.faults.append(error.fault)

    def _row(self, where: str, row: dict | None, seen: set[str]) -> tuple[str, tuple[str, ...]]:
        """File name and captions of a table's row."""
        if row is None:
            raise BadSample(BROKEN_ROW, where)
        name = row.get(column_of(row, self.columns[0], FILE_COLUMNS, where))
        caption = row.get(column_of(row, self.columns[1], CAPTION_COLUMNS, where))
        if not isinstance(name, str) or not is_safe_name(name):
            raise BadSample(UNSAFE_NAME, where)
        name = name.removeprefix("./")
        if name not in self.sizes:
            raise BadSample(MISSING_FILE, name)
        if name in seen:
            raise BadSample(DUPLICATE, name)
        if self.sizes[name] > MAX_PICTURE_BYTES:
            raise BadSample(LARGE_FILE, name)
        seen.add(name)
        return name, clean_captions(caption, name)

    def _beside(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Pictures with the caption in a .txt of the same name."""
        pictures = {name for name in self.sizes if name.lower().endswith(SUFFIXES)}
        texts = {name for name in self.sizes if name.lower().endswith(".txt")}
        stems = {Path(name).with_suffix("").as_posix(): name for name in sorted(texts)}
        used = set()
        for name in sorted(pictures):
            stem = Path(name).with_suffix("").as_posix()
            try:
                if stem not in stems:
                    raise BadSample(NO_CAPTION, name)
                used.add(stems[stem])
                yield name, (self._text(stems[stem], name),)
            except BadSample as error:
                self.faults.append(error.fault)
        self.faults += [Fault(NO_PICTURE, name) for name in sorted(texts - used)]

    def _text(self, text_name: str, name: str) -> str:
        if self.sizes[text_name] > MAX_CAPTION_BYTES:
            raise BadSample(LONG_CAPTION, name)
        if self.sizes[name] > MAX_PICTURE_BYTES:
            raise BadSample(LARGE_FILE, name)
        try:
            return clean_caption((self.folder / text_name).read_bytes(), name)
        except OSError:
            raise BadSample(UNREADABLE, name) from None


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Path and size of every file below a folder; names that begin with a dot are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat().st_size


def column_of(row: dict, wanted: str, usual: tuple[str, ...], where: str) -> str:
    """The column to read: the one asked for, or the first of the usual ones that is there.

    Raises:
        ValueError: naming the columns that there are.
    """
    for name in (wanted,) if wanted else usual:
        if name in row:
            return name
    key = "data.image_column" if usual is FILE_COLUMNS else "data.caption_column"
    columns = ", ".join(map(str, list(row)[:12]))
    raise ValueError(f"{key}: {where} has no {wanted or 'usual one'}; there are {columns}")


def read_jsonl(path: Path) -> Iterator[tuple[str, dict | None]]:
    """Rows of a JSON lines file with their places; None for a line that is no object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield f"{path.name}, line {number}", row if isinstance(row, dict) else None


def read_csv(path: Path) -> Iterator[tuple[str, dict | None]]:
    """Rows of a CSV file with a header line, with their places; None for one of another length."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                whole = None not in row and None not in row.values()
                yield f"{path.name}, line {reader.line_num}", row if whole else None
        except csv.Error as error:
            raise ValueError(f"data.source: {path}, line {reader.line_num}: {error}") from None
