"""unclip-rank: orders, probabilities, an index that remembers, and files that cannot be read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from unclip_sample import encoder, index, rank
from unclip_sample.contact_sheet import contact_sheet, fit, shorten

COMMAND = Path(sys.executable).parent / "unclip-rank"
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")


@pytest.fixture(scope="module")
def clip(tiny_model):
    return encoder.load_clip(encoder.find_clip(str(tiny_model)))


@pytest.fixture
def pictures(tmp_path):
    """A folder of six pictures, one of them deeper, a broken one and what is no picture."""
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (40 + 3 * number, 40), "white")
        ImageDraw.Draw(picture).ellipse((4, 4, 30 - 2 * number, 30), colour)
        picture.save(folder / ("deep" if colour == "blue" else "") / f"{colour}.png")
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch, capsys):
    """Run the command on the tiny model; (exit code, stdout, stderr)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def call(*words, model=True):
        words = [str(word) for word in words]
        try:
            code = rank.main([*words, *(["--clip", str(tiny_model)] if model else [])])
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return code, said.out, said.err

    yield call
    torch.set_num_threads(threads)


def cosine(clip, path, text):
    with Image.open(path) as picture:
        z_img = encoder.embed_pictures(clip, [picture.convert("RGB")])
    return float(torch.nn.functional.cosine_similarity(z_img, encoder.embed_texts(clip, [text])))


# Order


def test_pictures_are_ordered_by_their_cosine_with_the_text(run, pictures, clip):
    code, out, err = run("pictures", "--text", "a red apple", "--format", "json", pictures)
    said = json.loads(out)
    scores = {result["path"]: result["score"] for result in said["results"]}
    assert code == 0 and len(scores) == 6
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    for path, score in scores.items():
        assert score == pytest.approx(cosine(clip, path, "a red apple"), abs=1e-5)
    assert [Path(broken["path"]).name for broken in said["unreadable"]] == ["broken.png"]
    assert said["unreadable"][0]["reason"] and "1 file unread" in err
    assert said["text"] == "a red apple" and len(said["model_hash"]) == 16


def test_the_best_are_shown_and_drawn_on_a_sheet(run, pictures):
    words = ("pictures", "--text", "a red apple", pictures / "red.png", pictures)
    code, out, err = run(*words, "--top", 3, "--sheet", "best.png")
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert "cannot read" in err and "broken.png" in err
    assert Image.open("best.png").size[0] > 3 * 176
    before = Path("best.png").read_bytes()
    code, _, err = run(*words, "--sheet", "best.png")
    assert (code, err.count("\n")) == (2, 1) and err.startswith("unclip-rank: --sheet: best.png")
    assert run(*words, "--sheet", "best.png", "--overwrite")[0] == 0
    assert Path("best.png").read_bytes() != before  # six pictures now


def test_classes_have_the_probabilities_of_zero_shot_clip(run, pictures, clip):
    words = ("--text", "red", "--text", "blue", "--text", "green", "--template", "a {} apple")
    code, out, _ = run("classify", *words, "--format", "json", pictures / "red.png")
    (result,) = json.loads(out)["results"]
    shares = {text["text"]: text["probability"] for text in result["texts"]}
    scale = encoder.logit_scale(clip)
    weights = {
        name: np.exp(scale * cosine(clip, pictures / "red.png", f"a {name} apple"))
        for name in ("red", "blue", "green")
    }
    assert code == 0 and sum(shares.values()) == pytest.approx(1)
    for name, weight in weights.items():
        assert shares[name] == pytest.approx(weight / sum(weights.values()), abs=1e-3)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    code, out, _ = run("classify", *words, pictures / "red.png", pictures / "green.png")
    assert code == 0 and len(out.splitlines()) == 8 and out.count("%") == 6


# The index


def search(run, *words):
    code, out, err = run("search", *words, "--format", "json")
    assert code == 0, err
    return json.loads(out)


