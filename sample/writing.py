"""Files that are there whole or not at all."""

import errno
import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes, overwrite: bool) -> None:
    """Write beside path, then put the file in its place in one step.

    Raises:
        FileExistsError: when there is such a file, which may not be replaced unless overwrite.
        OSError: when the folder cannot be written.
    """
    staged = path.parent / f".{secrets.token_hex(8)}.tmp"
    # Not tempfile: its files are unreadable to others, whatever the umask says.
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            _link(staged, path)
        else:
            os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _link(staged: Path, path: Path) -> None:
    """Give staged its name, unless that is taken by now."""
    try:
        os.link(staged, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(staged, path)
