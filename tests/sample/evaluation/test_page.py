"""The page and its plots: whole, self-contained, and safe whatever a caption says."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from unclip_sample.evaluation import plots
from unclip_sample.evaluation.page import page_of
from unclip_sample.evaluation.results import (
    Column,
    Finding,
    Gallery,
    Plot,
    Results,
    Section,
    Series,
    Table,
    markdown,
    shown,
    verdict_of,
)

EVIL = '<script>alert("x")</script> & "quoted"'
FACTS = {"shown": {"Model": EVIL}, "warnings": [EVIL], "command": f"unclip-eval {EVIL}"}


def section(**changes):
    share = {"value": 0.25, "low": 0.1, "high": 0.4}
    columns = [Column("name", "text"), Column("R@1", "share"), Column("CMMD", digits=2)]
    table = Table(EVIL, columns, [[EVIL, share, 0.5], ["b", None, None]], EVIL)
    series = Series(EVIL, [1, 2, 4], [0.1, 0.3, 0.2], [0.0, 0.2, 0.1], [0.2, 0.4, 0.3], ["a"])
    plot = Plot(EVIL, "x", "y", [series, series], levels=[("real", 0.5)])
    gallery = Gallery(EVIL, ["one"], [(EVIL, ["a.png", None])], captions=[[EVIL, ""]])
    parts = {"tables": [table], "plots": [plot], "galleries": [gallery], "notes": [EVIL]}
    parts["findings"] = [Finding(EVIL, EVIL, "confirmed")]
    return Section("guidance", EVIL, EVIL, **{**parts, **changes})


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def test_a_page_is_whole_and_fetches_nothing(folder, check):
    results = Results(FACTS, {"guidance": section()})
    checker = check(page_of(EVIL, results, folder.joinpath))
    assert checker.tags.count("section") == 2 and checker.tags.count("svg") == 1
    assert "#guidance" in checker.links and "25 %" in checker.text and "10\u201340" in checker.text
    assert checker.text.count('alert("x")') >= 9


def test_results_come_back_from_their_file(folder):
    results = Results(FACTS, {"guidance": section(records=[{"values": {"R@1": 1.0}}])})
    results.save(folder)
    again = Results.load(folder)
    pages = [page_of("t", one, folder.joinpath) for one in (results, again)]
    assert pages[0] == pages[1] and again.sections["guidance"].records == [{"values": {"R@1": 1.0}}]
    (folder / "results.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="is no report's results"):
        Results.load(folder)
    with pytest.raises(FileNotFoundError, match="holds no results.json; make it by unclip-eval"):
        Results.load(folder / "nothing")


@pytest.mark.parametrize("log_x", [False, True])
def test_plots_keep_to_their_frame(log_x):
    series = Series("a", [5, 10, 50], [-0.2, 0.4, 0.31], [-0.3, 0.3, 0.2], [0, 0.5, 0.4])
    plot = Plot("t", "x", "y", [series, series], levels=[("level", 0.6)], log_x=log_x)
    tree = ElementTree.fromstring(plots.svg_of(plot, standalone=True))
    name = "{http://www.w3.org/2000/svg}"
    width, height = (float(n) for n in tree.get("viewBox").split()[2:])
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in tree.iter(f"{name}circle")]
    assert len(dots) == 6 and all(0 < x < width and 0 < y < height for x, y in dots)
    (x_5, y_5), (x_10, y_10), (x_50, y_50) = dots[:3]
    assert x_5 < x_10 < x_50 and y_5 > y_50 > y_10  # up is more
    assert ((x_50 - x_10) / (x_10 - x_5) < 3) == log_x
    assert "prefers-color-scheme: dark" in plots.svg_of(plot, standalone=True)


@pytest.mark.parametrize("ends", [(0, 1), (0.71, 0.78), (-3, 12), (0.2, 0.2), (1e-4, 3e-4), (0, 0)])
def test_ticks_are_round_and_span_the_values(ends):
    low, high = ends
    values = plots.ticks(low, high)
    steps = {round(b - a, 10) for a, b in zip(values, values[1:], strict=False)}
    assert values[0] <= low and values[-1] >= high and 3 <= len(values) <= 9 and len(steps) == 1
    assert f"{steps.pop():.0e}"[0] in "1252"


def test_numbers_are_shown_as_their_column_says():
    assert shown({"value": 0.126, "low": 0, "high": 1}, Column("a", "share")) == "13 %"
    assert shown(1234, Column("a", "count")) == "1,234" and shown(None, Column("a")) == "-"
    assert shown(0.12345, Column("a", digits=2)) == "0.12"
    table = Table(
        "t",
        [Column("a", "text"), Column("b", "share")],
        [["x", {"value": 0.5, "low": 0.25, "high": 0.75}]],
    )
    assert markdown(table) == "| a | b |\n| --- | --- |\n| x | 50 % (25 to 75) |"


def test_verdicts():
    assert [verdict_of(*ends) for ends in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1))] == [
        "confirmed",
        "contradicted",
        "undecided",
    ]
