"""unclip-sample on latents: what is drawn and written, drawn again, and what makes no sense."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from unclip import PrincipalComponents, UnCLIPPipeline
from unclip_sample import cli
from unclip_sample.frames import sheet
from unclip_sample.png import read_png, save_png

SMALL = ("--size", 64, "--seed", 4, "--steps", 2)
RED = ("--prompt", "a red apple")
IMAGE = ("--image", "a.png")
GUIDANCE = (
    *("--guidance", 3, "--image-guidance", 1.5),
    *("--guidance-interval", "200,800", "--guidance-rescale", 0.7),
)


@pytest.fixture(scope="module")
def loaded(tiny_model):
    """The tiny model, which takes longer to load than to draw."""
    pipe = UnCLIPPipeline.from_pretrained(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def sample(tiny_model, loaded, tmp_path, monkeypatch, capsys):
    """Run the command in a folder with two pictures, on the tiny model; (code, stdout, stderr)."""
    monkeypatch.setattr(UnCLIPPipeline, "from_pretrained", lambda *_, **__: loaded)
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.png", 1), ("b.png", 2)):
        noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        blobs = F.interpolate(noise, (64, 64), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
        Image.fromarray((blobs * 255).byte().numpy()).save(name)

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


DRAWN = {
    "eta": ([*IMAGE, "--eta", 0.5, "--num-images", 2], 2),
    "interpolate": (["--interpolate", "a.png", "a pear", "--frames", 3], 3),
    "fixed noise": (["--interpolate", "a.png", "b.png", "--noise", "fixed", "--frames", 2], 2),
    "text diff": ([*IMAGE, "--text-diff", "a pear", "--frames", 2, "--max-theta", 0.3], 2),
    "text diff of a caption": ([*RED, "--text-diff", "a pear", "--frames", 2], 2),
    "mix": (["--mix", "a.png", "a pear", "--weights", "2,-0.5", "--num-images", 2], 2),
    "project": ([*IMAGE, "--project", "0,1", "--fit-on", "."], 2),
    "condition": ([*RED, "--condition", "z_txt"], 1),
    "guidance": ([*RED, "--condition", "prior", *GUIDANCE, "--candidates", 3], 1),
    "clip guidance": ([*RED, "--clip-guidance", 3, "--negative-prompt", "a plum"], 1),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_pictures_are_written_and_drawn_again_from_their_record(sample, kind):
    words, count = DRAWN[kind]
    code, out, err = sample(*words, *SMALL, "--output", "out.png")
    names = ["out.png"] if count == 1 else [f"out-{n:04d}.png" for n in range(count)]
    assert (code, err) == (0, "")
    assert [line.split(" (")[0] for line in out.splitlines()] == [f"wrote {n}" for n in names]
    os.remove("a.png")
    assert sample("--from", names[-1], "--output", "again.png")[0] == 0
    assert Path(names[-1]).read_bytes() == Path("again.png").read_bytes()


def test_the_record_says_what_was_done(sample):
    Path("in").mkdir()
    os.rename("a.png", "in/a.png")
    words = ("--interpolate", "in/a.png", "a/pear", "--frames", 2, "--prompt", "fruit")
    assert sample(*words, *SMALL, "--output", "x.png")[0] == 0
    first, last = read_png("x-0000.png"), read_png("x-0001.png")
    made = {"operation": "interpolate", "subject_texts": ["a.png", "a/pear"]}
    assert first["made_by"] == made and first["prompt"] == "fruit" and first["seed"] == 4
    assert first["guidance"] == {"decoder": 1.0} and first["sampler"] == {"decoder": "ddim"}
    assert first["latents"]["z_img"] != last["latents"]["z_img"]
    assert first["latents"]["x_T"][0] is not None and first["latents"]["seeds"] == [4]


def test_noise_of_the_seed_is_not_recorded(sample):
    sample("--mix", "a.png", *SMALL, "--output", "m.png")
    assert read_png("m.png")["latents"]["x_T"] == [None]
    assert os.path.getsize("m.png") < 40_000


def test_a_picture_made_from_latents_may_be_changed(sample):
    sample(*IMAGE, "--eta", 0.2, *SMALL, "--output", "v.png")
    for name, word, value in (("e", "--eta", 0.9), ("s", "--seed", 5), ("g", "--guidance", 2)):
        assert sample("--from", "v.png", word, value, "--output", f"{name}.png")[0] == 0
        assert not np.array_equal(pixels(f"{name}.png"), pixels("v.png"))
    assert read_png("e.png")["eta"] == 0.9 and read_png("s.png")["seed"] == 5
    assert sample("--from", "v.png", "--size", 256, "--output", "large.png")[0] == 0
    assert Image.open("large.png").size == (256, 256)


def test_a_sheet_and_the_same_sheet_again(sample):
    words = ("--interpolate", "a.png", "b.png", "--frames", 3)
    assert sample(*words, *SMALL, "--grid", "--output", "sheet.png")[0] == 0
    assert sample(*words, *SMALL, "--output", "f.png")[0] == 0
    frames = [pixels(f"f-000{n}.png") for n in range(3)]
    assert np.array_equal(pixels("sheet.png"), np.concatenate(frames, axis=1))
    assert sample("--from", "sheet.png", "--output", "again.png")[0] == 0
    assert Path("sheet.png").read_bytes() == Path("again.png").read_bytes()


def test_a_sheet_of_many_is_nearly_square():
    assert sheet([Image.new("RGB", (4, 2))] * 10).size == (40, 2)
    assert sheet([Image.new("RGB", (4, 2))] * 11).size == (16, 6)


@pytest.mark.parametrize("name", ["way.gif", "way.webp"])
def test_an_animation_goes_there_and_back(sample, name):
    words = ("--interpolate", "a.png", "b.png", "--frames", 4, "--output", name)
    code, out, _ = sample(*words, *SMALL, "--format", "json")
    report = json.loads(out)
    assert code == 0 and [image["path"] for image in report["images"]] == [name]
    moving = Image.open(name)
    assert moving.n_frames == 6 and moving.size == (64, 64) and moving.info["loop"] == 0
    seen = []
    for number in range(6):
        moving.seek(number)
        seen.append(np.asarray(moving.convert("RGB")).astype(int))
    assert abs(seen[1] - seen[5]).mean() < 12 and abs(seen[0] - seen[3]).mean() > 12
    assert sample(*words, *SMALL)[0] == 2  # it exists
    assert sample(*words, *SMALL, "--overwrite")[0] == 0


def test_components_may_be_kept_in_a_file(sample, tmp_path):
    PrincipalComponents.fit(torch.randn(5, 32)).save(tmp_path / "c.safetensors")
    words = (*IMAGE, "--project", 4, "--fit-on", "c.safetensors")
    assert sample(*words, *SMALL, "--output", "p.png")[0] == 0
    code, _, err = sample(*IMAGE, "--project", 5, "--fit-on", "c.safetensors")
    assert code == 2 and "num_components" in err and err.count("\n") == 1


MISTAKES = {
    "two operations": ([*IMAGE, "--eta", "0.5", "--mix", "b.png"], "--mix: give it without --eta"),
    "eta without a picture": (["--eta", "0.5"], "--image is missing"),
    "eta too large": ([*IMAGE, "--eta", "1.5"], "--eta: give a number from 0 to 1"),
    "one subject": (["--interpolate", "a.png"], "--interpolate: give two"),
    "empty subject": (["--interpolate", "a.png", " "], "--interpolate: one of the texts"),
    "no such picture": (["--mix", "c.png"], "--mix: c.png does not exist"),
    "picture beside subjects": ([*IMAGE, "--mix", "b.png"], "--image: does not go with --mix"),
    "no subject": (["--text-diff", "a pear"], "--image is missing"),
    "same texts": ([*IMAGE, "--text-diff", "a pear", "--base", "a pear"], "--base: is the same"),
    "base alone": ([*RED, "--base", "a pear"], "--base: give it with --text-diff"),
    "frames alone": ([*RED, "--frames", "3"], "--frames: give it with --interpolate or"),
    "frames of a mixture": (["--mix", "a.png", "--frames", "3"], "--frames: "),
    "one frame": (["--interpolate", "a.png", "b.png", "--frames", "1"], "--frames: give a whole"),
    "weights": (["--mix", "a.png", "--weights", "1,2"], "--weights: give 1"),
    "weights that are none": (["--mix", "a.png", "--weights", "much"], "--weights: give a number"),
    "no components": ([*IMAGE, "--project", "3"], "--fit-on is missing"),
    "components of nothing": ([*IMAGE, "--project", "3", "--fit-on", "c"], "--fit-on: c is no"),
    "condition": ([*RED, "--condition", "none"], "--condition: "),
    "condition of nothing": (["--condition", "z_txt"], "--prompt is missing"),
    "CLIP without a text": (["--mix", "a.png", "--clip-guidance", "3"], "--clip-guidance: give"),
    "a text without CLIP": ([*RED, "--clip-prompt", "a pear"], "--clip-prompt: give it with"),
    "prior of pictures": (["--mix", "a.png", "--prior-steps", "3"], "--prior-steps: no caption"),
    "prior without a prior": ([*RED, "--condition", "z_txt", "--prior-guidance", "2"], "--prior-g"),
    "best of": (["--mix", "a.png", "--best-of", "4"], "--best-of: does not go with --mix"),
    "reuse": ([*IMAGE, "--eta", "0.5", "--reuse", "3"], "--reuse: does not go with --eta"),
    "other kinds of pictures": (["--mix", "a.gif", "b.bmp"], "--mix: a.gif"),
    "a plot": ([*IMAGE, "--eta", "0.5", "--x", "guidance=1,2"], "--x: does not go with --eta"),
    "candidates of none": ([*IMAGE, "--eta", "0.5", "--candidates", "3"], "--candidates: no capt"),
    "another sampler": ([*IMAGE, "--eta", "0", "--scheduler", "dpm++"], "--scheduler: latents"),
    "pictures of a way": (["--interpolate", "a.png", "b.png", "--num-images", "2"], "--num-images"),
    "many prompts": ([*RED, *RED, "--condition", "prior"], "--prompt: give one"),
    "a file of prompts": (["--prompts", "p", "--mix", "a.png"], "--prompts: give one"),
    "from and another": (["--from", "l.png", "--mix", "a.png"], "--from: draws a picture again"),
    "from without latents": (["--from", "a.png", "--eta", "0.1"], "--from: "),
    "grid of an animation": (["--mix", "a.png", "--grid", "--output", "x.gif"], "--grid: is one"),
    "grid of very many": (["--mix", "a.png", "--grid", "--num-images", "90"], "--grid: cannot"),
    "animation in a file": (["--mix", "a.png", "--output", "a.png/x.gif"], "--output: cannot"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_before_a_model_is_loaded(sample, monkeypatch, mistake):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    record = {"prompt": "", "latents": {"z_img": [""], "x_T": [None], "seeds": [1]}}
    save_png(Image.new("RGB", (4, 4)), "l.png", record)
    before = sorted(os.listdir())
    if mistake != "components of nothing":  # only the model's CLIP can read a folder
        monkeypatch.setattr(UnCLIPPipeline, "from_pretrained", load)
    words, named = MISTAKES[mistake]
    code, out, err = sample(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert named in err and sorted(os.listdir()) == before


def test_damaged_latents_are_refused(sample):
    good = {"z_img": ["00" * 128], "x_T": [None], "seeds": [1]}
    for changes in (
        {"z_img": ["xyz"]},
        {"z_img": [7]},
        {"z_img": []},
        {"z_img": ["0000c07f" * 32]},
        {"z_img": ["00" * 8]},
        {"x_T": ["00" * 8]},
        {"x_T": []},
        {"seeds": ["1"]},
        {"seeds": [-1]},
        {"seeds": None},
    ):
        record = {"prompt": "", "size": 64, "latents": {**good, **changes}}
        save_png(Image.new("RGB", (4, 4)), "t.png", record, overwrite=True)
        code, _, err = sample("--from", "t.png", "--output", "o.png")
        assert code == 2 and err.count("\n") == 1, (changes, err)
    for latents in ([], 3, "x"):
        save_png(Image.new("RGB", (4, 4)), "t.png", {"latents": latents}, overwrite=True)
        assert sample("--from", "t.png")[0] == 2
    assert not Path("o.png").exists()
