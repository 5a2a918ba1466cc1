"""unclip-data: quick help, one-line errors, a check that finds what is wrong."""

import json
import subprocess
import sys
import time

import pytest
from PIL import Image

from unclip_train.data.check import check_folder, save_sheet
from unclip_train.data.cli import main


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from unclip_train.data.cli import build_parser\n"
        "build_parser().format_help()\n"
        "heavy = {'torch', 'numpy', 'PIL', 'resvg_py', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - start < 5  # a loaded machine; 0.1 s when it is free


@pytest.mark.parametrize("command", [[], ["emoji"], ["emoji", "--output"], ["frame"], ["check"]])
def test_wrong_usage_exits_2(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["emoji", "--sizes", "2"], "sizes: 2 is not between"),
        (["emoji", "--limit", "0"], "limit must be at least 1"),
        (["emoji"], "holds other files"),
        (["icons"], "holds other files"),
    ],
)
def test_users_fault_is_one_line_and_exit_2(capsys, tmp_path, arguments, message):
    (tmp_path / "thesis.txt").write_text("mine")
    code, out, err = run(capsys, *arguments, "--output", tmp_path)
    assert code == 2 and not out
    assert message in err and err.count("\n") == 1 and err.startswith(f"unclip-data {arguments[0]}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_npm_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, _, err = run(capsys, "emoji", "--output", tmp_path / "emoji")
    assert code == 2 and "npm is needed" in err and err.count("\n") == 1


def test_debug_shows_the_trace(capsys, tmp_path):
    _, _, err = run(capsys, "check", tmp_path, "--debug")
    assert "Traceback" in err


def test_check_counts_a_sound_folder(capsys, set_folder):
    code, out, _ = run(capsys, "check", set_folder, "--format", "json")
    report = json.loads(out)
    assert code == 0 and report["faults"] == {}
    assert report["drawings"] == 32 and report["shared_concepts"] == 6
    assert report["held_out_drawings"] == 4 and report["held_out_pairs"] == 3
    assert report["by_style"] == {"noto": 9, "twemoji": 9, "fluent": 6, "flat": 6, "icon": 2}
    assert report["by_family"]["fluent"] == 12
    assert report["files_by_size"] == {"32": 32, "64": 32}
    assert report["captions"]["count"] > 100
    code, out, _ = run(capsys, "check", set_folder)
    assert code == 0 and "faults: none" in out and "32 drawings" in out


def test_check_finds_faults_by_reason(capsys, own_folder):
    noto = own_folder / "64" / "noto"
    whole = (noto / "rocket.png").read_bytes()
    (noto / "rocket.png").write_bytes(whole[:150])
    (noto / "red-apple.png").write_bytes(b"")
    Image.new("RGBA", (32, 32)).save(noto / "dog-face.png")
    (noto / "stranger.png").write_bytes(whole)
    for size in (32, 64):
        (own_folder / str(size) / "flat" / "rocket.png").unlink()
    (own_folder / "64" / "flat" / "abacus.png").unlink()  # still there at 32
    faults = check_folder(own_folder)["faults"]
    assert {reason: found["count"] for reason, found in faults.items()} == {
        "broken file": 2,
        "no file of any size": 1,
        "not in metadata.jsonl": 1,
        "wrong size": 1,
    }
    assert faults["wrong size"]["examples"] == ["64/noto/dog-face.png"]
    code, out, _ = run(capsys, "check", own_folder)
    assert code == 1 and "fault: broken file: 2 (64/noto/red-apple.png" in out


def test_check_without_metadata_says_what_to_do(capsys, tmp_path):
    code, _, err = run(capsys, "check", tmp_path)
    assert code == 2 and "SOURCE: " in err and "holds no picture with a caption" in err


def test_sheet_is_drawn_and_never_written_over(capsys, set_folder, tmp_path):
    sheet = tmp_path / "sheet.png"
    code, _, _ = run(capsys, "check", set_folder, "--sheet", sheet, "--size", 32)
    assert code == 0
    with Image.open(sheet) as picture:
        assert picture.width > 1000 and picture.height > 1000
    code, _, err = run(capsys, "check", set_folder, "--sheet", sheet)
    assert code == 2 and "exists" in err


def test_sheet_wants_a_png_in_a_folder_that_is_there(set_folder, tmp_path):
    with pytest.raises(ValueError, match="must end in .png"):
        save_sheet(set_folder, tmp_path / "sheet.jpg")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_sheet(set_folder, tmp_path / "none" / "sheet.png")
