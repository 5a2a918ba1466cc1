"""Tar shards as img2dataset and WebDataset write them, read by number through an index.

A sample is the members of one shard that share their name up to the first dot: a picture and a
caption (.txt, or "caption" of .json). The index says where they lie, so that samples can be read in
any order; it is kept as JSON in a cache folder and made again when a shard has changed.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unclip_train.data.drawings import write_whole

from .addresses import file_facts, is_remote, local_path, open_file, read_part
from .records import (
    DUPLICATE,
    EMPTY_CAPTION,
    LARGE_FILE,
    LONG_CAPTION,
    MAX_CAPTION_BYTES,
    MAX_PICTURE_BYTES,
    MISSING_FILE,
    NO_CAPTION,
    NO_PICTURE,
    NOT_A_FILE,
    OTHER_MEMBER,
    SUFFIXES,
    TRUNCATED,
    UNREADABLE,
    UNSAFE_NAME,
    BadSample,
    Fault,
    clean_caption,
    hash_of,
    is_safe_name,
)
from .tar import Member, TarError, read_members

INDEX_VERSION = 1
MAX_OPEN_SHARDS = 32
PICTURE, TEXT, JSON = "picture", "txt", "json"
# Columns of an index: the picture's place, the caption's place, and whether that is JSON.
PICTURE_START, PICTURE_SIZE, CAPTION_START, CAPTION_SIZE, CAPTION_IS_JSON = range(5)


class ShardSource:
    """Samples of tar shards; each is found once, what is broken is a fault.

    Args:
        addresses: of the shards, local or fsspec's.
        cache: folder for their indices.
    """

    def __init__(self, addresses: Iterable[str], cache: Path):
        self.addresses = list(addresses)
        threads = 8 if any(map(is_remote, self.addresses)) else 1
        with ThreadPoolExecutor(threads) as pool:
            indices = list(pool.map(lambda address: load_index(address, cache), self.addresses))
        self.faults = [Fault(*fault) for index in indices for fault in index["faults"]]
        self.keys = [key for index in indices for key in index["keys"]]
        self.places = np.concatenate([_places(index) for index in indices])  # [N, 5]
        counts = [len(index["keys"]) for index in indices]
        self.shard_of = np.repeat(np.arange(len(indices)), counts)
        self.fingerprint = hash_of(str(index["file"]) for index in indices)
        self.sequential = False
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        """The shard and the sample's name in it."""
        return f"{self.addresses[self.shard_of[index]]}/{self.keys[index]}"

    def key(self, index: int) -> str:
        """The sample's name in its shard."""
        return self.keys[index]

    def captions(self, index: int) -> tuple[str, ...]:
        """Its one caption."""
        place = self.places[index]
        raw = self._read(index, place[CAPTION_START], place[CAPTION_SIZE])
        return (parse_caption(raw, bool(place[CAPTION_IS_JSON]), self.name(index)),)

    def picture(self, index: int) -> bytes:
        """The picture's file."""
        place = self.places[index]
        return self._read(index, place[PICTURE_START], place[PICTURE_SIZE])

    def _read(self, index: int, start: int, size: int) -> bytes:
        shard, start, size = int(self.shard_of[index]), int(start), int(size)
        try:
            if is_remote(self.addresses[shard]):
                data = read_part(self.addresses[shard], start, size)
            else:
                data = os.pread(self._descriptor(shard), size, start)
        except FileNotFoundError:
            raise BadSample(MISSING_FILE, self.name(index)) from None
        except OSError:
            raise BadSample(UNREADABLE, self.name(index)) from None
        if len(data) != size:
            raise BadSample(TRUNCATED, self.name(index))
        return data

    def _descriptor(self, shard: int) -> int:
        """The open shard; pread leaves no position behind, so forks may share it."""
        if shard not in self._open:
            while len(self._open) >= MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(local_path(self.addresses[shard]), os.O_RDONLY)
        self._open.move_to_end(shard)
        return self._open[shard]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": OrderedDict()}


def _places(index: dict) -> np.ndarray:
    return np.array(index["places"], dtype=np.int64).reshape(-1, 5)


