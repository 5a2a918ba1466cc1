"""What votes say: how often people take one of two over the other, and how sure that is.

Source: unCLIP = Ramesh et al. 2022 (arXiv 2204.06125), table 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unclip_sample.preference.page import FORMAT, VERSION, Key
from unclip_sample.request import RequestError

MAX_BYTES = 16 << 20
CHOICES = ("left", "right", "unsure")


@dataclass(frozen=True)
class WinRate:
    """How often the first was taken over the second in answer to one question."""

    question: str
    num_votes: int
    num_voters: int
    first: int  # votes for it
    second: int
    unsure: int
    win_rate: float  # of the first; an unsure vote is half a win for both
    half_width: float  # of its 95 % interval by the normal approximation, as table 1 prints it
    low: float  # of its 95 % interval: Wilson's, or over pairs where pairs have several votes
    high: float


def read_key(path: Path) -> Key:
    """The key that was written beside a page.

    Raises:
        RequestError: when it is none.
    """
    content = _read_json(path)
    try:
        if (content.pop("format"), content.pop("version")) != (FORMAT, VERSION):
            raise ValueError("of another kind")
        key = Key(**content)
        fits = all(isinstance(name, str) for name in (key.study, key.first, key.second))
        fits &= all(isinstance(side, bool) for side in key.pairs.values())
        if not fits or not key.questions:
            raise ValueError("wrong types")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RequestError(f"KEY: {path} is no key of a preference page") from None
    return key


def read_votes(path: Path, key: Key) -> tuple[str, list[dict[str, Any]]]:
    """The voter's name and the votes of a file that the page gave.

    Raises:
        RequestError: when it is none, or of another page, or answers a question twice.
    """
    content = _read_json(path)
    if content.get("format") != "unclip-votes" or content.get("version") != 1:
        raise RequestError(f"VOTES: {path} holds no votes of a preference page")
    if content.get("study") != key.study:
        raise RequestError(
            f"VOTES: {path} is of page {content.get('study')}, but the key of {key.study}"
        )
    votes, seen = content.get("votes"), set()
    for vote in votes if isinstance(votes, list) else [None]:
        if not isinstance(vote, dict) or not _is_vote(vote, key):
            raise RequestError(f"VOTES: {path} holds a vote that the page does not give: {vote}")
        which = (vote["pair"], vote["question"])
        if which in seen:
            raise RequestError(f"VOTES: {path} answers {which} twice")
        seen.add(which)
    return str(content.get("voter") or ""), votes


def _is_vote(vote: dict[str, Any], key: Key) -> bool:
    pair = vote.get("pair")
    return (
        isinstance(pair, int)
        and not isinstance(pair, bool)
        and 0 <= pair < len(key.pairs)
        and vote.get("question") in key.questions
        and vote.get("choice") in CHOICES
    )


def win_rates(paths: Sequence[Path], key: Key) -> list[WinRate]:
    """One row a question that was answered, in the order of the page's questions.

    Raises:
        RequestError: when a file cannot be used, or there are no votes.
    """
    sides = list(key.pairs.values())
    values: dict[str, list[tuple[int, int, float]]] = {name: [] for name in key.questions}
    contents = [path.read_bytes() for path in paths if path.is_file()]
    if len(set(contents)) < len(contents):
        raise RequestError("VOTES: two files are the same; give each voter's once")
    for voter, path in enumerate(paths):
        for vote in read_votes(path, key)[1]:
            first_side = "left" if sides[vote["pair"]] else "right"
            value = 0.5 if vote["choice"] == "unsure" else float(vote["choice"] == first_side)
            values[vote["question"]].append((vote["pair"], voter, value))
    rows = [_win_rate(name, votes) for name, votes in values.items() if votes]
    if not rows:
        raise RequestError("VOTES: no votes in these files")
    return rows


def _win_rate(question: str, votes: list[tuple[int, int, float]]) -> WinRate:
    """votes: pair, voter, and 1, 0 or 1/2 for the first."""
    from unclip.metrics.intervals import normal_half_width, wilson_interval

    values = [value for _, _, value in votes]
    wins, total = sum(values), len(values)
    pairs = {pair for pair, _, _ in votes}
    ends = wilson_interval(wins, total) if len(pairs) == total else _over_pairs(votes)
    return WinRate(
        question=question,
        num_votes=total,
        num_voters=len({voter for _, voter, _ in votes}),
        first=values.count(1.0),
        second=values.count(0.0),
        unsure=values.count(0.5),
        win_rate=wins / total,
        half_width=normal_half_width(wins, total),
        low=ends[0],
        high=ends[1],
    )


def _over_pairs(votes: list[tuple[int, int, float]]) -> tuple[float, float]:
    """The interval over pairs, each with the mean of its votes: votes on one pair go together."""
    import torch

    from unclip.metrics.intervals import bootstrap_interval

    by_pair: dict[int, list[float]] = {}
    for pair, _, value in votes:
        by_pair.setdefault(pair, []).append(value)
    means = [sum(values) / len(values) for values in by_pair.values()]
    return bootstrap_interval(torch.tensor(means))


def table(rows: Sequence[WinRate], key: Key) -> str:
    """The rows for people: percent, as in the paper's table 1."""
    lines = [f"how often {key.first} was taken over {key.second}"]
    lines.append("question    votes  voters   first  unsure  second   win rate, 95 %")
    for row in rows:
        rate = (
            f"{row.win_rate:6.1%} +- {100 * row.half_width:.1f}   [{row.low:.1%}, {row.high:.1%}]"
        )
        lines.append(
            f"{row.question:10s} {row.num_votes:6d} {row.num_voters:7d} {row.first:7d} "
            f"{row.unsure:7d} {row.second:7d}   {rate}"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[WinRate], key: Key) -> str:
    """The rows as JSON."""
    shown = {"study": key.study, "first": key.first, "second": key.second}
    return json.dumps({**shown, "questions": [asdict(row) for row in rows]}, indent=2)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"{path} is larger than {MAX_BYTES >> 20} MiB")
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read {path} ({error.strerror})") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds no JSON object")
    return content
