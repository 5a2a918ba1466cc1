"""Every example of docs/guide.md runs, in the order of the page, on a tiny model."""

import re
import shlex
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unclip import UnCLIPPipeline
from unclip_sample import cli

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/guide.md").read_text("utf-8")
NUM_PICTURES = 24  # more than the principal components that an example keeps


def blocks(language: str) -> list[str]:
    """The fenced blocks of the guide in one language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


HAS_TORCHAO = find_spec("torchao") is not None  # of the extra quant
COMMANDS = [
    line
    for block in blocks("bash")
    for line in block.splitlines()
    if line.strip() and (HAS_TORCHAO or "--quantize" not in line)
]


@pytest.fixture(scope="module")
def tiny():
    """A tiny pipeline with all stages."""
    path = Path(__file__).parent / "pipeline" / "conftest.py"
    spec = spec_from_file_location("tiny_pipeline", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.new_pipe(decoder_config={"stem": 8})


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A folder in which the commands of the guide have run, one after the other."""
    folder = tmp_path_factory.mktemp("guide")
    drawings = folder / "data/emoji/64/noto"
    drawings.mkdir(parents=True)
    for number in range(NUM_PICTURES):
        Image.effect_noise((32, 32), 9 * number).convert("RGB").save(drawings / f"{number:02}.png")
    mask = Image.new("L", (256, 256), "black")  # as the guide has it drawn
    mask.paste("white", (0, 0, 256, 112))
    mask.save(folder / "mask.png")
    (folder / "prompts.jsonl").write_text("".join(blocks("jsonl")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(UnCLIPPipeline, "from_pretrained", lambda *_, **__: tiny)
        for command in COMMANDS:
            name, *words = shlex.split(command)
            assert name == "unclip-sample" and cli.main([*words, "--quiet"]) == 0, command
    return folder


def test_every_command_writes_its_picture(folder):
    for command in COMMANDS:
        words = shlex.split(command)
        output = Path(words[words.index("--output") + 1])
        pattern = f"{output}/*.png" if not output.suffix else f"{output.stem}*{output.suffix}"
        found = sorted(folder.glob(pattern))
        assert found, command
        for path in found:
            with Image.open(path) as picture:
                picture.load()


def test_every_line_of_python_runs(folder, tiny, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(UnCLIPPipeline, "from_pretrained", lambda *_, **__: tiny)
    names: dict = {}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"guide.md, example {number}", "exec"), names)
    assert len(names["many"].images) == 4 and len(names["scores"]) == len(names["seeds"]) == 2
    assert len(names["near"]) == 4 and len(names["longer"]) == 7 and len(names["strip"]) == 5
    assert names["near"][0].size == (256, 256) and names["same"].size == (64, 64)
    apple, painted = (np.asarray(names[name]) for name in ("apple", "painted"))
    assert (painted[112:] == apple[112:]).all() and (painted[:112] != apple[:112]).any()
    assert names["wider"].size == (256, 256) and names["huge"].size == (2048, 2048)
