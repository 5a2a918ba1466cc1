"""unclip-sample: files, reports, exit codes, and pictures that can be drawn again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unclip_sample import cli
from unclip_sample.outputs import OutputError, first_free, plan_outputs
from unclip_sample.png import read_png

RED = ("--prompt", "a red apple")
COMMAND = Path(sys.executable).parent / "unclip-sample"


@pytest.fixture
def sample(tiny_model, tmp_path, monkeypatch, capsys):
    """Run the command here, in an empty folder, on the tiny model; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def run(*words, model=True):
        words = [str(word) for word in words]
        try:
            code = cli.main([*words, *(["--model", str(tiny_model)] if model else [])])
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return code, said.out, said.err

    yield run
    torch.set_num_threads(threads)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


# As a command


def test_the_command_draws_and_draws_again(tiny_model, tmp_path):
    def run(*words):
        command = [sys.executable, COMMAND, *words, "--model", tiny_model]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)

    first = run(*RED, "--guidance", "3", "--seed", "7", "--output", "a.png", "--size", "256")
    assert (first.returncode, first.stdout, first.stderr) == (0, "wrote a.png (seed 7)\n", "")
    again = run("--from", "a.png", "--output", "b.png", "--format", "json")
    assert (again.returncode, again.stderr) == (0, "")
    report = json.loads(again.stdout)
    assert (
        report["images"] == [{"path": "b.png", "size": 256, "prompt": "a red apple", "seed": 7}]
        and report["model"] == "tiny"
    )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").size == (256, 256)


def test_mistakes_end_the_command_with_one_line(tmp_path):
    def run(*words):
        done = subprocess.run([sys.executable, COMMAND, *words], capture_output=True, text=True)
        assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        return done.returncode, done.stderr

    code, said = run("--output", str(tmp_path / "a.png"))
    assert code == 2 and said == "unclip-sample: --prompt is missing: say what to draw\n"
    code, said = run(*RED, "--size", "65")
    assert code == 2 and said.startswith("unclip-sample: --size: ")


# Files and reports


def test_several_pictures_are_numbered_and_the_third_is_the_same_alone(sample):
    code, out, err = sample(*RED, "--seed", 7, "--num-images", 4, "--output", "x.png", "--size", 64)
    names = [f"x-000{index}.png" for index in range(4)]
    assert (code, err) == (0, "") and sorted(os.listdir()) == names
    assert out.splitlines() == [f"wrote {n} (seed {7 + i})" for i, n in enumerate(names)]
    assert sample(*RED, "--seed", 9, "--output", "alone.png", "--size", 64)[0] == 0
    assert np.array_equal(pixels("alone.png"), pixels("x-0002.png"))
    assert not np.array_equal(pixels("alone.png"), pixels("x-0001.png"))
    sample(*RED, "--seed", 7, "--num-images", 4, "--output", "b/", "--size", 64, "--batch-size", 3)
    assert sorted(os.listdir("b")) == [name[2:] for name in names]
    for name in names:
        assert (abs(pixels(name) - pixels(f"b/{name[2:]}")) <= 1).mean() >= 0.999


