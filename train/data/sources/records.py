"""What every source of captioned pictures offers, and the names of what can be wrong with one."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

from unclip.pictures import BROKEN, NOT_A_PICTURE, TOO_MANY_PIXELS

# Of a sample.
NO_CAPTION = "no caption"
NO_PICTURE = "no picture"
EMPTY_CAPTION = "empty caption"
LONG_CAPTION = "caption too long"
NOT_UTF8 = "caption not UTF-8"
BROKEN_ROW = "broken row"
LARGE_FILE = "picture file too large"
TOO_SMALL = "picture too small"
BELOW_MIN_SIDE = "picture below data.min_side"
MISSING_FILE = "missing file"
UNREADABLE = "unreadable"
NO_EMBEDDING = "no embedding"
# Of a member of a shard.
UNSAFE_NAME = "unsafe name"
NOT_A_FILE = "not a plain file"
DUPLICATE = "duplicate name"
OTHER_MEMBER = "member of another kind"
# Of a whole shard.
NOT_A_TAR = "not a tar"
TRUNCATED = "truncated shard"
BROKEN_HEADER = "broken header"

REASONS = (
    *(NO_CAPTION, NO_PICTURE, EMPTY_CAPTION, LONG_CAPTION, NOT_UTF8, BROKEN_ROW, LARGE_FILE),
    *(TOO_SMALL, BELOW_MIN_SIDE, MISSING_FILE, UNREADABLE, NO_EMBEDDING),
    *(UNSAFE_NAME, NOT_A_FILE, DUPLICATE, OTHER_MEMBER, NOT_A_TAR, TRUNCATED, BROKEN_HEADER),
    *(NOT_A_PICTURE, TOO_MANY_PIXELS, BROKEN),
)
LEFT_OUT = {BELOW_MIN_SIDE}  # of sound samples that are not wanted
HARMLESS = {OTHER_MEMBER, *LEFT_OUT}  # told, but nothing is broken

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
MAX_CAPTION_BYTES = 2**16
MAX_PICTURE_BYTES = 2**27
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Fault(NamedTuple):
    """One thing that cannot be used."""

    reason: str  # one of REASONS
    name: str  # of the file, row or member


class BadSample(ValueError):
    """A sample that cannot be used, and why."""

    def __init__(self, reason: str, name: str):
        super().__init__(f"{name}: {reason}")
        self.fault = Fault(reason, name)


class Source(Protocol):
    """Captioned pictures 0 ... len - 1, undecoded, in an order that does not change."""

    faults: list[Fault]  # found while listing; what they name has no number
    fingerprint: str  # changes when the list of samples does
    sequential: bool  # whether reading out of order is slow; it then has a window

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a message calls the sample."""

    def key(self, index: int) -> str:
        """The sample's name within the source, wherever that lies."""

    def captions(self, index: int) -> tuple[str, ...]:
        """At least one caption; BadSample where there is none."""

    def picture(self, index: int) -> bytes:
        """The picture's file content; BadSample where it cannot be read."""


def clean_caption(raw: bytes | str, name: str) -> str:
    """A caption on one line.

    Raises:
        BadSample: when it is empty, longer than 64 KiB, or not UTF-8.
    """
    if len(raw) > MAX_CAPTION_BYTES:
        raise BadSample(LONG_CAPTION, name)
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        text.encode()
    except UnicodeError:
        raise BadSample(NOT_UTF8, name) from None
    text = " ".join(_CONTROL.sub(" ", text.removeprefix("\ufeff")).split())
    if not text:
        raise BadSample(EMPTY_CAPTION, name)
    return text


def clean_captions(value, name: str) -> tuple[str, ...]:
    """The captions of a table's cell: a text, or a list of texts of which the empty ones go."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = [text for text in values if isinstance(text, str | bytes)]
    if not texts:
        raise BadSample(NO_CAPTION, name)
    if len(texts) > 1:
        texts = [text for text in texts if text.strip()] or texts[:1]
    return tuple(clean_caption(text, name) for text in texts)


def is_safe_name(name: str) -> bool:
    """Whether a name stays below the folder that it is relative to."""
    parts = PurePosixPath(name).parts
    unsafe = not parts or name.startswith("/") or ".." in parts or "\\" in name
    return not unsafe and not _CONTROL.search(name)


def hash_of(lines: Iterable[str]) -> str:
    """A short name for a list of lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:16]
