"""A report as one HTML file: nothing is fetched, pictures stand in it, light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import lru_cache
from html import escape
from pathlib import Path

from unclip_sample.evaluation import plots
from unclip_sample.evaluation.results import (
    Cell,
    Column,
    Finding,
    Gallery,
    Results,
    Section,
    Table,
    shown,
    shown_interval,
)

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --accent: #2563c9; --good: #0f7a52;
  --bad: #b3261e; --unsure: #8a6d00; --shade: #f0f2f6; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1116; --accent: #7db0ff; --good: #57d3a3;
  --bad: #ff8a80; --unsure: #e4c55a; --shade: #1f242e; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.6rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main, header > div { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding: 2.6rem 0 1.4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 0.5rem; }
h2 { font-size: 1.4rem; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 0.35rem; }
h3 { font-size: 0.95rem; margin: 1.7rem 0 -0.3rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
nav { position: sticky; top: 0; z-index: 1; background: var(--page);
  border-bottom: 1px solid var(--grid); }
nav div { max-width: 66rem; margin: 0 auto; padding: 0.55rem 1.25rem; display: flex;
  gap: 0.15rem 1.1rem; overflow-x: auto; white-space: nowrap; font-size: 0.875rem; }
section { background: var(--paper); border: 1px solid var(--grid); border-radius: 14px;
  padding: 1.5rem 1.6rem 1.7rem; margin: 1.4rem 0; }
.question, .note, figcaption { color: var(--muted); }
.question { margin: 0; max-width: 48rem; }
.note { font-size: 0.875rem; margin: 0.55rem 0 0; max-width: 48rem; }
.warning { border-left: 4px solid var(--unsure); background: var(--shade); padding: 0.7rem 1rem;
  border-radius: 0 8px 8px 0; margin: 1rem 0 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr));
  gap: 0.9rem 1.4rem; margin: 1.3rem 0 0; }
.facts dt { color: var(--muted); font-size: 0.8rem; } .facts dd { margin: 0; }
.facts dd { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin-top: 0.9rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 0.9375rem; }
th { text-align: right; font-weight: 600; font-size: 0.8125rem; color: var(--muted);
  vertical-align: bottom; }
th small { font-weight: 400; }
th, td { padding: 0.5rem 0.7rem; border-bottom: 1px solid var(--grid); }
td { text-align: right; vertical-align: top; } tr:last-child td { border-bottom: 0; }
td.text, th.text { text-align: left; } th:first-child, td:first-child { padding-left: 0.2rem; }
tbody tr:hover { background: var(--shade); }
td small { color: var(--muted); display: block; font-size: 0.75rem; white-space: nowrap; }
.bar { display: block; height: 3px; border-radius: 2px; background: var(--grid); margin-top: 4px;
  overflow: hidden; min-width: 3.5rem; }
.bar i { display: block; height: 100%; background: var(--s0); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem;
  margin-top: 1.4rem; }
figure { margin: 0; } figcaption { font-size: 0.875rem; margin-bottom: 0.4rem; }
svg.plot { width: 100%; height: auto; display: block; max-width: 34rem; }
.gallery { margin-top: 0.4rem; display: grid; gap: 5px; width: max-content; }
.gallery > span { font-size: 0.8125rem; color: var(--muted); align-self: center;
  max-width: 15rem; padding-right: 0.6rem; line-height: 1.3; }
.gallery > b { font-size: 0.75rem; font-weight: 600; color: var(--muted); align-self: end;
  text-align: center; padding-bottom: 2px; max-width: 6rem; line-height: 1.25; }
.gallery figure { width: var(--tile); }
.gallery img, .gallery .gap { width: var(--tile); height: var(--tile); border-radius: 7px;
  display: block; box-shadow: 0 0 0 1px var(--grid); background: #fff; }
.gallery .gap { background: none; box-shadow: none; }
.gallery figcaption { font-size: 0.72rem; line-height: 1.25; margin: 3px 0 4px; }
.verdict { font-weight: 600; white-space: nowrap; } .confirmed { color: var(--good); }
.contradicted { color: var(--bad); } .undecided { color: var(--unsure); }
footer { color: var(--muted); font-size: 0.8125rem; padding: 1rem 0 3rem; }
footer code { overflow-wrap: anywhere; }
@media (max-width: 40rem) { section { padding: 1.1rem 1rem; } h1 { font-size: 1.6rem; } }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""
Find = Callable[[str], Path]
MARKS = {"confirmed": "\u2713", "contradicted": "\u2717", "undecided": "?"}
TILE = 92  # pixels at which a picture is shown


def page_of(title: str, results: Results, find: Find) -> str:
    """The HTML of a report; find(path) is where a picture lies."""
    sections = list(results.sections.values())
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections)
    findings = [finding for section in sections for finding in section.findings]
    verdicts = _verdicts(findings) if findings else ""
    body = "".join(section_html(section, find) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{plots.COLOURS}{plots.STYLE}{STYLE}</style></head>"
        f"<body>{_header(title, results)}<nav><div>{links}</div></nav>"
        f"<main>{verdicts}{body}{_footer(results)}</main></body></html>\n"
    )


def _header(title: str, results: Results) -> str:
    facts = results.facts
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts["shown"].items()
    )
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in facts["warnings"])
    inside = f'<h1>{escape(title)}</h1>{warnings}<dl class="facts">{pairs}</dl>'
    return f"<header><div>{inside}</div></header>"


def _footer(results: Results) -> str:
    return (
        "<footer><p>Numbers in small print below a figure are the ends of its 95 % interval: "
        "Wilson's for shares of captions, else by bootstrap over captions (2,000 draws). How each "
        "figure is made stands in docs/evaluation.md.</p>"
        f"<p>Made by <code>{escape(results.facts['command'])}</code></p></footer>"
    )


def _verdicts(findings: list[Finding]) -> str:
    rows = "".join(
        f'<tr><td class="text">{escape(f.paper)}</td><td class="text">{escape(f.here)}</td>'
        f'<td class="text verdict {f.verdict}">{MARKS[f.verdict]} {f.verdict}</td></tr>'
        for f in findings
    )
    head = '<tr><th class="text">the paper</th><th class="text">this model</th><th></th></tr>'
    return (
        '<section id="findings"><h2>What the paper says, and what was found here</h2>'
        '<p class="question">Confirmed or contradicted where the 95 % interval of the difference '
        "leaves out 0; undecided otherwise.</p>"
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
        "</section>"
    )


def section_html(section: Section, find: Find) -> str:
    """One section: question, tables, plots, pictures, notes."""
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts.append(f'<p class="question">{escape(section.question)}</p>')
    parts += [table_html(table) for table in section.tables]
    if section.plots:
        figures = "".join(
            f"<figure><figcaption>{escape(plot.title)}</figcaption>{plots.svg_of(plot)}</figure>"
            for plot in section.plots
        )
        parts.append(f'<div class="plots">{figures}</div>')
    parts += [gallery_html(gallery, find) for gallery in section.galleries]
    parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
    return f'<section id="{section.name}">{"".join(parts)}</section>'


def table_html(table: Table) -> str:
    """A table with its intervals in small print and a bar below each share."""
    heads = "".join(_head(column) for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(_cell(c, k) for c, k in zip(row, table.columns, strict=True))}</tr>"
        for row in table.rows
    )
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'{title}<div class="scroll">{body}</div>{note}'


def _head(column: Column) -> str:
    kind = ' class="text"' if column.kind == "text" else ""
    arrow = {"higher": " \u2191", "lower": " \u2193", "": ""}[column.better]
    return f"<th{kind}>{escape(column.name)}{arrow}</th>"


def _cell(cell: Cell, column: Column) -> str:
    if column.kind == "text":
        return f'<td class="text">{escape(shown(cell, column))}</td>'
    interval = shown_interval(cell, column)
    small = f"<small>{escape(interval)}</small>" if interval else ""
    bar = ""
    if column.kind == "share" and cell is not None:
        value = cell["value"] if isinstance(cell, dict) else float(cell)
        bar = f'<span class="bar"><i style="width:{100 * min(max(value, 0), 1):.1f}%"></i></span>'
    return f"<td>{escape(shown(cell, column))}{small}{bar}</td>"


def gallery_html(gallery: Gallery, find: Find) -> str:
    """Rows of pictures, embedded."""
    labelled = any(label for label, _ in gallery.rows)
    num_columns = max(len(pictures) for _, pictures in gallery.rows)
    first = "auto " if labelled else ""
    cells = []
    if gallery.headings:
        names = [*([""] if labelled else []), *gallery.headings]
        names += [""] * (num_columns + labelled - len(names))
        cells += [f"<b>{escape(name)}</b>" for name in names]
    for number, (label, pictures) in enumerate(gallery.rows):
        below = gallery.captions[number] if gallery.captions else [""] * len(pictures)
        cells += [f"<span>{escape(label)}</span>"] if labelled else []
        cells += [_tile(p, text, find) for p, text in zip(pictures, below, strict=True)]
        cells += [_tile(None, "", find)] * (num_columns - len(pictures))
    title = f"<h3>{escape(gallery.title)}</h3>" if gallery.title else ""
    note = f'<p class="note">{escape(gallery.note)}</p>' if gallery.note else ""
    style = f"--tile:{TILE}px;grid-template-columns:{first}repeat({num_columns},{TILE}px)"
    inside = f'<div class="gallery" style="{style}">{"".join(cells)}</div>'
    return f'{title}{note}<div class="scroll">{inside}</div>'


def _tile(path: str | None, text: str, find: Find) -> str:
    caption = f"<figcaption>{escape(text)}</figcaption>" if text else ""
    if path is None:
        return '<figure><div class="gap"></div></figure>'
    alt = escape(text or path.rsplit("/", 1)[-1], quote=True)
    return f'<figure><img alt="{alt}" src="{data_uri(find(path))}">{caption}</figure>'


@lru_cache(maxsize=10_000)
def data_uri(path: Path) -> str:
    """A PNG file's pixels, without what else it carries, as a URI that holds them."""
    from PIL import Image

    with Image.open(path) as picture, io.BytesIO() as file:
        bare = picture.convert("RGB")
        bare.info = {}
        bare.save(file, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
