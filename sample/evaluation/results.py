"""What a report holds, as plain data: tables, plots, pictures, findings. results.json is this.

A number with an interval is {"value", "low", "high"}; one without is a number; None is "none".
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
RESULTS = "results.json"
VERDICTS = ("confirmed", "contradicted", "undecided")

Cell = str | int | float | dict[str, float] | None


@dataclass(frozen=True)
class Column:
    """A column of numbers: "share" is shown in percent, else with `digits` after the point."""

    name: str
    kind: str = "number"  # "number", "share", "count" or "text"
    digits: int = 3
    better: str = ""  # "higher" or "lower"


@dataclass(frozen=True)
class Table:
    """Rows of cells, one for each column."""

    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one line; low and high are the ends of their intervals, labels stand beside."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plot:
    """Lines over a common pair of axes; `levels` are names and heights of horizontal lines."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    share: bool = False  # whether y is shown in percent
    levels: list[tuple[str, float]] = field(default_factory=list)
    log_x: bool = False


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures: a label and paths within the report's folder, None for a gap."""

    title: str
    headings: list[str]
    rows: list[tuple[str, list[str | None]]]
    note: str = ""
    captions: list[list[str]] = field(default_factory=list)  # below each picture, or empty


@dataclass(frozen=True)
class Finding:
    """What the paper says, what was found here, and whether that agrees."""

    paper: str
    here: str
    verdict: str  # one of VERDICTS


@dataclass
class Section:
    """One part of a report. `records` hold the values of single pictures, for comparisons."""

    name: str
    title: str
    question: str
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Section:
        """Read what asdict() gave."""
        tables = [
            Table(**{**table, "columns": [Column(**column) for column in table["columns"]]})
            for table in value["tables"]
        ]
        plots = [
            Plot(**{**plot, "series": [Series(**series) for series in plot["series"]]})
            for plot in value["plots"]
        ]
        galleries = [Gallery(**gallery) for gallery in value["galleries"]]
        findings = [Finding(**finding) for finding in value["findings"]]
        read = {"tables": tables, "plots": plots, "galleries": galleries, "findings": findings}
        return cls(**{**value, **read})


@dataclass
class Results:
    """All that a report says: `facts` of model, judge, data and settings, and the sections."""

    facts: dict[str, Any]
    sections: dict[str, Section] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write folder/results.json, whole or not at all."""
        sections = {name: asdict(section) for name, section in self.sections.items()}
        value = {"format": FORMAT, "facts": self.facts, "sections": sections}
        write_text(folder / RESULTS, json.dumps(value, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read folder/results.json.

        Raises:
            FileNotFoundError: when the folder holds none.
            ValueError: when it is damaged, or of another version.
        """
        path = Path(folder) / RESULTS
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no {RESULTS}; make it by unclip-eval report")
        try:
            value = json.loads(path.read_text("utf-8"))
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']} where {FORMAT} is read")
            sections = {
                name: Section.from_json(section) for name, section in value["sections"].items()
            }
            return cls(value["facts"], sections)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report's results ({error})") from None


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it there."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        staged.write_text(text, "utf-8")
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def verdict_of(low: float, high: float) -> str:
    """Whether an interval of a difference that should be positive lies above 0, below, or on it."""
    return VERDICTS[0] if low > 0 else VERDICTS[1] if high < 0 else VERDICTS[2]


def shown(value: Cell, column: Column) -> str:
    """A cell's number in words, without its interval."""
    if isinstance(value, dict):
        value = value["value"]
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if column.kind == "share":
        return f"{100 * value:.0f} %"
    return f"{value:,}" if column.kind == "count" else f"{value:.{column.digits}f}"


def shown_interval(value: Cell, column: Column) -> str:
    """A cell's interval in words, "" where it has none."""
    if not isinstance(value, dict):
        return ""
    low, high = (shown(value[end], column) for end in ("low", "high"))
    return f"{low.removesuffix(' %')}\u2013{high.removesuffix(' %')}"


def markdown(table: Table, names: Sequence[str] | None = None) -> str:
    """A table in Markdown, intervals in brackets."""
    columns = [column.name for column in table.columns] if names is None else list(names)
    lines = [columns, ["---"] * len(columns)]
    for row in table.rows:
        cells = []
        for cell, column in zip(row, table.columns, strict=True):
            interval = shown_interval(cell, column).replace("\u2013", " to ")
            cells.append(shown(cell, column) + (f" ({interval})" if interval else ""))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
