"""unclip-sample on pictures to edit: what is kept, recorded, drawn again, and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip import UnCLIPPipeline
from unclip_sample import cli
from unclip_sample.png import read_png

SMALL = ("--size", 64, "--seed", 4, "--steps", 3)
RED = ("--prompt", "a red apple")
INPAINT = ("--inpaint", "a.png", "--mask", "mask.png", "--resamples", 2, "--jump", 1)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    """The tiny model, which takes longer to load than to draw."""
    pipe = UnCLIPPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def sample(tiny_model, loaded, tmp_path, monkeypatch, capsys):
    """Run the command in a folder with pictures and a mask; (code, stdout, stderr)."""
    monkeypatch.setattr(UnCLIPPipeline, "from_pretrained", lambda *_, **__: loaded)
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for name, picture in zip(("a.png", "b.png"), levels, strict=True):
        Image.fromarray(picture).save(name)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 20, 50, 60))
    mask.save("mask.png")

    def run(*words):
        try:
            code = cli.main([*map(str, words), "--model", str(tiny_model)])
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_picture_is_inpainted_recorded_and_inpainted_again(sample):
    code, out, err = sample(*INPAINT, *RED, *SMALL, "--output", "x.png")
    assert (code, out, err) == (0, "wrote x.png (seed 4)\n", "")
    known = np.asarray(Image.open("mask.png")) == 0
    assert (pixels("x.png")[known] == pixels("a.png")[known]).all()
    assert (pixels("x.png")[~known] != pixels("a.png")[~known]).any()
    record = read_png("x.png")
    assert record["prompt"] == "a red apple" and record["seed"] == 4
    assert record["edit"] == {
        "kind": "inpaint",
        "picture": "a.png",
        "picture_sha256": hashlib.sha256(Path("a.png").read_bytes()).hexdigest()[:16],
        "mask": "mask.png",
        "mask_sha256": hashlib.sha256(Path("mask.png").read_bytes()).hexdigest()[:16],
        "num_resamples": 2,
        "jump_length": 1,
    }
    again = ("--from", "x.png", "--inpaint", "a.png", "--mask", "mask.png", "--output", "y.png")
    assert sample(*again)[::2] == (0, "")
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()


def test_what_a_record_does_not_hold_is_asked_for(sample):
    sample(*INPAINT, *RED, *SMALL, "--output", "x.png")
    code, _, err = sample("--from", "x.png", "--output", "y.png")
    assert code == 2 and err.endswith("does not hold: add --inpaint a.png --mask mask.png\n")
    words = ("--inpaint", "b.png", "--mask", "mask.png", "--output", "y.png")
    code, _, err = sample("--from", "x.png", *words)
    assert code == 0 and "x.png was made with another picture (a.png)" in err
    known = np.asarray(Image.open("mask.png")) == 0
    assert (pixels("y.png")[known] == pixels("b.png")[known]).all()


def test_several_images_are_those_of_their_seeds(sample):
    words = (*INPAINT, *SMALL, "--output")
    assert sample(*words, "n/", "--num-images", 3, "--batch-size", 2)[0] == 0
    assert sample(*words, "one.png", "--seed", 6)[0] == 0
    assert np.abs(pixels("n/0002.png") - pixels("one.png")).max() <= 1
    assert (pixels("n/0001.png") != pixels("one.png")).any()


def test_outpainting_puts_the_picture_where_it_is_told(sample):
    Image.open("a.png").crop((0, 0, 40, 30)).save("part.png")
    words = ("--outpaint", "part.png", "--canvas", 64, "--offset", "7,20", *SMALL)
    assert sample(*words, "--output", "x.png")[0] == 0
    assert (pixels("x.png")[20:50, 7:47] == pixels("part.png")).all()
    record = read_png("x.png")["edit"]
    assert record["canvas"] == 64 and record["offset"] == [7, 20]
    assert sample("--from", "x.png", "--outpaint", "part.png", "--output", "y.png")[0] == 0
    assert (pixels("x.png") == pixels("y.png")).all()


def test_image_to_image_and_upscaling(sample):
    words = ("--image-to-image", "a.png", "--strength", 0.4, *RED, *SMALL)
    assert sample(*words, "--output", "x.png")[0] == 0
    assert read_png("x.png")["edit"]["strength"] == 0.4
    code, out, err = sample(
        *("--upscale", "a.png", "--size", 256, "--seed", 1, "--upsampler-steps", 1),
        *("--output", "large.png", "--format", "json"),
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["images"][0]["size"] == 256
    assert Image.open("large.png").size == (256, 256)
    record = read_png("large.png")
    assert record["stages"] == ["upsampler_256"] and record["steps"] == {"upsampler_256": 1}
    assert sample("--from", "large.png", "--upscale", "a.png", "--output", "again.png")[0] == 0
    assert (pixels("large.png") == pixels("again.png")).all()
    assert sample("--upscale", "a.png", "--no-metadata", "--size", 256, "--output", "n.png")[0] == 0
    assert not Image.open("n.png").info


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask", "mask.png", *RED], "--mask: give it with --inpaint"),
        (["--inpaint", "a.png", "--upscale", "a.png"], "--upscale: give it without --inpaint"),
        (["--upscale", "a.png", "--strength", "0.5"], "--strength: give it with --image-to-image"),
        (["--upscale", "a.png", *RED], "--prompt: does not go with --upscale"),
        (["--upscale", "a.png", "--tile-overlap", "-1"], "--tile-overlap: give a whole number"),
        (["--inpaint", "a.png", "--image", "b.png"], "--image: does not go with --inpaint"),
        (["--upscale", "a.png", "--reuse", "2"], "--reuse: does not go with --upscale"),
        (["--upscale", "a.png", "--candidates", "4"], "--candidates: does not go with --upscale"),
        (["--image-to-image", "a.png", "--best-of", "4"], "--best-of: does not go with"),
        (["--image-to-image", "a.png", "--x", "guidance=1,2"], "--x: does not go with"),
        (["--inpaint", "a.png", "--eta", "0"], "--eta: does not go with --inpaint"),
        (["--inpaint", "c.png", "--mask", "mask.png"], "--inpaint: c.png does not exist"),
        (["--inpaint", "a.png", "--mask", "c.png"], "--mask: c.png does not exist"),
        (["--inpaint", "a.png", *RED], "mask: give a mask, or a picture that is transparent"),
        (["--image-to-image", "a.png", "--strength", "1.5"], "--strength: give a number above 0"),
        (["--outpaint", "a.png", "--offset", "3"], "--offset: give columns,rows"),
        (["--outpaint", "a.png", "--canvas", "10"], "canvas: give pixels a side from 64"),
        (["--upscale", "a.png", "--size", "64"], "size: from 64 pixels a side this model makes"),
        (["--prompt", "a", "--size", "2048"], "size: this model draws 64, 128, 256, 512, 1024"),
    ],
)
def test_words_that_make_no_sense_are_named(sample, words, message):
    code, out, err = sample(*words, "--output", "x.png")
    assert code == 2 and out == "" and err.startswith(f"unclip-sample: {message}"), err
    assert err.count("\n") == 1 and not Path("x.png").exists()
