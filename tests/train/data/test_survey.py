"""unclip-data check and embed on users' pictures: what is told before anything is trained."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from unclip_train.data.cli import main
from unclip_train.data.pictures import PictureDataset
from unclip_train.data.sources.opening import Reading, open_source
from unclip_train.data.survey import survey_source


def scene(number: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth colours that no other number has."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def file_of(picture: Image.Image, form: str = "JPEG", **options) -> bytes:
    with io.BytesIO() as file:
        picture.save(file, form, **options)
        return file.getvalue()


@pytest.fixture
def mixed_folder(tmp_path):
    """Twenty scenes; two copies, three that look like another, one broken, one page, one bare."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    files = {f"{n:02d}.jpg": file_of(scene(n), quality=95) for n in range(20)}
    files["copy-a.jpg"] = files["copy-b.jpg"] = files["03.jpg"]
    files["near-a.jpg"] = file_of(scene(5), quality=40)
    files["near-b.png"] = file_of(scene(6, (80, 60)), "PNG")
    files["near-c.jpg"] = file_of(scene(7).resize((320, 240)), quality=80)
    files["broken.jpg"] = files["09.jpg"][:1500]
    files["page.jpg"] = b"<html>"
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text(f"a scene called {name}")
    (folder / "bare.jpg").write_bytes(files["01.jpg"])
    (folder / "00.txt").write_text("word " * 90)
    return folder


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_survey_counts_what_there_is(mixed_folder):
    report, bad = survey_source(open_source(str(mixed_folder)))
    assert [fault.name for fault in bad.values()] == ["broken.jpg", "page.jpg"]
    assert report["samples"] == 28 and report["usable"] == 25
    counts = {reason: found["count"] for reason, found in report["faults"].items()}
    assert counts == {"broken picture": 1, "not a picture": 1, "no caption": 1}
    assert report["faults"]["broken picture"]["examples"] == ["broken.jpg"]
    assert report["formats"] == {"JPEG": 24, "PNG": 1}
    assert report["sizes"]["shorter_side"] == {"min": 60, "median": 120, "max": 240}
    assert report["sizes"]["smaller_than"] == {"64": 1, "256": 25, "1024": 25}
    assert report["captions"]["count"] == 25 and report["captions"]["words"]["max"] == 90
    assert report["captions"]["cut"] == {"tokens": 77, "captions": 1, "by": "words"}


def test_duplicates_exact_and_near(mixed_folder):
    found = survey_source(open_source(str(mixed_folder)))[0]["duplicates"]
    assert found["exact"] == 2 and found["exact_examples"] == [
        ["03.jpg", "copy-a.jpg", "copy-b.jpg"]
    ]
    assert found["near"] == 3
    assert {tuple(names) for names in found["near_examples"]} == {
        ("05.jpg", "near-a.jpg"),
        ("06.jpg", "near-b.png"),
        ("07.jpg", "near-c.jpg"),
    }


def test_flat_pictures_of_other_colours_are_no_duplicates(tmp_path):
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / f"{number}.png").write_bytes(file_of(Image.new("RGB", (32, 32), colour), "PNG"))
        (tmp_path / f"{number}.txt").write_text(colour)
    assert survey_source(open_source(str(tmp_path)))[0]["duplicates"]["near"] == 0