def test_the_record_says_how_a_picture_was_made(sample):
    sample(
        *(*RED, "--negative-prompt", "a pear", "--seed", 3, "--size", 512, "--guidance", 2.5),
        *("--prior-guidance", 1.5, "--steps", 2, "--prior-steps", "ddim4", "--scheduler", "dpm++"),
        *("--upsampler-steps", "1,2", "--output", "a.png"),
    )
    record = read_png("a.png")
    digest = record.pop("model_hash")
    versions = record.pop("versions")
    stages = ["prior", "decoder", "upsampler_256", "upsampler_1024"]
    assert len(digest) == 16 and set(versions) == {"unclip", "torch", "diffusers", "transformers"}
    assert record == {
        "prompt": "a red apple",
        "negative_prompt": "a pear",
        "seed": 3,
        "stages": stages,
        "steps": dict(zip(stages, ("ddim4", 2, 1, 2), strict=True)),
        "guidance": {"prior": 1.5, "decoder": 2.5},
        "sampler": dict(zip(stages, ("ddpm", "dpm++", "ddim", "ddim"), strict=True)),
        "size": 512,
        "num_prior_candidates": 2,
        "model": "tiny",
        "dtype": "float32",
    }
    assert Image.open("a.png").size == (512, 512)
    assert sample("--from", "a.png", "--output", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert sample("--from", "a.png", "--size", 64, "--seed", 5, "--output", "c.png")[0] == 0
    changed = read_png("c.png")
    assert (changed["size"], changed["seed"], changed["steps"]["decoder"]) == (64, 5, 2)


def test_without_metadata_there_is_none(sample):
    assert sample(*RED, "--size", 64, "--no-metadata", "--output", "a.png")[0] == 0
    assert Image.open("a.png").info == {}
    code, _, err = sample("--from", "a.png")
    assert code == 2 and "--from" in err and err.count("\n") == 1


def test_any_size_that_the_model_draws(sample):
    assert sample(*RED, "--size", 128, "--output", "a.png")[0] == 0
    assert Image.open("a.png").size == (128, 128)


def test_another_model_is_warned_of(sample, tiny_model, tmp_path):
    sample(*RED, "--size", 64, "--seed", 1, "--output", "a.png")
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    index = json.loads((other / "model_index.json").read_text())
    index["default_guidance"]["decoder"] = 7
    (other / "model_index.json").write_text(json.dumps(index))
    words = ("--from", "a.png", "--model", other, "--output", "b.png")
    code, _, err = sample(*words, model=False)
    assert code == 0 and "another model" in err and err.count("\n") == 1


def test_prompts_of_a_file(sample):
    Path("prompts.txt").write_text("\ufeffa red apple\n\n  two pears \n", "utf-8")
    code, out, _ = sample("--prompts", "prompts.txt", "--seed", 2, "--size", 64, "--format", "json")
    report = json.loads(out)
    assert code == 0
    assert [(i["path"], i["prompt"], i["seed"]) for i in report["images"]] == [
        ("unclip-0000.png", "a red apple", 2),
        ("unclip-0001.png", "two pears", 3),
    ]


def test_without_an_output_the_first_free_name_is_taken(sample):
    for name in ("unclip.png", "unclip-2.png"):
        code, out, _ = sample(*RED, "--size", 64)
        assert code == 0 and out.startswith(f"wrote {name} (seed ")
    assert [p.name for p in first_free(1)] == ["unclip-3.png"]
    assert read_png("unclip.png")["seed"] != read_png("unclip-2.png")["seed"]


def test_variations_of_a_picture_and_the_same_again_without_it(sample):
    Image.new("RGB", (20, 30), "red").save("red.png")
    words = ("--image", "red.png", "--num-images", 2, "--seed", 4, "--size", 64)
    assert sample(*words, "--output", "v.png")[0] == 0
    assert not np.array_equal(pixels("v-0000.png"), pixels("v-0001.png"))
    record = read_png("v-0001.png")
    assert record["prompt"] == "" and record["seed"] == 5 and "prior" not in record["stages"]
    os.remove("red.png")
    assert sample("--from", "v-0001.png", "--output", "again.png")[0] == 0
    assert Path("v-0001.png").read_bytes() == Path("again.png").read_bytes()


def test_precision_threads_and_silence(sample):
    words = ("--dtype", "bfloat16", "--threads", 1, "--quiet", "--size", 64, "--output", "a.png")
    assert sample(*RED, *words) == (0, "", "")
    assert torch.get_num_threads() == 1 and read_png("a.png")["dtype"] == "bfloat16"


def test_quantized_stages_are_recorded_and_drawn_again(sample, monkeypatch):
    pytest.importorskip("torchao", reason="of the extra quant")
    assert (
        sample(*RED, "--seed", 1, "--size", 64, "--quantize", "int8", "--output", "a.png")[0] == 0
    )
    assert read_png("a.png")["quantize"] == "int8"
    assert sample("--from", "a.png", "--output", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    sample(*RED, "--seed", 1, "--size", 64, "--output", "whole.png")
    assert "quantize" not in read_png("whole.png")
    assert (pixels("a.png") != pixels("whole.png")).any()
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    code, _, said = sample(*RED, "--quantize", "int8", "--output", "c.png")
    assert code == 2 and said.startswith(
        "unclip-sample: --quantize: 'int8' needs torchao; pip inst"
    )


def test_files_are_replaced_only_when_asked(sample):
    Path("a.png").write_text("mine")
    code, out, err = sample(*RED, "--output", "a.png")
    assert (code, out) == (2, "") and "--overwrite" in err
    assert Path("a.png").read_text() == "mine"
    assert sample(*RED, "--size", 64, "--output", "a.png", "--overwrite")[0] == 0
    assert Image.open("a.png").size == (64, 64)


def test_lines_with_settings_of_their_own(sample, tiny_model):
    lines = [
        {"prompt": "a red apple", "seed": 7, "guidance": 1, "steps": 2, "scheduler": "unipc"},
        {"prompt": "a red apple", "seed": 7},
        {"prompt": "two pears", "num_images": 2, "size": 256, "prior-steps": 2},
    ]
    text = "\n".join([json.dumps(lines[0]), "a plain line", *map(json.dumps, lines[1:])])
    Path("p.jsonl").write_text(text)
    words = ("--prompts", "p.jsonl", "--seed", 3, "--size", 64, "--batch-size", 4)
    code, out, _ = sample(*words, "--output", "all", "--format", "json")
    assert code == 0
    found = [(i["prompt"], i["seed"], i["size"]) for i in json.loads(out)["images"]]
    assert found == [
        ("a red apple", 7, 64),
        ("a plain line", 4, 64),
        ("a red apple", 7, 64),
        ("two pears", 6, 256),
        ("two pears", 7, 256),
    ]
    record = read_png("all/0000.png")
    assert (record["sampler"]["decoder"], record["steps"]["decoder"]) == ("unipc", 2)
    assert sample("--from", "all/0000.png", "--output", "again.png")[0] == 0
    assert np.array_equal(pixels("all/0000.png"), pixels("again.png"))
    assert not np.array_equal(pixels("all/0000.png"), pixels("all/0002.png"))


def test_processes_share_the_pictures(sample, monkeypatch):
    Path("p.txt").write_text("a\nb\nc\n")
    words = ("--prompts", "p.txt", "--size", 64, "--output", "shared")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sample(*words)[0] == 2
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert sample(*words, "--seed", 5)[0] == 0
    records = [read_png(path) for path in sorted(Path("shared").iterdir())]
    assert [(r["prompt"], r["seed"]) for r in records] == [("a", 5), ("b", 6), ("c", 7)]


def test_processes_share_what_is_kept_of_each_caption(sample, monkeypatch):
    Path("p.txt").write_text("a\nb\n")
    words = ("--prompts", "p.txt", "--size", 64, "--seed", 5, "--best-of", 4, "--num-images", 2)
    assert sample(*words, "--output", "one")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        code, out, _ = sample(*words, "--output", "shared", "--format", "json")
        assert code == 0 and len({image["prompt"] for image in json.loads(out)["images"]}) == 1
    for name in sorted(os.listdir("one")):
        assert np.array_equal(pixels(f"one/{name}"), pixels(f"shared/{name}"))
    seeds = [read_png(f"shared/000{i}.png")["seed"] for i in range(4)]
    assert len(set(seeds)) == 4


@pytest.mark.slow
def test_two_processes_share_a_file(tiny_model, tmp_path, two_processes):
    lines = [
        "a red apple",
        '{"prompt": "a rocket", "seed": 3, "steps": 2, "num_images": 3}',
        "a sun",
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    words = ["--prompts", "p.jsonl", "--seed", "1", "--size", "64", "--model", str(tiny_model)]
    many = [*two_processes, "unclip_sample.cli"]
    for output, before in (("two", many), ("one", [COMMAND])):
        command = [*before, *words, "--output", output]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 5 and names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_best_of_many(sample):
    words = (*RED, "--size", 64, "--seed", 5)
    assert sample(*words, "--best-of", 4, "--num-images", 2, "--output", "best.png")[0] == 0
    records = [read_png(f"best-000{i}.png") for i in range(2)]
    assert records[0]["score"] >= records[1]["score"]
    assert {r["seed"] for r in records} <= {5, 6, 7, 8}
    assert sample("--from", "best-0000.png", "--output", "again.png")[0] == 0
    assert np.array_equal(pixels("best-0000.png"), pixels("again.png"))


def test_the_best_of_many_of_two_captions_with_one_seed(sample):
    lines = [{"prompt": prompt, "seed": 7} for prompt in ("a red apple", "a rocket")]
    lines.insert(1, {"prompt": "a red apple", "seed": 7, "best_of": 1})
    Path("p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--prompts", "p.jsonl", "--size", 64, "--output", "many")
    assert sample(*words, "--best-of", 3)[0] == 0
    alone = ("--prompt", "a rocket", "--seed", 7, "--size", 64, "--best-of", 3)
    assert sample(*alone, "--output", "alone.png")[0] == 0
    assert np.array_equal(pixels("many/0002.png"), pixels("alone.png"))
    assert sample(*RED, "--seed", 7, "--size", 64, "--output", "first.png")[0] == 0
    assert np.array_equal(pixels("many/0001.png"), pixels("first.png"))


def test_a_plot_of_a_picture_that_was_drawn(sample):
    words = ("--size", 64, "--seed", 7, "--steps", 3)
    assert sample(*RED, *words, "--output", "a.png")[0] == 0
    varied = ("--x", "guidance-interval=0,1000|300,600", "--cell", 64)
    assert sample("--from", "a.png", *varied, "--output", "plot.png")[0] == 0
    sheet = np.asarray(Image.open("plot.png"))
    assert np.array_equal(sheet[12:76, 12:76], pixels("a.png"))
    assert not np.array_equal(sheet[12:76, 88:152], pixels("a.png"))
    assert read_png("plot.png")["seed"] == 7


def test_a_plot_of_two_options(sample):
    words = (*RED, "--size", 64, "--x", "guidance=1,3,5", "--y", "seed=1,2", "--cell", 64)
    assert sample(*words, "--output", "plot.png")[0] == 0
    sheet = Image.open("plot.png")
    assert sheet.size == (3 * 76 + 12, 2 * 97 + 12)
    cells = [sheet.crop((x, y, x + 64, y + 64)).tobytes() for y in (12, 109) for x in (12, 88)]
    assert len(set(cells)) == 4
    code, _, err = sample("--from", "plot.png", "--output", "again.png")
    assert code == 2 and "plot" in err


def test_settings_of_stages_are_drawn_again(sample):
    words = ("--guidance-interval", "100,900", "--guidance-rescale", 0.7, "--candidates", 1)
    more = ("--dynamic-threshold", 0.99, "--prior-scheduler", "analytic", "--prior-guidance", 2)
    names = ("--upsampler-scheduler", "euler,unipc", "--prior-negative-prompt", "a dog")
    names += ("--image-guidance", 0)
    assert sample(*RED, *words, *more, *names, "--size", 256, "--output", "a.png")[0] == 0
    record = read_png("a.png")
    assert record["sampler"]["prior"] == "analytic"
    assert record["sampler"]["upsampler_256"] == "euler"
    assert record["guidance_interval"] == {"decoder": [100.0, 900.0]}
    assert record["image_guidance_scale"] == {"decoder": 0.0}
    assert sample("--from", "a.png", "--output", "b.png")[0] == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_the_words_name_the_samplers_that_there_are():
    from unclip.diffusion.samplers import SAMPLER_NAMES
    from unclip_sample.words import SAMPLERS

    assert SAMPLERS == SAMPLER_NAMES


# Mistakes, found before a model is loaded


MISTAKES = {
    "no prompt": ([], "--prompt is missing"),
    "empty prompt": (["--prompt", " "], "--prompt is empty"),
    "both kinds of prompts": ([*RED, "--prompts", "p.txt"], "--prompts"),
    "no file of prompts": (["--prompts", "p.txt"], "--prompts"),
    "empty file of prompts": (["--prompts", "blank.txt"], "--prompts"),
    "prompts that are no text": (["--prompts", "cut.png"], "--prompts"),
    "guidance nan": ([*RED, "--guidance", "nan"], "--guidance"),
    "guidance negative": ([*RED, "--guidance", "-1"], "--guidance"),
    "guidance word": ([*RED, "--prior-guidance", "much"], "--prior-guidance"),
    "steps zero": ([*RED, "--steps", "0"], "--steps"),
    "steps too many": ([*RED, "--prior-steps", "1001"], "--prior-steps"),
    "steps unknown": ([*RED, "--upsampler-steps", "27,fast28"], "--upsampler-steps"),
    "no pictures": ([*RED, "--num-images", "0"], "--num-images"),
    "seed": ([*RED, "--seed", "-1"], "--seed"),
    "size": ([*RED, "--size", "300"], "--size"),
    "scheduler": ([*RED, "--scheduler", "eulr"], "did you mean euler?"),
    "unknown option with advice": ([*RED, "--guidence", "3"], "did you mean --guidance?"),
    "fewer than are kept": ([*RED, "--best-of", "2", "--num-images", "3"], "--best-of"),
    "no interval": ([*RED, "--guidance-interval", "9,3"], "--guidance-interval"),
    "a plot of nothing": ([*RED, "--x", "colour=1,2"], "--x"),
    "a plot of one thing twice": ([*RED, "--x", "seed=1", "--y", "seed=2"], "--y"),
    "a plot with no interval": ([*RED, "--x", "guidance-interval=500,0"], "--x"),
    "cells without a plot": ([*RED, "--cell", "64"], "--cell: give it with --x or --y"),
    "cells of no pixels": ([*RED, "--x", "seed=1,2", "--cell", "0"], "--cell"),
    "cells too large": ([*RED, "--x", f"seed={','.join('1' * 99)}", "--cell", "1024"], "--cell"),
    "a line of no use": (["--prompts", "bad.jsonl"], "did you mean guidance?"),
    "dtype": ([*RED, "--dtype", "int8"], "--dtype"),
    "device": ([*RED, "--device", "gpu"], "--device"),
    "threads": ([*RED, "--threads", "0"], "--threads"),
    "unknown option": ([*RED, "--stepps", "3"], "--stepps"),
    "abbreviated option": ([*RED, "--nega", "3"], "--nega"),
    "other kind of file": ([*RED, "--output", "a.jpg"], "--output"),
    "output is a folder": ([*RED, "--output", "folder.png"], "--output"),
    "output in a file": ([*RED, "--output", "blank.txt/a.png"], "--output"),
    "output not writable": ([*RED, "--output", "/proc/a.png"], "--output"),
    "no model": ([*RED, "--model", "nowhere"], "--model"),
    "no picture": (["--image", "none.png"], "--image"),
    "a prior that is not asked": (["--image", "plain.png", "--candidates", "4"], "--candidates"),
    "damaged picture": (["--image", "cut.png"], "--image"),
    "picture is a text": (["--image", "blank.txt"], "--image"),
    "no picture to repeat": (["--from", "none.png"], "--from"),
    "picture without a record": (["--from", "plain.png"], "--from"),
    "damaged record": (["--from", "cut.png"], "--from"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_before_a_model_is_loaded(sample, monkeypatch, mistake):
    from unclip import UnCLIPPipeline

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(UnCLIPPipeline, "from_pretrained", load)
    Path("folder.png").mkdir()
    Path("blank.txt").write_text("\n")
    Path("bad.jsonl").write_text('{"prompt": "a", "guidanc": 3}\n')
    Image.effect_noise((50, 50), 50).save("plain.png")
    Path("cut.png").write_bytes(Path("plain.png").read_bytes()[:500])
    words, named = MISTAKES[mistake]
    code, out, err = sample(*words, model="--model" not in words)
    assert (code, out) == (2, "") and err.count("\n") == 1, err
    assert err.startswith("unclip-sample: ") and named in err
    assert len(os.listdir()) == 5


def test_mistakes_that_only_the_model_can_tell(sample, tiny_model, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(tiny_model, small)
    index = json.loads((small / "model_index.json").read_text())
    index |= {"upsampler_1024": [None, None], "upsampler_1024_scheduler": [None, None]}
    (small / "model_index.json").write_text(json.dumps(index))
    code, _, err = sample(*RED, "--model", small, "--size", 1024, "--output", "a", model=False)
    assert code == 2 and "size: this model draws 64, 128, 256 pixels" in err
    assert not Path("a").exists()


def test_a_run_that_fails_ends_with_one(sample, tiny_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    path = broken / "decoder/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    words = (*RED, "--model", broken, "--output", "a.png")
    code, out, err = sample(*words, model=False)
    assert (code, out, err.count("\n")) == (1, "", 1) and str(path) in err
    assert not Path("a.png").exists()
    with pytest.raises(ValueError, match="damaged"):
        cli.main([str(word) for word in (*words, "--debug")])


def test_a_value_that_is_not_finite_leaves_no_file(sample, monkeypatch):
    from unclip import Upsampler

    monkeypatch.setattr(Upsampler, "forward", lambda self, x_t, *_: x_t * torch.nan)
    code, _, err = sample(*RED, "--output", "a.png")
    assert code == 1 and "upsampler_256" in err and "step 1" in err
    assert os.listdir() == []


def test_an_interrupted_run(sample, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", stop)
    assert sample(*RED)[0] == 130


def test_a_record_that_was_tampered_with(sample):
    from unclip_sample.png import save_png

    base = {"prompt": "a", "seed": 1, "size": 64}
    for changes, word in (
        ({"size": 17}, "size"),
        ({"steps": {"decoder": 0}}, "decoder_num_inference_steps"),
        ({"guidance": {"decoder": 1e9}}, "guidance_scale"),
        ({"sampler": {"decoder": "eulr"}}, "sampler"),
        ({"sampler": {"eval": "ddim"}}, "sampler"),
        ({"sampler": "ddim"}, "sampler"),
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"z_img": "xyz"}, "z_img"),
        ({"z_img": "00000000"}, "image_embeds"),
        ({"z_img": "0000c07f" * 32}, "image_embeds"),
        ({"seed": -5}, "seeds"),
        ({"num_prior_candidates": "many"}, "num_prior_candidates"),
        ({"num_prior_candidates": 10**9}, "num_prior_candidates"),
    ):
        save_png(Image.new("RGB", (4, 4)), "t.png", {**base, **changes}, overwrite=True)
        code, _, err = sample("--from", "t.png", "--output", "o.png")
        assert code == 2 and word in err and err.count("\n") == 1, (changes, err)


# Names


def test_names_of_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan_outputs("a.png", 1) == [Path("a.png")]
    assert plan_outputs("in/a.PNG", 2) == [Path("in/a-0000.PNG"), Path("in/a-0001.PNG")]
    assert plan_outputs("v1.2", 1) == [Path("v1.2/0000.png")]
    assert len(plan_outputs("many", 10_001)[-1].stem) == 5
    (tmp_path / "many").mkdir()
    (tmp_path / "many/00007.png").touch()
    with pytest.raises(OutputError, match="00007.png exists"):
        plan_outputs("many", 10_001)
    assert os.listdir() == ["many"]
