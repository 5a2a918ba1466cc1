"""The script that writes a report's figures into pages."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip_sample.evaluation.results import (
    Column,
    Finding,
    Gallery,
    Plot,
    Results,
    Section,
    Series,
    Table,
)

SCRIPT = Path(__file__).parents[3] / "docs" / "write_evaluation.py"
PAGE = """before
<!-- evaluation: seen -->
old figures
<!-- end of seen -->
<!-- evaluation: seen plots -->
<!-- end of seen plots -->
<!-- evaluation: seen pictures -->
<!-- end of seen pictures -->
<!-- evaluation: findings -->
<!-- end of findings -->
<!-- evaluation: facts -->
<!-- end of facts -->
after
"""


@pytest.fixture
def write(monkeypatch):
    """Run the script with these words."""
    spec = spec_from_file_location("write_evaluation", SCRIPT)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["write_evaluation.py", *map(str, words)])
        module.main()

    return run


@pytest.fixture
def report(tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    for number, level in enumerate((0, 200)):
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(folder / f"{number}.png")
    section = Section(
        "seen",
        "Seen",
        "?",
        [Table("", [Column("R@1", "share")], [[{"value": 0.5, "low": 0.4, "high": 0.6}]])],
        [Plot("Likeness", "x", "y", [Series("a", [1, 2], [1, 2])])],
        [Gallery("Sheet", ["one", "two"], [("row", ["0.png", "1.png"])])],
        [Finding("said", "found", "undecided")],
        ["A note."],
    )
    facts = {"shown": {"Model": "emoji (12)"}, "warnings": [], "command": "unclip-eval report"}
    Results(facts, {"seen": section}).save(folder)
    return folder


def test_marked_places_are_filled_again_and_again(write, report, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    write(report, page)
    text = page.read_text()
    assert "old figures" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert "| R@1 |\n| --- |\n| 50 % (40 to 60) |\n\nA note." in text
    assert "![Likeness](page/seen-1.svg)" in text and "![Sheet](page/seen-1.png)" in text
    assert "Rows: row. Columns: one, two." in text and "| said | found | undecided |" in text
    assert "| Model | emoji (12) |" in text and "`unclip-eval report`" in text
    assert (tmp_path / "page/seen-1.svg").read_text().startswith("<svg")
    sheet = np.asarray(Image.open(tmp_path / "page/seen-1.png"))
    assert sheet.shape == (64, 132, 3)
    assert (sheet[:, :64] == 0).all() and (sheet[:, 68:] == 200).all()
    write(report, page)
    assert page.read_text() == text


def test_a_marker_that_cannot_be_filled_is_named(write, report, tmp_path):
    page = tmp_path / "page.md"
    for marker, complaint in (("grid", "no section 'grid'"), ("seen sounds", "is no marker")):
        page.write_text(f"<!-- evaluation: {marker} -->\n<!-- end of {marker} -->\n")
        with pytest.raises(SystemExit, match=complaint):
            write(report, page)
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="there is no <!-- evaluation"):
        write(report, page)
