"""The README and the guides tell the truth: their commands parse, their example runs."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("unclip-")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command):
    name, *words = shlex.split(command)
    if name == "unclip-sample":
        from unclip_sample.cli import parser

        parser().parse_args(words)
    elif name == "unclip-convert":
        from unclip_sample.convert import parser

        parser().parse_args(words)
    elif name == "unclip-rank":
        from unclip_sample.rank import parser

        parser().parse_args(words)
    elif name == "unclip-eval":
        from unclip_sample.evaluation.words import parser

        parser().parse_args(words)
    elif name == "unclip-serve":
        from unclip_sample.serve.cli import parser

        parser().parse_args(words)
    elif name == "unclip-data":
        from unclip_train.data.cli import build_parser

        build_parser().parse_args(words)
    else:
        from unclip_train.cli import build_parser
        from unclip_train.config import load_config

        assert name == "unclip-train"
        args = build_parser().parse_intermixed_args(words)
        if args.stage == "all":
            from unclip_train.family import family_folder, plan

            assert plan(family_folder(args.config), Path("runs"), args.overrides)
            return
        if args.stage == "assemble" and args.config is None:
            return  # it has defaults for everything
        load_config(args.stage, args.config or f"emoji/upsampler_{args.resolution}", args.overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "README.md", "python")
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["image"].size == (1024, 1024) and names["image"].mode == "RGB"
    assert (tmp_path / "apple.png").is_file()


def test_nothing_is_left_to_fill_in():
    for page in [*PAGES, *ROOT.glob("unclip/weights/*/README.md"), ROOT / "CHANGELOG.md"]:
        assert not re.search(r"@[A-Z_]+@|TODO|TBD", page.read_text()), page
