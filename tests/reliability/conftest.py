"""The tiny pipeline of tests/pipeline, and figures that -s shows (docs/reliability.md)."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def new_pipe():
    """Make a tiny random pipeline with the sizes of the real one."""
    path = Path(__file__).parents[1] / "pipeline" / "conftest.py"
    spec = spec_from_file_location("tiny_pipeline", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.new_pipe


@pytest.fixture(scope="session")
def pipe(new_pipe):
    """A tiny pipeline that no test changes."""
    return new_pipe()


@pytest.fixture(scope="session")
def tiny_model(pipe, tmp_path_factory):
    """The tiny pipeline as a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def figure(request):
    """Print a figure of a promise: figure("R2", "...")."""

    def show(name, text):
        print(f"\n{name}: {text}")

    return show
