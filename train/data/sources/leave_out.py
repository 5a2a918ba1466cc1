"""A source without the samples that `unclip-data check --bad` found broken.

Without it another sample stands in for a broken one, and is seen twice in that epoch; with it every
good sample stands once in every epoch.
"""

import json
from pathlib import Path

import numpy as np

from .records import Fault, Source, hash_of


class KeptSource:
    """The samples of a source that are not left out, numbered anew in their order."""

    def __init__(self, source: Source, bad: set[int]):
        self.source, self.faults, self.sequential = source, source.faults, False
        self.kept = np.setdiff1d(np.arange(len(source)), sorted(bad))  # [N]
        self.fingerprint = hash_of([source.fingerprint, *map(str, sorted(bad))])

    def __len__(self) -> int:
        return len(self.kept)

    def name(self, index: int) -> str:
        """As in the whole source."""
        return self.source.name(int(self.kept[index]))

    def key(self, index: int) -> str:
        """As in the whole source."""
        return self.source.key(int(self.kept[index]))

    def captions(self, index: int) -> tuple[str, ...]:
        """As in the whole source."""
        return self.source.captions(int(self.kept[index]))

    def picture(self, index: int) -> bytes:
        """As in the whole source."""
        return self.source.picture(int(self.kept[index]))


def bad_list(source: Source, bad: dict[int, Fault]) -> dict:
    """What is written to the file: which samples of which source, and why."""
    rows = [[index, *fault] for index, fault in sorted(bad.items())]
    return {"fingerprint": source.fingerprint, "num_samples": len(source), "bad": rows}


def leave_out(source: Source, path: str | Path) -> Source:
    """The source without the samples that a file lists.

    Raises:
        FileNotFoundError, ValueError: when the file is missing, damaged or of another source.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"data.leave_out: there is no file {path}; write it with unclip-data check --bad {path}"
        )
    try:
        listed = json.loads(path.read_text())
        fingerprint, bad = listed["fingerprint"], {int(row[0]) for row in listed["bad"]}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"data.leave_out: {path} is not to be read: {error!r}") from None
    if fingerprint != source.fingerprint:
        raise ValueError(
            f"data.leave_out: {path} was written for other samples than those of data.source now; "
            "run unclip-data check --bad again"
        )
    if source.sequential:
        raise ValueError("data.leave_out: a stream is read as it comes; leave it out")
    if len(bad) >= len(source):
        raise ValueError(f"data.leave_out: {path} leaves nothing over")
    return KeptSource(source, bad)
