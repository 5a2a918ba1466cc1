"""unclip-eval as a whole: a report, the same again, two compared, and what it refuses."""

import json
import os
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip_sample.evaluation.report import sections_for
from unclip_sample.evaluation.results import Results
from unclip_sample.evaluation.words import SIZES, parser, sizes_of

QUICK = ("--num", 2, "--quiet", "--batch-size", 16)


@pytest.fixture
def report(evaluate, tiny_model, judge_folder, drawings):
    def run(output, *words, model=tiny_model, judge=judge_folder, data=drawings):
        judged = ["--judge", judge] if judge else []
        given = ["--model", model, "--data", data, *judged, "--output", output]
        return evaluate("report", *given, *QUICK, *words)

    return run


def test_every_section_of_drawings(report, small, tmp_path, check):
    code, said, complaints = report(tmp_path / "r", "--format", "json")
    assert (code, complaints) == (0, "")
    sections = json.loads(said)["sections"]
    assert sections == [name for name in SIZES if name != "pairs"]
    page = (tmp_path / "r/report.html").read_text("utf-8")
    checker = check(page)
    assert checker.tags.count("section") == len(sections) + 1  # and the findings
    assert "No judge was given" not in page and str(tmp_path) not in page
    results = Results.load(tmp_path / "r")
    assert results.facts["judge"]["independent"] and results.facts["warnings"] == []
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "r/pictures").rglob("*.png")}
    code, said, _ = report(tmp_path / "r", "--format", "json", "--sections", "grid", "heldout")
    assert code == 0 and json.loads(said)["drawn"] == 0
    assert json.loads(said)["sections"] == sections  # the others are kept
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "r/pictures").rglob("*.png")}
    again = Results.load(tmp_path / "r")
    assert before == after and again.sections == results.sections


def test_the_models_own_encoder_is_named(report, tiny_model, tmp_path):
    code, _, _ = report(tmp_path / "r", "--sections", "heldout", judge=None)
    assert code == 0
    assert "graded by its own CLIP" in (tmp_path / "r/report.html").read_text("utf-8")
    assert not Results.load(tmp_path / "r").facts["judge"]["independent"]
    code, _, _ = report(tmp_path / "q", "--sections", "heldout", judge=tiny_model / "clip")
    assert not Results.load(tmp_path / "q").facts["judge"]["independent"]


