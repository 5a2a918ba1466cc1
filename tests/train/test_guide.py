"""The guide's five commands, as they are written, make a model that draws."""

import re
import shlex
from pathlib import Path

import pytest

from unclip_train.cli import main

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def commands_of_the_guide() -> list[list[str]]:
    """The lines of the first block of "Your own pictures", as words."""
    section = GUIDE.read_text("utf-8").split("## Your own pictures\n")[1]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)[1]
    return [shlex.split(line) for line in block.splitlines()]


@pytest.fixture
def my_pictures(tmp_path, monkeypatch, picture_of):
    """A current folder with twelve pictures and their captions."""
    monkeypatch.chdir(tmp_path)
    Path("my-pictures").mkdir()
    for number in range(12):
        content = picture_of(number, "JPEG", (96, 72))
        Path("my-pictures", f"{number:04d}.jpg").write_bytes(content)
        Path("my-pictures", f"{number:04d}.txt").write_text(f"picture number {number}")
    return tmp_path


def test_five_commands_from_pictures_to_a_model_that_draws(my_pictures):
    """As written but for the sizes: configs/tiny in place of configs/pictures, two steps each."""
    from unclip import UnCLIPPipeline

    commands = commands_of_the_guide()
    assert len(commands) == 5 and commands[-1][1] == "assemble"
    for command, *words in commands:
        assert command == "unclip-train"
        words = [re.sub(r"^(runs/)?pictures\b", r"\1tiny", word) for word in words]
        assert main(words + (["run.steps=2"] if words[0] != "assemble" else [])) == 0
    pipeline = UnCLIPPipeline.from_pretrained("my-model")
    drawn = pipeline("picture number 3", seeds=[0])
    assert drawn.images[0].size == (64, 64)
