"""Folder against folder: the figures of the metrics, what is left out and said, COCO-30k."""

import argparse
import json

import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from unclip.metrics.cmmd import cmmd
from unclip.metrics.frechet import frechet_distance
from unclip.metrics.inception import inception_score
from unclip_sample import distances, inception
from unclip_sample.coco import choose_captions, read_captions
from unclip_sample.encoder import embed_pictures, find_clip, load_clip
from unclip_sample.outputs import OutputError
from unclip_sample.request import RequestError

NUM = 12


def draw(number):
    picture = Image.new("RGB", (40, 32), "white")
    corner = 4 + number % 5
    ImageDraw.Draw(picture).ellipse(
        (corner, 3, corner + 22, 27), ("red", "green", "blue")[number % 3]
    )
    return picture


@pytest.fixture
def folders(tmp_path):
    """Twelve real pictures, twelve more of the same kind, and these blurred."""
    changes = {
        "real": (0, None),
        "good": (NUM, None),
        "blurred": (NUM, ImageFilter.GaussianBlur(3)),
    }
    for name, (start, change) in changes.items():
        (tmp_path / name).mkdir()
        for number in range(start, start + NUM):
            picture = draw(number) if change is None else draw(number).filter(change)
            picture.save(tmp_path / name / f"{number:04d}.png")
    return tmp_path


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(add, *words):
        parser = argparse.ArgumentParser()
        add(parser)
        args = parser.parse_args([str(word) for word in words])
        assert args.run(args) == 0
        return capsys.readouterr().out

    return call


def stand_in(pixels):
    """Features [B, 6] and logits [B, 3] of colours, where Inception's weights are not to be had."""
    x = pixels.float() / 255
    edges = x.diff(dim=3).abs().mean(dim=(2, 3))
    return torch.cat([x.mean(dim=(2, 3)), edges], dim=1), 50 * x.mean(dim=(2, 3))


@pytest.fixture
def by_stand_in(monkeypatch):
    """Colours and edges where Inception's weights are not to be had: 6 features, 3 classes."""
    monkeypatch.setattr(inception, "NUM_FEATURES", 6)
    monkeypatch.setattr(inception, "NUM_CLASSES", 3)
    monkeypatch.setattr(inception, "load_inception", lambda weights, device: stand_in)


def by_inception(folders, run, name):
    (folders / "w.pth").write_bytes(b"weights")
    words = (
        "--real",
        folders / "real",
        "--drawn",
        folders / name,
        "--inception",
        folders / "w.pth",
    )
    return json.loads(run(distances.add_distances, *words, "--size", 32, "--format", "json"))


def test_by_inception_everything_is_measured_and_said(folders, run, by_stand_in):
    said = {name: by_inception(folders, run, name) for name in ("real", "good", "blurred")}
    assert said["real"]["FID"] == pytest.approx(0, abs=1e-9)
    assert said["real"]["precision"] == said["real"]["recall"] == 1.0
    assert said["good"]["FID"] < said["blurred"]["FID"]
    assert said["good"]["KID"]["mean"] < said["blurred"]["KID"]["mean"]
    assert said["blurred"]["precision"] < said["good"]["precision"]
    assert 1 < said["good"]["Inception Score"]["mean"] <= 3
    assert said["good"]["resize"] == (
        "central square, antialiased bicubic to 32; TensorFlow 1 bilinear to 299"
    )
    assert (said["good"]["num_real"], said["good"]["num_drawn"]) == (NUM, NUM)
    x, y = (
        torch.cat([inception.view(stand_in, Image.open(p), 32) for p in sorted(folder.iterdir())])
        for folder in (folders / "real", folders / "good")
    )
    assert said["good"]["FID"] == pytest.approx(frechet_distance(x[:, :6], y[:, :6]))
    order = torch.randperm(NUM, generator=torch.Generator().manual_seed(0))
    score = inception_score(inception.features_and_probabilities(y)[1][order])
    assert said["good"]["Inception Score"]["mean"] == pytest.approx(score.mean)


