"""Pictures behind links that expire: files in a folder of the server's own, found by a token alone.

A name that a client sends is looked up among the tokens and never becomes part of a path.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple


class Link(NamedTuple):
    """A file and the time at which it goes."""

    path: Path
    media_type: str
    num_bytes: int
    expires: float


class Links:
    """Keeps files for lifetime_s, and the newest max_bytes of them at most."""

    def __init__(self, lifetime_s: float = 3600.0, max_bytes: int = 1 << 30):
        self.lifetime_s, self.max_bytes = lifetime_s, max_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="unclip-serve-")
        self._links: OrderedDict[str, Link] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes, form: str, media_type: str) -> str:
        """Keep a file; its name in links."""
        name = f"{secrets.token_urlsafe(24)}.{form}"
        path = Path(self._folder.name) / name
        path.write_bytes(content)
        expires = time.monotonic() + self.lifetime_s
        with self._lock:
            self._links[name] = Link(path, media_type, len(content), expires)
            self._sweep()
        return name

    def get(self, name: str) -> tuple[bytes, str] | None:
        """A file and its media type; None for a name that is not, or no longer, known."""
        with self._lock:
            self._sweep()
            link = self._links.get(name)
            return link and (link.path.read_bytes(), link.media_type)

    def close(self) -> None:
        """Remove all files."""
        with self._lock:
            self._links.clear()
            self._folder.cleanup()

    def _sweep(self) -> None:
        """Remove what has expired, and the oldest of what is too much."""
        now, total = time.monotonic(), sum(link.num_bytes for link in self._links.values())
        while self._links:
            name, link = next(iter(self._links.items()))
            if link.expires > now and total <= self.max_bytes:
                return
            link.path.unlink(missing_ok=True)
            total -= link.num_bytes
            del self._links[name]
