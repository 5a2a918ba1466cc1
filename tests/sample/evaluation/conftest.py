"""A few drawings, a tiny model that draws noise, and another tiny CLIP as its judge."""

import re
import shutil
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from unclip import UnCLIPPipeline
from unclip.pipeline.folder import model_hash
from unclip_sample.evaluation import cli, embeddings, prior_sweep, sweeps, variety
from unclip_sample.evaluation.bench import Bench
from unclip_sample.evaluation.judge import Judge
from unclip_sample.evaluation.sources import open_drawings
from unclip_sample.evaluation.studio import Studio
from unclip_sample.evaluation.words import SIZES

TESTS = Path(__file__).parents[2]
VOID = {"meta", "img", "br"}


def load(path: str):
    """A conftest of another room as a module."""
    spec = spec_from_file_location(path.replace("/", "_").removesuffix(".py"), TESTS / path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    """Six concepts in four styles, of 64 pixels; four pairs are held out."""
    made = load("train/data/conftest.py")
    folder = tmp_path_factory.mktemp("drawings")
    colours = {drawing.id: made.colour_of(i) for i, drawing in enumerate(made.list_set())}
    made.write_set(folder, colours)
    return folder


@pytest.fixture
def drawings_by_more(drawings, tmp_path):
    """The same folder with the drawings of all further artists."""
    folder = tmp_path / drawings.name
    shutil.copytree(drawings, folder)
    load("train/data/conftest.py").add_more_artists(folder)
    return folder


@pytest.fixture(scope="session")
def source(drawings):
    return open_drawings(drawings, 64)


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory):
    """A CLIP with weights of its own."""
    folder = tmp_path_factory.mktemp("judge") / "judge"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        load("pipeline/conftest.py").make_clip().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(tiny_model):
    pipeline = UnCLIPPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def studio(loaded, tiny_model, tmp_path):
    """A studio that draws one picture at a time."""
    return Studio(loaded, "tiny", model_hash(tiny_model), tmp_path / "report", 64, 1, quiet=True)


@pytest.fixture
def bench(studio, loaded, tiny_model, judge_folder, source):
    judge = Judge.load(judge_folder, loaded, tiny_model, "cpu")
    return Bench(studio, judge, source, 0, dict.fromkeys(SIZES, 2))


@pytest.fixture
def small(monkeypatch):
    """Sweeps of few settings."""
    monkeypatch.setattr(sweeps, "GUIDANCES", (1.0, 3.0))
    monkeypatch.setattr(sweeps, "NUM_SEEDS", 2)
    monkeypatch.setattr(sweeps, "STEPS", (2, 3))
    monkeypatch.setattr(sweeps, "SAMPLERS", ("ddpm", "dpm++", "nothing"))
    monkeypatch.setattr(sweeps, "CANDIDATES", (1, 2))
    monkeypatch.setattr(prior_sweep, "STEPS", (2, 3))
    monkeypatch.setattr(prior_sweep, "SAMPLERS", ("ddpm", "unipc"))
    monkeypatch.setattr(prior_sweep, "NUM_SEEDS", 2)
    monkeypatch.setattr(embeddings, "COMPONENTS", (2, 4))
    monkeypatch.setattr(embeddings, "NUM_VARIATIONS", 2)
    monkeypatch.setattr(embeddings, "NUM_LETTERED", 1)
    monkeypatch.setattr(variety, "NUM_SEEDS", 2)


@pytest.fixture
def evaluate(capsys):
    """Run unclip-eval here; (exit code, stdout, stderr)."""
    threads = torch.get_num_threads()

    def run(*words):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return code, said.out, said.err

    yield run
    torch.set_num_threads(threads)


class Checker(HTMLParser):
    """Follows a page: unclosed elements, what it links to, which elements it has."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def checked(page):
    """Parse a page and see that it fetches nothing."""
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and "script" not in checker.tags
    assert all(re.match(r"data:image/png;base64,|#", link) for link in checker.links)
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", page)
    return checker


@pytest.fixture
def check():
    """Parse a page, see that it fetches nothing, and tell what it holds; see checked."""
    return checked