def test_a_search_finds_what_ranking_finds_and_remembers(run, pictures):
    first = search(run, pictures, "--text", "a red apple")
    _, out, _ = run("pictures", "--text", "a red apple", "--format", "json", pictures)
    assert first["results"] == json.loads(out)["results"]
    assert first["index"] == {"new": 6, "kept": 0, "removed": 0}
    again = search(run, pictures, "--text", "a red apple")
    assert again["index"] == {"new": 0, "kept": 6, "removed": 0}
    assert again["results"] == first["results"] and again["unreadable"] == first["unreadable"]


def test_what_changed_is_looked_at_again(run, pictures, monkeypatch):
    search(run, pictures, "--text", "a red apple")
    (pictures / "green.png").unlink()
    shutil.copy2(pictures / "red.png", pictures / "copy.png")
    Image.new("RGB", (40, 40), "black").save(pictures / "yellow.png")
    looked = []
    whole = index.look_at
    monkeypatch.setattr(
        index,
        "look_at",
        lambda viewer, path, *rest: looked.append(path.name) or whole(viewer, path, *rest),
    )
    said = search(run, pictures, "--text", "a red apple")
    assert said["index"] == {"new": 2, "kept": 4, "removed": 1}
    assert sorted(looked) == ["broken.png", "copy.png", "yellow.png"]
    scores = {Path(result["path"]).name: result["score"] for result in said["results"]}
    assert scores["copy.png"] == scores["red.png"] and "green.png" not in scores
    whole_again = search(run, pictures, "--text", "a red apple", "--index", "other.safetensors")
    assert whole_again["results"] == said["results"]


def test_no_other_file_is_lost_to_an_index(run, pictures, tiny_model, tmp_path, monkeypatch):
    def looked(*_):
        raise AssertionError("a picture was looked at")

    monkeypatch.setattr(index, "look_at", looked)
    weights = shutil.copy(next(tiny_model.rglob("*.safetensors")), tmp_path / "w.safetensors")
    text = tmp_path / "notes"
    text.write_text("nothing")
    for place in (weights, text, pictures / "red.png", tmp_path, text / "inside"):
        before = Path(place).read_bytes() if Path(place).is_file() else None
        code, _, err = run("search", pictures, "--text", "a red apple", "--index", place)
        assert code == 2 and "--index: " in err and str(place.parent) in err
        assert before is None or Path(place).read_bytes() == before


def test_a_cache_that_cannot_be_written_is_done_without(run, pictures, tmp_path, monkeypatch):
    first = search(run, pictures, "--text", "a red apple")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    code, out, err = run("search", pictures, "--text", "a red apple", "--format", "json")
    assert code == 0 and json.loads(out)["results"] == first["results"]
    assert "nothing is remembered" in err and "--index" in err


def test_another_clip_or_a_damaged_index_means_looking_again(run, pictures, tiny_model, tmp_path):
    place = tmp_path / "folder" / "index.safetensors"
    words = (pictures, "--text", "a red apple", "--index", place)
    first = search(run, *words)
    whole = place.read_bytes()
    for damage in (b"", whole[:-7], whole.replace(b'"version"', b'"vErsion"')):
        place.write_bytes(damage)
        again = search(run, *words)
        assert again["index"]["new"] == 6 and again["results"] == first["results"]
    other = tmp_path / "other"
    shutil.copytree(tiny_model / "clip", other)
    facts = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**facts, "image_mean": [0, 0, 0]}))
    code, out, _ = run("search", *words, "--clip", other, "--format", "json", model=False)
    said = json.loads(out)
    assert code == 0 and said["index"]["new"] == 6 and said["results"] != first["results"]