@pytest.fixture
def pictures(tmp_path):
    """Six captioned pictures that are no drawings."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for number in range(6):
        Image.new("RGB", (90, 70), (40 * number, 10, 200)).save(folder / f"{number}.jpg")
        lines.append(json.dumps({"file_name": f"{number}.jpg", "text": f"shade {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_captioned_pictures(report, small, pictures, tmp_path, check):
    sections = ["pairs", "variations", "components", "lettering", "nearest", "diversity", "grid"]
    words = ("--format", "json", "--sections", *sections)
    code, said, complaints = report(tmp_path / "r", *words, data=pictures)
    assert (code, complaints) == (0, "")
    assert sections_for(["pairs"], None) == [
        name for name in SIZES if name not in ("heldout", "seen", "compositions")
    ]
    check((tmp_path / "r/report.html").read_text("utf-8"))
    real = Image.open(
        tmp_path / "r" / Results.load(tmp_path / "r").sections["pairs"].galleries[0].rows[1][1][0]
    )
    assert real.size == (64, 64)


def test_a_report_beside_itself_and_another(report, evaluate, make_model, tmp_path, check):
    words = ("--sections", "heldout")
    assert report(tmp_path / "a", *words)[0] == 0
    assert report(tmp_path / "b", *words, model=make_model)[0] == 0
    code, said, _ = evaluate("compare", tmp_path / "a", tmp_path / "a", "--format", "json")
    assert code == 0 and {row["A - B"]["value"] for row in json.loads(said)} == {0.0}
    output = ("--output", tmp_path / "c", "--format", "json")
    code, said, _ = evaluate("compare", tmp_path / "a", tmp_path / "b", *output)
    rows = {row["measure"]: row for row in json.loads(said)[:4]}
    score = rows["CLIP score"]
    values = [
        [
            r["values"]["CLIP score"]
            for r in Results.load(tmp_path / name).sections["heldout"].records
        ]
        for name in "ab"
    ]
    assert score["A - B"]["value"] == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert score["A - B"]["low"] < score["A - B"]["value"] < score["A - B"]["high"]
    checker = check((tmp_path / "c/comparison.html").read_text("utf-8"))
    assert checker.tags.count("img") == 2 * 2
    assert report(tmp_path / "s", *words, "--seed", 1)[0] == 0
    code, _, complaint = evaluate("compare", tmp_path / "a", tmp_path / "s")
    assert code == 2 and "was made with another seed" in complaint


@pytest.fixture
def make_model(loaded, tmp_path):
    """The tiny model with other defaults: other pictures of the same captions."""
    folder = tmp_path / "other"
    loaded.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["default_guidance"]["decoder"] = 5.0
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_the_head_says_when_the_decoder_is_guided(report, make_model, tmp_path):
    index = json.loads((make_model / "model_index.json").read_text())
    index["default_guidance_interval"] = [0, 900]
    (make_model / "model_index.json").write_text(json.dumps(index))
    assert report(tmp_path / "r", "--sections", "grid", model=make_model)[0] == 0
    assert "decoder 5 (from t = 900 to 0)" in (tmp_path / "r/report.html").read_text("utf-8")
    assert Results.load(tmp_path / "r").facts["settings"]["guidance_interval"] == [0, 900]


def test_a_folder_of_another_model_is_refused(report, make_model, tmp_path):
    assert report(tmp_path / "r", "--sections", "grid")[0] == 0
    code, _, complaint = report(tmp_path / "r", "--sections", "grid", model=make_model)
    assert code == 2 and complaint.count("\n") == 1
    assert "holds a report of another model; name another folder" in complaint


def test_mistakes_are_one_line(report, pictures, drawings, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").touch()
    out = tmp_path / "r"
    for words, start in (
        ({"data": tmp_path / "nothing"}, "--data: there is no folder"),
        ({"data": tmp_path / "full"}, "--data: .* holds no picture with a caption"),
        ({"judge": tmp_path}, "--judge: no CLIP in"),
        ({"model": tmp_path}, "--model: no model in"),
    ):
        code, _, complaint = report(out, **words)
        assert code == 2 and complaint.count("\n") == 1, complaint
        assert re.match(f"unclip-eval: {start}", complaint), complaint
    code, _, complaint = report(tmp_path / "full")
    assert code == 2 and "holds other files; name a new folder" in complaint
    code, _, complaint = report(out, "--size", 63)
    assert code == 2 and complaint.startswith("unclip-eval: --size: this model draws 64, 128")
    code, _, complaint = report(out, "--sections", "compositions", data=pictures)
    assert code == 2 and "--sections: compositions needs data of another kind" in complaint
    code, _, complaint = report(out, "--styles", "noto", data=pictures)
    assert code == 2 and "--styles: " in complaint
    (pictures / "metadata.jsonl").write_text('{"file_name": "../x.png", "text": "x"}\n')
    code, _, complaint = report(out, data=pictures)
    assert code == 2 and "--data: " in complaint and "unsafe name" in complaint


def test_sizes_of_sections():
    words = ["report", "--data", "d", "--output", "o"]
    assert sizes_of(parser().parse_args(words).num) == SIZES
    sizes = sizes_of(parser().parse_args([*words, "--num", "3", "grid=9"]).num)
    assert sizes == dict.fromkeys(SIZES, 3) | {"grid": 9}


def test_exports_for_other_benchmarks(evaluate, tiny_model, tmp_path):
    (tmp_path / "p.txt").write_text("a red apple\na dog\n")
    rows = [{"prompt": "a photo of a bench", "tag": "single_object", "include": []}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--model", tiny_model, "--num-images", 2, "--size", 64, "--quiet")
    code, _, _ = evaluate(
        "export", "geneval", "--prompts", tmp_path / "p.jsonl", "--output", tmp_path / "g", *words
    )
    assert code == 0 and len(list((tmp_path / "g/00000/samples").glob("*.png"))) == 2
    compbench = ("export", "t2i-compbench", "--prompts", tmp_path / "p.txt", *words)
    code, said, _ = evaluate(*compbench, "--output", tmp_path / "t", "--format", "json")
    assert code == 0 and json.loads(said)["drawn_now"] == 2
    assert (tmp_path / "t/samples/a dog_000003.png").is_file()
    code, said, _ = evaluate(*compbench, "--output", tmp_path / "t", "--format", "json")
    assert code == 0 and json.loads(said)["drawn_now"] == 0
    for option, value in (("--seed", 5), ("--num-images", 3), ("--size", 256)):
        code, _, complaint = evaluate(*compbench, "--output", tmp_path / "t", option, value)
        assert code == 2 and f"{option}: " in complaint and "another folder" in complaint


def assert_near(found, wanted) -> None:
    """Equal, but for the last digits: pictures are drawn in other batches, a pixel by a level."""
    if isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-3)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_near(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            assert_near(*pair)
    else:
        assert found == wanted


@pytest.mark.slow
def test_two_processes_make_the_report_of_one(
    report, tiny_model, judge_folder, drawings, tmp_path, two_processes
):
    words = ["--model", tiny_model, "--judge", judge_folder, "--data", drawings, *QUICK]
    words += ["--sections", "heldout", "ablation", "--device", "cpu"]
    command = [*two_processes, "unclip_sample.evaluation.cli", "report", *words]
    command += ["--output", tmp_path / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert report(tmp_path / "one", "--sections", "heldout", "ablation")[0] == 0
    one, two = (Results.load(tmp_path / name) for name in ("one", "two"))
    assert_near(asdict(two)["sections"], asdict(one)["sections"])
    names = [
        {p.name for p in Path(tmp_path / n / "pictures").rglob("*.png")} for n in ("one", "two")
    ]
    assert names[0] == names[1]
