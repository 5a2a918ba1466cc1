"""Members of a tar archive by their headers alone: nothing is unpacked, nothing is run.

The format is POSIX ustar with the two extensions that writers use: GNU long names and pax headers
(POSIX.1-2017, pax, "ustar Interchange Format"). A member is told by its place in the file.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .records import BROKEN_HEADER, NOT_A_TAR, TRUNCATED

BLOCK = 512
MAX_NAME_BYTES = 4096
MAX_PAX_BYTES = 2**16
FILES, FOLDER = (b"0", b"\0", b"7"), b"5"
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"


class Member(NamedTuple):
    """One member: its data are the bytes start ... start + size of the archive."""

    name: str | None  # None where it is no UTF-8
    is_file: bool
    is_folder: bool
    start: int
    size: int


class TarError(ValueError):
    """The archive cannot be read on; `reason` says why."""

    def __init__(self, reason: str, offset: int):
        super().__init__(f"{reason} at byte {offset:,}")
        self.reason = reason


def read_members(file: BinaryIO) -> Iterator[Member]:
    """Every member in order; data are skipped, not read.

    Args:
        file: opened for reading, able to seek.

    Raises:
        TarError: after the last whole member, where the archive is damaged or has no end.
    """
    length = file.seek(0, 2)
    offset, long_name, pax = 0, None, {}
    while True:
        header = _read(file, offset, BLOCK, length)
        if not any(header):
            return
        kind, name, size = _parse(header, offset)
        start = offset + BLOCK
        if kind in (LONG_NAME, PAX):
            if size > (MAX_NAME_BYTES if kind == LONG_NAME else MAX_PAX_BYTES):
                raise TarError(BROKEN_HEADER, offset)
            data = _read(file, start, size, length)
            if kind == LONG_NAME:
                long_name = data.rstrip(b"\0")
            else:
                pax = _parse_pax(data, offset)
        elif kind not in (LONG_LINK, PAX_GLOBAL):
            name = pax.get(b"path", long_name if long_name is not None else name)
            size = _number(pax.get(b"size", b"%d" % size), 10, offset)
            if start + size > length:
                raise TarError(TRUNCATED, offset)
            yield Member(_text(name), kind in FILES, kind == FOLDER, start, size)
            long_name, pax = None, {}
        offset = start + -(-size // BLOCK) * BLOCK


def _read(file: BinaryIO, offset: int, size: int, length: int) -> bytes:
    """Bytes of the archive, which must be there; an archive ends in zeros, not before them."""
    if offset == 0 and length < BLOCK:
        raise TarError(NOT_A_TAR, 0)
    if offset + size > length:
        raise TarError(TRUNCATED, offset)
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise TarError(TRUNCATED, offset)
    return data


def _parse(header: bytes, offset: int) -> tuple[bytes, bytes, int]:
    """Kind, name and size of a header whose checksum is right."""
    blank = header[:148] + b" " * 8 + header[156:]
    reason = BROKEN_HEADER if offset else NOT_A_TAR
    try:
        told = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        raise TarError(reason, offset) from None
    if told != sum(blank):
        raise TarError(reason, offset)
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    if header[124] & 0x80:  # GNU: too large for octal digits
        size = int.from_bytes(header[125:136], "big") if header[124] == 0x80 else -1
    else:
        size = _number(header[124:136].strip(b" \0") or b"0", 8, offset)
    if size < 0:
        raise TarError(BROKEN_HEADER, offset)
    return header[156:157], name, size


def _parse_pax(data: bytes, offset: int) -> dict[bytes, bytes]:
    """Records "length key=value\\n" of a pax header."""
    records = {}
    while data:
        digits, _, rest = data.partition(b" ")
        length = _number(digits, 10, offset)
        record = data[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) or length > len(data) or not equals or value[-1:] != b"\n":
            raise TarError(BROKEN_HEADER, offset)
        records[key] = value[:-1]
        data = data[length:]
    return records


def _number(digits: bytes, base: int, offset: int) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise TarError(BROKEN_HEADER, offset)
    try:
        return int(digits, base)
    except ValueError:
        raise TarError(BROKEN_HEADER, offset) from None


def _text(name: bytes) -> str | None:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None