def test_a_search_that_is_stopped_goes_on(pictures, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "SAVE_EVERY", 2)
    place, viewer = tmp_path / "index.safetensors", index.viewer_of(clip, "hash")

    def stopped(names):
        for number, name in enumerate(names):
            if number == 4:
                raise KeyboardInterrupt
            yield name

    with pytest.raises(KeyboardInterrupt):
        index.update(place, pictures, viewer, stopped)
    known, done = index.update(place, pictures, viewer)
    assert done.kept == 2 and done.new == 4 and len(known.files) == 6
    fresh, _ = index.update(tmp_path / "fresh.safetensors", pictures, viewer)
    for name, row in zip(fresh.files, fresh.z, strict=True):
        assert torch.equal(known.z[list(known.files).index(name)], row), name
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_picture_resembles_itself_most(run, pictures):
    said = search(run, pictures, "--like", pictures / "purple.png", "--top", 2)
    assert Path(said["results"][0]["path"]).name == "purple.png"
    assert said["results"][0]["score"] == pytest.approx(1) and len(said["results"]) == 2


# Mistakes


def test_mistakes_are_one_line_that_names_the_word(run, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    one = ("--text", "a")
    for words, start in (
        (("pictures", *one, "nothing.png"), "PATH: nothing.png does not exist"),
        (("pictures", *one, "empty"), "PATH: no pictures in empty"),
        (("pictures", "--text", " ", pictures), "--text is empty"),
        (("pictures", *one, pictures, "--sheet", "a.jpg"), "--sheet: give FILE.png"),
        (("pictures", *one, pictures, "--sheet", "no/a.png"), "--sheet: there is no folder"),
        (("pictures", *one, pictures, "--top", "0"), "--top: give a whole number"),
        (("classify", *one, pictures), "--text: give two or more texts"),
        (("classify", *one, *one, pictures), "--text: give two or more texts"),
        (("classify", *one, "--text", "b", "--template", "x", pictures), "--template: give a"),
        (("search", "nothing", *one), "FOLDER: nothing is no folder"),
        (("search", "empty", *one), "FOLDER: empty holds no pictures"),
        (("search", pictures, "--like", "nothing.png"), "--like: cannot read nothing.png"),
        (("search", pictures, "--like", pictures / "broken.png"), "--like: cannot read"),
        (("pictures", *one, pictures, "--device", "abacus"), "--device: this machine has no"),
    ):
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (2, "", 1), (words, err)
        assert err.startswith(("unclip-rank: " + start, f"unclip-rank {words[0]}: {start}")), err
    code, _, err = run("pictures", *one, pictures, "--clip", "empty", model=False)
    assert code == 2 and err.startswith("unclip-rank: --clip: no CLIP in empty")


def test_when_nothing_can_be_read_the_command_fails(run, pictures):
    code, out, err = run("pictures", "--text", "a", pictures / "broken.png", pictures / "notes.txt")
    assert (code, out) == (1, "") and err.count("cannot read") == 2 and "2 files unread" in err


def test_a_name_that_is_no_text_is_shown(tiny_model, pictures):
    name = os.fsencode(pictures) + b"/caf\xe9.png"
    os.link(pictures / "red.png", name)
    words = ("pictures", "--text", "a", "--clip", str(tiny_model), os.fsdecode(name))
    done = subprocess.run([sys.executable, COMMAND, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "caf\\udce9.png" in done.stdout


# The sheet


def test_the_sheet_holds_every_picture_in_its_cell():
    colours = [(200, 30, 30), (30, 160, 60), (40, 80, 220)]
    sizes = [(9, 9), (90, 30), (20, 80)]
    pictures = [Image.new("RGB", *pair) for pair in zip(sizes, colours, strict=True)]
    sheet = contact_sheet(pictures, ["a", "b" * 99, "c"], cell=60, columns=2)
    pixels = np.asarray(sheet)
    for number, colour in enumerate(colours):
        left, top = 12 + number % 2 * 72, 12 + number // 2 * (72 + 21)
        assert tuple(pixels[top + 30, left + 30]) == colour
        cell = pixels[top : top + 60, left : left + 60]
        assert (cell == colour).all(axis=-1).sum() == (3600, 1200, 900)[number]
    assert fit(pictures[1], 60).size == (60, 20)
    assert shorten("abcdefgh", 6, len) == "abc..." and shorten("abc", 6, len) == "abc"
    with pytest.raises(ValueError, match="^labels: 1 for 3 pictures"):
        contact_sheet(pictures, ["a"])
