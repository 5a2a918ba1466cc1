"""Addresses of files: on this machine or anywhere fsspec reaches, many at once by braces."""

import itertools
import re
import time
from pathlib import Path
from typing import BinaryIO

MAX_FILES = 1_000_000
ATTEMPTS = 3
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_BRACES = re.compile(r"\{([^{}]*)\}")


def expand_braces(address: str) -> list[str]:
    """Every address that a pattern stands for: {000..127} counts, {a,b} lists.

    Raises:
        ValueError: when a range runs backwards or stands for more than a million files.
    """
    pieces = _BRACES.split(address)
    choices = [
        [piece] if number % 2 == 0 else _choices(piece, address)
        for number, piece in enumerate(pieces)
    ]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_FILES:
        raise ValueError(f"data.source: {address} stands for {count:,} files")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str, address: str) -> list[str]:
    match = _RANGE.match(inside)
    if match is None:
        return inside.split(",")
    low, high = match.groups()
    if int(high) < int(low) or int(high) - int(low) >= MAX_FILES:
        raise ValueError(f"data.source: the range {{{inside}}} in {address} is empty or too long")
    width = len(low) if low.startswith("0") or len(low) == len(high) else 0
    return [f"{number:0{width}d}" for number in range(int(low), int(high) + 1)]


def is_remote(address: str) -> bool:
    """Whether fsspec is needed to read it."""
    return "://" in address or "::" in address


def _locate(address: str):
    """The file system of an address, one for each process, and the path within it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(f"data.source: cannot reach {address}: {error}") from None


def file_facts(address: str) -> tuple[int, str]:
    """Size in bytes, and something that changes when the file does."""
    if not is_remote(address):
        status = local_path(address).stat()
        return status.st_size, str(status.st_mtime_ns)
    system, path = _locate(address)
    info = system.info(path)
    changed = [str(info[key]) for key in ("ETag", "LastModified", "mtime") if info.get(key)]
    return int(info.get("size") or 0), " ".join(changed)


def open_file(address: str) -> BinaryIO:
    """The file, able to seek."""
    if not is_remote(address):
        return local_path(address).open("rb")
    system, path = _locate(address)
    return system.open(path, "rb")


def read_part(address: str, start: int, size: int) -> bytes:
    """A part of a remote file; what fails is tried three times."""
    system, path = _locate(address)
    for attempt in range(ATTEMPTS):
        try:
            return system.cat_file(path, start, start + size)
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(2**attempt)
    raise AssertionError


def local_path(address: str) -> Path:
    """A path of this machine, ~ and all."""
    return Path(address.removeprefix("file://")).expanduser()