def test_check_tells_and_draws(mixed_folder, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    code, out, _ = run(capsys, "check", mixed_folder, "--sheet", sheet)
    assert code == 1
    assert "25 usable of 28 samples" in out and "fault: broken picture: 1 (broken.jpg)" in out
    assert "near duplicates: 3" in out and "captions cut at 77 tokens: 1 (by words)" in out
    with Image.open(sheet) as picture:
        assert picture.width > 1000 and picture.height > 500
    code, _, err = run(capsys, "check", mixed_folder, "--sheet", sheet)
    assert code == 2 and "exists" in err


def test_a_sound_source_exits_0(pictures_folder, capsys):
    code, out, _ = run(capsys, "check", pictures_folder, "--format", "json", "--limit", 7)
    report = json.loads(out)
    assert code == 0 and report["usable"] == 7 and report["faults"] == {}


def test_small_pictures_are_listed_and_no_faults(pictures_folder, picture_of, tmp_path, capsys):
    shutil.copytree(pictures_folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "small.png").write_bytes(picture_of(99, size=(40, 12)))
    (tmp_path / "pictures" / "small.txt").write_text("a small one")
    bad, sheet = tmp_path / "bad.json", tmp_path / "sheet.png"
    words = ["check", tmp_path / "pictures", "--min-side", 16, "--bad", bad, "--sheet", sheet]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "picture below data.min_side: 1 (small.png)" in out
    source = open_source(str(tmp_path / "pictures"), Reading(leave_out=str(bad)))
    assert len(source) == 20 and "small.png" not in map(source.name, range(20))


def test_shards_and_remote_addresses_are_checked_too(tar_of, samples, tmp_path, capsys):
    import fsspec

    memory = fsspec.filesystem("memory")
    for shard in range(2):
        memory.pipe(f"/check/{shard}.tar", tar_of(samples(range(3 * shard, 3 * shard + 3))))
    words = ("--index", tmp_path, "--format", "json")
    code, out, _ = run(capsys, "check", "memory://check/{0..1}.tar", *words)
    assert code == 0 and json.loads(out)["usable"] == 6


def test_mistakes_are_one_line_in_the_words_of_the_command(tmp_path, pictures_folder, capsys):
    cases = [
        (("check", tmp_path / "nowhere"), "unclip-data check: SOURCE: there is no folder"),
        (("check", pictures_folder, "--limit", "0"), "unclip-data check: --limit must be"),
        (("check", pictures_folder, "--clip", tmp_path), "unclip-data check: --clip: no CLIP"),
        (
            ("embed", pictures_folder, "--clip", tmp_path, "--output", tmp_path / "z"),
            "unclip-data embed: no CLIP in",
        ),
    ]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "words": "x"}')
    cases.append((("check", tmp_path), "unclip-data check: --caption-column: metadata.jsonl"))
    for words, start in cases:
        code, out, err = run(capsys, *words)
        assert code == 2 and not out and err.startswith(start) and err.count("\n") == 1, err


def test_tokens_and_embeddings_of_a_trained_clip(pictures_folder, tiny_clip, tmp_path, capsys):
    code, out, _ = run(capsys, "check", pictures_folder, "--clip", tiny_clip, "--format", "json")
    cut = json.loads(out)["captions"]["cut"]
    assert code == 0 and cut["by"] == "tokens" and cut["tokens"] == 24 and cut["captions"] == 0
    words = ("embed", pictures_folder, "--clip", tiny_clip, "--output", tmp_path / "z")
    code, out, _ = run(capsys, *words, "--shard-size", 8)
    assert code == 0 and "20 pictures in 3 new shards" in out and "finished" in out
    code, out, _ = run(capsys, *words, "--shard-size", 8)
    assert code == 0 and "0 pictures in 0 new shards, 3 shards were there" in out


def test_broken_samples_are_left_out_once_they_are_known(mixed_folder, tmp_path, capsys):
    """R23 in training: every good sample once an epoch, by the list that check writes."""
    bad = tmp_path / "bad.json"
    assert run(capsys, "check", mixed_folder, "--bad", bad)[0] == 1
    source = open_source(str(mixed_folder), Reading(leave_out=str(bad)))
    dataset = PictureDataset(source, 16)
    samples = [dataset[position] for position in range(len(dataset))]
    names = [sample["id"] for sample in samples]
    assert len(names) == len(set(names)) == 25 and not any(s["faults"] for s in samples)
    assert {"broken.jpg", "page.jpg", "bare.jpg"}.isdisjoint(names)
    assert source.fingerprint != open_source(str(mixed_folder)).fingerprint
    (mixed_folder / "00.txt").write_text("another caption")
    with pytest.raises(ValueError, match=r"data\.leave_out: .* other samples"):
        open_source(str(mixed_folder), Reading(leave_out=str(bad)))
    code, _, err = run(capsys, "check", mixed_folder, "--bad", bad)
    assert code == 2 and "--bad: " in err and "exists" in err
    bad.write_text("[]")
    with pytest.raises(ValueError, match=r"data\.leave_out: .* not to be read"):
        open_source(str(mixed_folder), Reading(leave_out=str(bad)))