def test_what_was_seen_is_not_looked_at_again(folders, run, by_stand_in, monkeypatch):
    first = by_inception(folders, run, "good")
    looked = []
    whole = inception.view
    monkeypatch.setattr(inception, "view", lambda *rest: looked.append(rest) or whole(*rest))
    assert by_inception(folders, run, "good") == first and looked == []
    draw(99).save(folders / "good" / "0099.png")
    assert by_inception(folders, run, "good")["num_drawn"] == NUM + 1 and len(looked) == 1


def test_by_clip_cmmd_is_measured_and_fid_left_out_with_the_reason(folders, run, tiny_model):
    words = ("--real", folders / "real", "--drawn", folders / "blurred", "--clip", tiny_model)
    said = json.loads(run(distances.add_distances, *words, "--format", "json"))
    assert said["Frechet distance"] is None and "FID" not in said
    assert said["Frechet distance left out"].startswith(
        "real: too few pictures for FID, 12 for 32 features"
    )
    clip = load_clip(find_clip(str(tiny_model)))
    z = [
        embed_pictures(clip, [Image.open(path) for path in sorted(folder.iterdir())])
        for folder in (folders / "real", folders / "blurred")
    ]
    assert said["CMMD"] == pytest.approx(cmmd(*z)) and "Inception Score" not in said
    text = run(distances.add_distances, *words)
    assert "Frechet distance left out: real: too few" in text and f"num_drawn: {NUM}" in text
    assert "kernel distance: " in text and f"subset_size {NUM // 2}" in text and "None" not in text
    assert said["CMMD unbiased"] == pytest.approx(cmmd(*z, unbiased=True)) and "None" not in text


def test_mistakes_are_one_line(folders, run, by_stand_in, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "w.pth").touch()
    words = ("--inception", tmp_path / "w.pth")
    for pair, message in (
        (("nothing", "good"), "--real: .*nothing is no folder; name one of pictures"),
        (("real", "nothing"), "--drawn: .*nothing is no folder"),
        (("few", "good"), "--real: .*few holds 0 pictures; give 4 or more"),
    ):
        real, drawn = (folders / name for name in pair)
        with pytest.raises(RequestError, match=f"^{message}"):
            run(distances.add_distances, "--real", real, "--drawn", drawn, *words)
    (folders / "good" / "0015.png").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"^--drawn: cannot read .*0015.png \(not a picture"):
        by_inception(folders, run, "good")


def test_features_that_are_not_finite_are_no_missing_fid():
    with pytest.raises(ValueError, match="not finite"):
        distances.measure_clip(torch.randn(20, 3), torch.full((20, 3), torch.nan))


# COCO-30k


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "captions_val2014.json"
    rows = [
        {"id": 500 - i, "image_id": i // 5, "caption": f" A  thing\n number {i}. "}
        for i in range(100)
    ]
    path.write_text(json.dumps({"images": [], "annotations": rows}))
    return path


def test_captions_are_drawn_without_repetition_and_by_a_seed(annotations, run, tmp_path):
    captions = read_captions(annotations)
    assert captions[0] == "A thing number 99." and len(captions) == 100
    chosen = choose_captions(captions, 60, seed=1)
    assert len(set(chosen)) == 60 and set(chosen) <= set(captions) and chosen != captions[:60]
    assert chosen == choose_captions(captions, 60, seed=1) != choose_captions(captions, 60, seed=2)
    assert chosen[:20] == choose_captions(captions, 20, seed=1)
    words = ("--annotations", annotations, "--num", 60, "--seed", 1, "--output", tmp_path / "c.txt")
    run(distances.add_coco_captions, *words)
    assert (tmp_path / "c.txt").read_text().splitlines() == chosen
    with pytest.raises(OutputError, match="^--output: cannot write"):
        run(distances.add_coco_captions, *words)


def test_what_is_no_annotations_file_is_refused(annotations, tmp_path):
    with pytest.raises(RequestError, match="^--num: 30000 captions are asked for, but .* has 100"):
        choose_captions(read_captions(annotations))
    for text in ("nothing", "[]", '{"annotations": [3]}', '{"annotations": [{"id": 1}]}'):
        annotations.write_text(text)
        with pytest.raises(RequestError, match="^--annotations: .* is no captions file of MS-COCO"):
            read_captions(annotations)
    with pytest.raises(RequestError, match="^--annotations: cannot read"):
        read_captions(tmp_path / "nothing.json")