def parse_caption(raw: bytes, is_json: bool, name: str) -> str:
    """The caption of a .txt or .json member.

    Raises:
        BadSample: when there is none, or it cannot be used.
    """
    if not is_json:
        return clean_caption(raw, name)
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadSample(NO_CAPTION, name) from None
    caption = row.get("caption") if isinstance(row, dict) else None
    if not isinstance(caption, str):
        raise BadSample(NO_CAPTION, name)
    return clean_caption(caption, name)


def load_index(address: str, cache: Path) -> dict:
    """The index of a shard, from the cache or made anew: {"file", "keys", "places", "faults"}."""
    try:
        size, changed = file_facts(address)
    except OSError as error:
        reason = MISSING_FILE if isinstance(error, FileNotFoundError) else UNREADABLE
        return _index([address], {}, [Fault(reason, address)])
    file = [address, size, changed, INDEX_VERSION]
    path = cache / f"{hash_of(map(str, file))}.json"
    try:
        kept = json.loads(path.read_text())
        if kept["file"] == file and len(kept["keys"]) == len(_places(kept)):
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not one of ours
    index = make_index(address, file)
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(index).encode())
    return index


def _index(file: list, places: dict[str, list[int]], faults: list[Fault]) -> dict:
    return {
        "file": file,
        "keys": list(places),
        "places": list(places.values()),
        "faults": [list(fault) for fault in faults],
    }


def make_index(address: str, file: list) -> dict:
    """Read the headers of a shard and its captions; see load_index."""
    faults: list[Fault] = []
    found: dict[str, dict[str, Member]] = {}
    try:
        with open_file(address) as shard:
            try:
                for member in read_members(shard):
                    _sort_in(member, found, faults, address)
            except TarError as error:
                faults.append(Fault(error.reason, address))
            places = _complete(shard, found, faults, address)
    except OSError:
        return _index(file, {}, [*faults, Fault(UNREADABLE, address)])
    return _index(file, places, faults)


def _sort_in(
    member: Member, found: dict[str, dict[str, Member]], faults: list[Fault], address: str
) -> None:
    """Put a member with its sample, or say why it is left out."""
    if member.is_folder:
        return
    name = member.name
    if name is None or not is_safe_name(name):
        faults.append(Fault(UNSAFE_NAME, f"{address}/{ascii(name)[:80]}"))
        return
    if not member.is_file:
        faults.append(Fault(NOT_A_FILE, f"{address}/{name}"))
        return
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    suffix = suffix.lower()
    part = PICTURE if suffix in SUFFIXES else suffix
    if part not in (PICTURE, TEXT, JSON) or not stem:
        faults.append(Fault(OTHER_MEMBER, f"{address}/{name}"))
        return
    parts = found.setdefault(folder + slash + stem, {})
    if part in parts:
        faults.append(Fault(DUPLICATE, f"{address}/{name}"))
        return
    parts[part] = member


def _complete(
    shard: BinaryIO, found: dict[str, dict[str, Member]], faults: list[Fault], address: str
) -> dict[str, list[int]]:
    """The places of samples that have a picture and a caption that can be used."""
    places = {}
    for key, parts in found.items():
        try:
            places[key] = _place(shard, parts, f"{address}/{key}")
        except BadSample as error:
            faults.append(error.fault)
    return places


def _place(shard: BinaryIO, parts: dict[str, Member], name: str) -> list[int]:
    """A row of the index; BadSample when the sample lacks something."""
    picture = parts.get(PICTURE)
    if picture is None:
        raise BadSample(NO_PICTURE, name)
    if picture.size > MAX_PICTURE_BYTES:
        raise BadSample(LARGE_FILE, name)
    caption = parts.get(TEXT) or parts.get(JSON)
    if caption is None:
        raise BadSample(NO_CAPTION, name)
    if not caption.size:
        raise BadSample(EMPTY_CAPTION, name)
    is_json = TEXT not in parts
    if caption.size > (16 if is_json else 1) * MAX_CAPTION_BYTES:
        raise BadSample(LONG_CAPTION, name)
    shard.seek(caption.start)
    parse_caption(shard.read(caption.size), is_json, name)
    return [picture.start, picture.size, caption.start, caption.size, int(is_json)]
