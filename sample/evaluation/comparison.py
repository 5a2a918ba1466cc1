"""Two reports on the same captions and seeds: differences with intervals, pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unclip.metrics.intervals import paired_difference
from unclip_sample.evaluation.page import page_of
from unclip_sample.evaluation.report import OTHERS, command_of
from unclip_sample.evaluation.results import (
    Cell,
    Column,
    Gallery,
    Results,
    Section,
    Table,
    write_text,
)
from unclip_sample.request import RequestError

COMPARISON = "comparison.html"
NUM_SHOWN = 12
LETTERS = ("A", "B")
SAME = ("judge", "data", "seed")


def compare_reports(a: Path, b: Path, words: Sequence[str]) -> Results:
    """The differences A - B of every section that holds values of single pictures.

    Raises:
        RequestError: when a folder holds no report, or the two were not asked the same.
    """
    read = [_load(folder) for folder in (a, b)]
    for what in SAME:
        if read[0].facts[what] != read[1].facts[what]:
            raise RequestError(
                f"FOLDER: {b} was made with {OTHERS[what]} than {a}; make both alike"
            )
    common = [name for name in read[0].sections if name in read[1].sections]
    sections = {
        name: section
        for name in common
        if (section := _compared(*(results.sections[name] for results in read)))
    }
    if not sections:
        raise RequestError(f"FOLDER: {a} and {b} share no captions; make the same sections of both")
    return Results(_facts(read, words), sections)


def _load(folder: Path) -> Results:
    try:
        return Results.load(folder)
    except (FileNotFoundError, ValueError) as error:
        raise RequestError(f"FOLDER: {error}") from None


def _compared(a: Section, b: Section) -> Section | None:
    """One section's differences, over the captions and seeds that both have."""
    rows_a, rows_b = ({_key(r): r for r in section.records} for section in (a, b))
    keys = [key for key in rows_a if key in rows_b]
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for key in keys:
        measures = tuple(n for n in rows_a[key]["values"] if n in rows_b[key]["values"])
        groups.setdefault(measures, []).append(key)
    rows: list[list[Cell]] = []
    for measures, members in groups.items():
        for measure in measures:
            values = [
                torch.tensor([rows[key]["values"][measure] for key in members])
                for rows in (rows_a, rows_b)
            ]
            rows.append(_row(measure, *values))
    if not rows:
        return None
    columns = [Column("measure", "text"), Column("captions", "count")]
    columns += [Column("A"), Column("B"), Column("A - B"), Column("", "text")]
    section = Section(a.name, a.title, a.question, [Table(a.title, columns, rows)])
    shown = keys[:NUM_SHOWN]
    pictures = [
        (letter, [f"{letter}/{rows[key]['picture']}" for key in shown])
        for letter, rows in zip(LETTERS, (rows_a, rows_b), strict=True)
    ]
    captions = [[""] * len(shown), [key[0] for key in shown]]
    section.galleries.append(
        Gallery("The same captions and seeds", [], pictures, captions=captions)
    )
    return section


def _row(measure: str, a: torch.Tensor, b: torch.Tensor) -> list[Cell]:
    difference, low, high = paired_difference(a, b)
    better = "A is better" if low > 0 else "B is better" if high < 0 else "no difference found"
    cell = {"value": difference, "low": low, "high": high}
    return [measure, len(a), float(a.double().mean()), float(b.double().mean()), cell, better]


def _key(record: dict[str, Any]) -> tuple[str, int]:
    return record["caption"], record["seed"]


def _facts(read: Sequence[Results], words: Sequence[str]) -> dict[str, Any]:
    first = read[0].facts
    shown = {
        letter: f"{results.facts['model']['name']} ({results.facts['model']['hash']})"
        for letter, results in zip(LETTERS, read, strict=True)
    }
    shown |= {name: first["shown"][name] for name in ("Judge", "Data", "Seed")}
    warnings = first["warnings"]
    return {"shown": shown, "warnings": warnings, "command": command_of(words)}


def write_comparison(comparison: Results, folders: Sequence[Path], output: Path) -> Path:
    """Write comparison.html with the pictures of both reports; its path."""
    places = dict(zip(LETTERS, folders, strict=True))

    def find(path: str) -> Path:
        letter, _, rest = path.partition("/")
        return places[letter] / rest

    path = output / COMPARISON
    write_text(path, page_of("A beside B", comparison, find))
    return path
