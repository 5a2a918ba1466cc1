"""Write the figures of a report into pages: between markers, so that nothing is typed by hand.

    python docs/write_evaluation.py report/ docs/evaluation.md
    python docs/write_evaluation.py report/ unclip/weights/emoji/README.md

A page says where what goes; what stands between is replaced:

    <!-- evaluation: heldout -->
    <!-- end of heldout -->

A section's name gives its tables and notes; "NAME plots" and "NAME pictures" its plots (SVG) and
sheets of its pictures (PNG), which are put beside the page in a folder of its name; "findings" what
the paper says and what was found, "facts" what was measured and how.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from PIL import Image

from unclip_sample.evaluation.plots import svg_of
from unclip_sample.evaluation.results import Gallery, Results, Section, markdown

MARKED = re.compile(r"(<!-- evaluation: ([^>]*?) -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)
TILE, GAP = 64, 4


def filled(text: str, results: Results, report: Path, page: Path) -> str:
    """The page with every marked place filled; SystemExit for one that the report cannot fill."""

    def fill(match: re.Match) -> str:
        return f"{match[1]}\n{content(match[2], results, report, page)}\n\n{match[4]}"

    return MARKED.sub(fill, text)


def content(marker: str, results: Results, report: Path, page: Path) -> str:
    """What a marker stands for, as Markdown."""
    if marker == "facts":
        rows = [f"| {name} | {value} |" for name, value in results.facts["shown"].items()]
        command = f"`{results.facts['command']}`"
        return "\n".join(["| what | value |", "| --- | --- |", *rows, f"| made by | {command} |"])
    if marker == "findings":
        return findings(results)
    name, _, part = marker.partition(" ")
    if name not in results.sections:
        raise SystemExit(f"{page}: the report has no section {name!r}; make it first")
    section = results.sections[name]
    if part == "plots":
        return write_plots(section, page)
    if part == "pictures":
        return write_pictures(section, report, page)
    if part:
        raise SystemExit(f"{page}: {marker!r} is no marker; give NAME, NAME plots, NAME pictures")
    parts = [
        (f"**{table.title}**\n\n" if table.title else "") + markdown(table)
        for table in section.tables
    ]
    return "\n\n".join([*parts, *section.notes])


def findings(results: Results) -> str:
    """What the paper says beside what was found."""
    rows = [
        f"| {finding.paper} | {finding.here} | {finding.verdict} |"
        for section in results.sections.values()
        for finding in section.findings
    ]
    return "\n".join(["| the paper | this model | |", "| --- | --- | --- |", *rows])


def write_plots(section: Section, page: Path) -> str:
    """Write the plots beside the page, and link them."""
    lines = []
    for number, plot in enumerate(section.plots, start=1):
        path = page.with_suffix("") / f"{section.name}-{number}.svg"
        path.parent.mkdir(exist_ok=True)
        path.write_text(svg_of(plot, standalone=True) + "\n", "utf-8")
        lines.append(f"![{plot.title}]({path.relative_to(page.parent).as_posix()})")
    return "\n".join(lines)


def write_pictures(section: Section, report: Path, page: Path) -> str:
    """Write a sheet of each gallery beside the page, and say what stands where."""
    parts = []
    for number, gallery in enumerate(section.galleries, start=1):
        path = page.with_suffix("") / f"{section.name}-{number}.png"
        path.parent.mkdir(exist_ok=True)
        sheet_of(gallery, report).save(path, optimize=True)
        link = f"![{gallery.title}]({path.relative_to(page.parent).as_posix()})"
        labels = [label for label, _ in gallery.rows if label]
        words = [gallery.title] if gallery.title else []
        words += [f"Rows: {'; '.join(labels)}"] if labels else []
        words += [f"Columns: {', '.join(gallery.headings)}"] if gallery.headings else []
        parts.append("\n\n".join([link, " ".join(f"{part}." for part in words)]).strip())
    return "\n\n".join(parts)


def sheet_of(gallery: Gallery, report: Path) -> Image.Image:
    """The gallery's pictures, row by row."""
    num_columns = max(len(pictures) for _, pictures in gallery.rows)
    size = [number * (TILE + GAP) - GAP for number in (num_columns, len(gallery.rows))]
    sheet = Image.new("RGB", size, "white")
    for row, (_, pictures) in enumerate(gallery.rows):
        for column, path in enumerate(pictures):
            if path is not None:
                with Image.open(report / path) as picture:
                    tile = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
                sheet.paste(tile, (column * (TILE + GAP), row * (TILE + GAP)))
    return sheet


def main() -> None:
    """Fill the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="folder that unclip-eval report wrote")
    parser.add_argument("pages", type=Path, nargs="+", help="Markdown files with markers")
    args = parser.parse_args()
    results = Results.load(args.report)
    for page in args.pages:
        text = page.read_text("utf-8")
        if not MARKED.search(text):
            raise SystemExit(f"{page}: there is no <!-- evaluation: NAME --> in it")
        page.write_text(filled(text, results, args.report, page), "utf-8")
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
